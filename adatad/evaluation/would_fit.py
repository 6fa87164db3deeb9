"""Mistakes of files that would explain a low score: times that are off by a constant or a factor, classes exchanged.

Each is tried on the detections: an offset is found by aligning starts and ends with those of instances of the same
class and video, a factor by their ratios, exchanged classes by what overlaps their detections. It is reported if mAP
would rise in 97.5 % of the draws of a bootstrap over videos, and by half a point at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from adatad.evaluation.bootstrap import Draws, Estimate, Figure
from adatad.evaluation.errors import average_map
from adatad.evaluation.matches import ClassMatches, Content, best_of_each_class, by_video, match_classes
from adatad.files import listed

LEAST_GAIN = 0.005
"""Average mAP, 0 to 1, by which a correction must raise the score; for two classes, the mean of their APs."""
LEAST_VIDEOS = 3
"""Videos from which draws differ enough to be sure of anything."""
MAX_CANDIDATES = 4
"""Peaks that are tried for an offset and for a factor, and pairs of classes that are exchanged."""
RATIO_BIN = 0.01
"""Width of a bin of log ratios: frame rates of 24 and 25 lie four bins apart."""
MAX_FACTOR = 1e4
"""Largest factor that is looked for; milliseconds are 1,000."""
LEAST_SECONDS = 0.5
"""Times that a ratio is formed of; near 0 it says nothing."""
MAX_PAIRS = 100_000
"""Pairs of a detection and an instance of one class and video from which times are aligned."""
MAX_LISTED = 4
"""Classes that a sentence lists; it counts the rest."""
MAX_BINS = 200_000
RATES = (15, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60, 100, 120)
"""Frame rates that videos have."""
SAME = 0.004
"""Relative difference up to which a factor is taken for a known one."""

Change = Callable[[np.ndarray], np.ndarray]
"""Function from segments in seconds to segments in seconds, float64 [n, 2]."""


class Fit(NamedTuple):
    """One correction that would raise the score. kind: offset, factor or exchange; what: a sentence without figures;
    gain: in average mAP; after: average mAP with the correction; value: seconds, factor, or the right label by the
    detected one."""

    kind: str
    what: str
    hint: str
    value: Any
    after: float
    gain: Figure

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self._asdict(), "gain": self.gain.as_json()}


def would_fit(
    content: Content,
    matches: Sequence[ClassMatches],
    confused: np.ndarray,
    tious: Sequence[float],
    draws: Draws,
    average: Estimate,
) -> list[Fit]:
    """Return the corrections that would raise the score beyond doubt, the largest gain first.

    matches: of all detections; confused: from `errors.confusion`; average: average mAP as it is.
    """
    if len(content.videos) < LEAST_VIDEOS:
        return []
    few = best_of_each_class(content, 1)
    times = [fit for fit in _time_fits(content, few, tious, draws, average) if _is_sure(fit.gain, LEAST_GAIN)]
    # A factor mends a part of what an offset does, and the other way round: one of them is the cause.
    times = sorted(times, key=lambda fit: -fit.gain.value)[:1]
    exchanged = list(_exchanges(content, matches, confused, tious, draws, average))
    return sorted([*times, *exchanged], key=lambda fit: -fit.gain.value)


def _is_sure(gain: Figure, least: float) -> bool:
    return gain.value >= least and gain.low > 0


def _time_fits(
    content: Content, few: Content, tious: Sequence[float], draws: Draws, average: Estimate
) -> Iterator[Fit]:
    """Yield the best offset and the best factor, with their gains."""
    found, wanted = aligned_ends(few)
    if not len(found):
        return
    lengths = np.concatenate([np.diff(s)[:, 0] for videos in content.instances.values() for s in videos.values()])
    offset = _best(offsets(found, wanted, float(np.median(lengths))), _moved, few, tious)
    if offset is not None:
        what = f"detections lie {abs(offset):.2f} s {'late' if offset < 0 else 'early'}"
        hint = "look for a cut, a delay or another start between the labelled video and the one that was detected in"
        yield _time_fit("offset", what, hint, offset, _moved(offset), content, tious, draws, average)
    factor = _best(factors(found, wanted), _scaled, few, tious)
    if factor is not None:
        what, hint = f"times of detections fit when multiplied by {factor:.4g}", factor_hint(factor)
        yield _time_fit("factor", what, hint, factor, _scaled(factor), content, tious, draws, average)


def _time_fit(
    kind: str, what: str, hint: str, value: float, change: Change, content: Content, tious: Sequence[float],
    draws: Draws, average: Estimate,
) -> Fit:  # fmt: skip
    after = average_map(match_classes(changed(content, change), tious), len(content.videos))
    return Fit(kind, what, hint, value, after.value, draws.figure(after.minus(average)))


def changed(content: Content, change: Change) -> Content:
    """Return the content with all detections' segments changed."""
    tables = {label: table.copy() for label, table in content.tables.items()}
    for table in tables.values():
        table[:, 1:3] = change(table[:, 1:3])
    return content._replace(tables=tables)


