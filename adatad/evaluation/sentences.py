"""Sentences on what matters first about a score: mistakes of files, then errors and weak classes by their cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SENTENCES = 3
LEAST_COST = 0.0005
"""Average mAP below which a cost is none."""

ADVICE = {
    "double detection": "one instance is found several times; a stricter NMS (postprocess.nms) removes some",
    "wrong label": "the place is right, the class isn't",
    "localization": "the class is right, starts or ends aren't exact enough",
    "confusion": "neither place nor class is right, though something happens there",
    "background": "nothing is annotated there; look whether instances were forgotten",
    "missed": "no detection of their class overlaps them enough",
}


class _Line(NamedTuple):
    cost: float
    text: str


def sentences(found: dict[str, Any], most: int = SENTENCES) -> list[str]:
    """Return the sentences that matter first. found: content of `explain.explain`."""
    # A mistake of a file comes first, whatever it costs: it makes all other figures worthless.
    fits = [_fit(fit, found["average_mAP"]["value"]) for fit in found["would_fit"]]
    if not found["detections"]:
        return ["There is no detection with a class of the annotations: compare the labels of the two files."]
    if not found["average_mAP"]["value"]:
        background = percent(found["profile"][0]["background"]["value"])
        least = min(found["tious"])
        nothing = (
            f"No detection overlaps an instance of its class by tIoU {least:g}; {background} of the best ones are "
        )
        return [*fits, nothing + "where nothing is annotated."][:most]
    lines = sorted([*_errors(found), *_weak_class(found)], key=lambda line: -line.cost)
    texts = [*fits, *(line.text for line in lines if line.cost > LEAST_COST)][:most]
    return texts or ["No type of error costs anything."]


def with_signs(lines: Sequence[str], fits: int, signs: Sequence[tuple[str, str]], most: int = SENTENCES) -> list[str]:
    """Return the sentences on a run: those on its score with those on its training between them.

    lines: of `sentences`, of which the first `fits` are on mistakes of files; signs: pairs of a place, see
    `training_signs.Sign`, and a text. What stands last isn't counted in `most`: it is no reason for the score.
    """
    first, middle, last = ([text for place, text in signs if place == at] for at in ("first", "before errors", "last"))
    return [*[*first, *lines[:fits], *middle, *lines[fits:]][:most], *last]


def percent(share: float | None) -> str:
    """Return a share as a percentage with one digit; a dash for one that isn't known."""
    return "-" if share is None else f"{100 * share:.1f} %"


def points(figure: dict[str, float | None]) -> str:
    """Return a difference in average mAP with its interval, in points."""
    value, low, high = (100 * (figure[key] or 0.0) for key in ("value", "low", "high"))
    return f"{value:.1f} points ({low:.1f} to {high:.1f})"


def _fit(fit: dict[str, Any], before: float) -> str:
    what = fit["what"][0].upper() + fit["what"][1:]
    hint = fit["hint"] if fit["hint"].endswith("?") else f"{fit['hint']}."
    rise = f"average mAP would rise from {percent(before)} to {percent(fit['after'])}, by {points(fit['gain'])}"
    return f"{what}: corrected, {rise}; {hint}"


def _errors(found: dict[str, Any]) -> Iterator[_Line]:
    """Yield a sentence for each type of error."""
    first = found["profile"][0] if found["profile"] else {}
    for name, cost in found["costs"].items():
        what = "Missed instances cost" if name == "missed" else f"{name.capitalize()} errors cost"
        share = f", and are {percent(first[name]['value'])} of the best detections" if name in first else ""
        more = _most_missed(found) if name == "missed" else _most_confused(found) if name == "wrong label" else ""
        yield _Line(cost["value"] or 0.0, f"{what} {points(cost)} of average mAP{share}: {ADVICE[name]}{more}.")


def _most_missed(found: dict[str, Any]) -> str:
    """Return the kind of instance that is missed most, if kinds differ by more than their intervals."""
    rows = [
        (row, name)
        for name in ("length", "coverage", "instances")
        for row in found["sensitivity"][name]
        if row["missed"]["low"] is not None
    ]
    if not rows:
        return ""
    row, name = max(rows, key=lambda pair: pair[0]["missed"]["low"])
    others = [other["missed"] for other, its_name in rows if its_name == name and other is not row]
    if all(row["missed"]["low"] <= other["high"] for other in others):
        return ""
    what = {"length": "long", "coverage": "of their video long", "instances": "in a video"}[name]
    return f"; most often those {row['holds']} {what} ({percent(row['missed']['value'])} missed)"


def _most_confused(found: dict[str, Any]) -> str:
    pairs = found["confusion"]
    if not pairs:
        return ""
    most = pairs[0]
    return f"; most often {most['instance']!r} is detected as {most['detected_as']!r} ({most['count']} times)"


def _weak_class(found: dict[str, Any]) -> Iterator[_Line]:
    """Yield a sentence on the weakest class, if its AP is below the median of all beyond doubt."""
    values = {label: row["ap"] for label, row in found["classes"].items()}
    label = min(values, key=lambda name: values[name]["value"])
    weakest, middle = values[label], float(np.median([ap["value"] for ap in values.values()]))
    if weakest["high"] is not None and weakest["high"] < middle:
        cost, instances = (middle - weakest["value"]) / len(values), found["classes"][label]["instances"]
        text = (
            f"The weakest class is {label!r}, AP {percent(weakest['value'])} where the median is {percent(middle)}: "
            f"{100 * cost:.1f} points of average mAP; it has {instances} instances."
        )
        yield _Line(cost, text)