def _moved(seconds: float) -> Change:
    return lambda segments: segments + seconds


def _scaled(factor: float) -> Change:
    return lambda segments: segments * factor


def _best(
    candidates: Sequence[float], change: Callable[[float], Change], few: Content, tious: Sequence[float]
) -> float | None:
    """Return the candidate with the highest average mAP of the best detections, if it is higher than without."""
    tried = [few, *(changed(few, change(value)) for value in candidates)]
    scores = [average_map(match_classes(content, tious), len(few.videos)).value for content in tried]
    best = int(np.argmax(scores))
    return None if best == 0 else float(candidates[best - 1])


def aligned_ends(content: Content) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends of detections, and those of every instance of the same class and video: float64 [2 x
    pairs] each."""
    found, wanted = [np.zeros((0, 2))], [np.zeros((0, 2))]
    names = {number: video for video, number in content.videos.items()}
    for label, table in content.tables.items():
        for number, segments in by_video(table):
            instances = content.instances[label].get(names[number])
            if instances is not None:
                segments = segments[: max(MAX_PAIRS // len(instances), 1)]
                found.append(np.repeat(segments, len(instances), axis=0))
                wanted.append(np.tile(instances, (len(segments), 1)))
    return np.concatenate(found).T.ravel(), np.concatenate(wanted).T.ravel()


def offsets(found: np.ndarray, wanted: np.ndarray, length_seconds: float) -> list[float]:
    """Return the offsets in seconds, found + offset = wanted, that most pairs agree on. length_seconds: of a typical
    instance; a tenth of it changes hardly any match, and is the width of a bin."""
    differences = wanted - found
    width = max(length_seconds / 10, 0.05, float(np.ptp(differences)) / MAX_BINS)
    return [value for value in _peaks(differences, width) if abs(value) > width / 2]


def factors(found: np.ndarray, wanted: np.ndarray) -> list[float]:
    """Return the factors, found x factor = wanted, that most pairs agree on, and known ones next to them."""
    usable = (found * MAX_FACTOR >= wanted) & (wanted >= LEAST_SECONDS)
    if not usable.any():
        return []
    values = [float(np.exp(peak)) for peak in _peaks(np.log(wanted[usable] / found[usable]), RATIO_BIN)]
    values += [factor for value in values for factor, _ in known_factors() if abs(value / factor - 1) < SAME]
    return [value for value in dict.fromkeys(values) if abs(value - 1) > SAME]


def _peaks(values: np.ndarray, width: float) -> list[float]:
    """Return the places where values are densest, as medians around the fullest bins."""
    bins = np.floor(values / width).astype(np.int64)
    bins -= (least := bins.min())
    counts = np.bincount(bins)
    # A peak may lie at the border of two bins: each is counted with its neighbours.
    wide = np.convolve(counts, np.ones(3), "same")
    peaks = []
    for place in np.argsort(-wide, kind="stable")[: 3 * MAX_CANDIDATES].tolist():
        near = values[np.abs(bins - place) <= 1]
        middle = float(np.median(near)) if len(near) else (place + least) * width
        if all(abs(middle - other) > width for other in peaks):
            peaks.append(middle)
    return peaks[:MAX_CANDIDATES]


def known_factors() -> list[tuple[float, str]]:
    """Return factors that mistakes of units have, each with what it means."""
    known = [(1 / 1000, "are detections in milliseconds?"), (1000.0, "are the annotations in milliseconds?")]
    for rate in RATES:
        known.append((1 / rate, f"are detections in frames, at {rate:g} frames/s?"))
        known.append((float(rate), f"are the annotations in frames, at {rate:g} frames/s?"))
        for other in RATES:
            # 29.97 beside 30 is within a per mille: no mistake that mAP shows.
            if abs(rate / other - 1) > SAME:
                text = f"were frames of {rate:g} frames/s taken for {other:g} frames/s?"
                known.append((other / rate, text))
    return known


def factor_hint(factor: float) -> str:
    """Return what a factor probably means."""
    near = [(abs(factor / known - 1), text) for known, text in known_factors()]
    difference, text = min(near, key=lambda pair: pair[0])
    return text if difference < SAME else "compare the frame rates, or the units, of the two files"


def _exchanges(
    content: Content, matches: Sequence[ClassMatches], confused: np.ndarray, tious: Sequence[float],
    draws: Draws, average: Estimate,
) -> Iterator[Fit]:  # fmt: skip
    """Yield groups of classes whose detections fit each other's instances."""
    labels = [own.label for own in matches]
    for meant in [*exchanged_pairs(confused), *permutations(confused)]:
        swapped = content._replace(
            tables={labels[right]: content.tables[labels[given]] for given, right in meant.items()},
            instances={labels[right]: content.instances[labels[right]] for right in meant.values()},
        )
        before = average_map([matches[number] for number in meant], len(content.videos))
        gain = average_map(match_classes(swapped, tious), len(content.videos)).minus(before)
        if _is_sure(draws.figure(gain), LEAST_GAIN):
            # A few of all classes: that much of the mean.
            whole = draws.figure(gain.times(len(meant) / len(matches)))
            names = [repr(labels[number]) for number in meant]
            what = f"{' and '.join(names)} are exchanged"
            if len(meant) > 2:
                given, right = next(iter(meant.items()))
                what = f"{listed(names, MAX_LISTED)} are exchanged in a circle"
                what += f" (what is detected as {labels[given]!r} is {labels[right]!r})"
            hint = "is the order of the class list that of training?"
            value = {labels[given]: labels[right] for given, right in meant.items()}
            yield Fit("exchange", what, hint, value, average.value + whole.value, whole)


def exchanged_pairs(confused: np.ndarray) -> list[dict[int, int]]:
    """Return pairs of classes that are detected as the other one more often than as themselves, most often first:
    {number as detected: number of the instances}. confused: from `errors.confusion`."""
    crossed, own = confused + confused.T, np.add.outer(np.diag(confused), np.diag(confused))
    better = np.triu((crossed > own) & (confused > 0) & (confused.T > 0), 1)
    pairs = sorted(np.argwhere(better).tolist(), key=lambda pair: int((own - crossed)[tuple(pair)]))
    return [{one: other, other: one} for one, other in pairs[:MAX_CANDIDATES]]


def permutations(confused: np.ndarray) -> list[dict[int, int]]:
    """Return circles of three or more classes, each detected mostly as the next one, as `exchanged_pairs` does: such as
    class numbers that all are off by one."""
    most = confused.argmax(0)
    # Only where another class is strictly more frequent than the own one.
    mistaken = confused.max(0) > np.diag(confused)
    circles, seen = [], set()
    for first in np.flatnonzero(mistaken).tolist():
        path, place = [], first
        while mistaken[place] and place not in path and place not in seen:
            path.append(place)
            place = int(most[place])
        seen.update(path)
        # A path may lead into a circle that its start isn't in.
        circle = path[path.index(place) :] if place in path else []
        if len(circle) > 2:
            circles.append({number: int(most[number]) for number in circle})
    return circles
