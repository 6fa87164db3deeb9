"""Which videos of a data set are trained on and which validate: as labels, rules and earlier splits say, the rest so
that both sides have each class."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from adatad.errors import UserError
from adatad.files import listed, shown
from adatad.labels.text_table import counted
from adatad.labels.values import SUBSETS

TRAINING, VALIDATION, TEST = "training", "validation", "test"
ORDERS = 20
"""Orders in which videos are tried, where the first leaves a class out of a subset."""


@dataclass(frozen=True)
class SplitRules:
    """Rules by which videos without a subset get one. patterns: (subset, pattern of paths below the folder of videos),
    the first that fits decides; seed: another one gives another choice."""

    validation_share: float = 0.2
    seed: int = 0
    patterns: tuple[tuple[str, str], ...] = ()


def read_patterns(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Read rules such as "validation=day3/*". Raises UserError."""
    found = []
    for text in texts:
        name, _, pattern = text.partition("=")
        subset = SUBSETS.get(name.strip().casefold())
        if subset is None or not pattern.strip():
            raise UserError(
                f"--subset {shown(text)}: expected SUBSET=PATTERN, such as 'validation=day3/*'; subsets are training, "
                "validation and test"
            )
        found.append((subset, pattern.strip()))
    return tuple(found)


def subsets_of(
    classes: Mapping[str, frozenset[str]],
    said: Mapping[str, set[str]],
    paths: Mapping[str, str],
    rules: SplitRules,
    earlier: Mapping[str, str],
    notes: list[str],
) -> tuple[dict[str, str], list[str]]:
    """Return the subset of each video, and what is wrong.

    classes: of each video; said: subsets that labels give it, empty texts where they say nothing; paths: of its file,
    which rules may mean too; earlier: subsets of an earlier import, which stay. Rules go before that, and that before
    labels. Remarks go to `notes`.
    """
    if rules.patterns:
        fixed, wrong = _by_rules(paths, said, rules, earlier, notes)
    elif earlier:
        new = {video: subsets for video, subsets in said.items() if video not in earlier and len(subsets) > 1}
        fixed, wrong = _kept(said, earlier, notes), disputed({paths[video]: subsets for video, subsets in new.items()})
    else:
        wrong = disputed({paths[video]: subsets for video, subsets in said.items()})
        fixed = {} if wrong else {video: min(subsets) for video, subsets in said.items() if any(subsets)}
    if wrong:
        return {}, wrong
    if len(classes) < 2:
        return {}, ["one video is too few: some train, others validate; add videos, or a column subset"]
    fixed = _validated(fixed, classes, notes)
    if len(fixed) < len(classes):
        chosen = split(classes, rules.validation_share, rules.seed, fixed)
        new = {video: subset for video, subset in chosen.items() if video not in fixed}
        if fixed:
            counts = Counter(new.values())
            notes.append(f"{counted(len(new), 'new video')}: {counts[TRAINING]} train, {counts[VALIDATION]} validate")
    else:
        chosen = fixed
    wrong = [
        f"no video is for {subset}: the subsets are {listed(sorted(set(chosen.values())))}; give some videos that "
        "subset, or leave subsets out"
        for subset in (TRAINING, VALIDATION)
        if subset not in chosen.values()
    ]
    if not wrong:
        notes += _lacking(classes, chosen)
    return chosen, wrong


def disputed(said: Mapping[str, set[str]]) -> list[str]:
    """Return what is wrong with videos that have several subsets, or none where others have one."""
    if not any(subset for named in said.values() for subset in named):
        return []
    wrong = [
        f"video {video!r}: expected one subset on all its lines, got {' and '.join(sorted(s or 'none' for s in named))}"
        for video, named in said.items()
        if len(named) > 1
    ]
    without = [video for video, named in said.items() if not any(named)]
    if without:
        wrong.append(
            f"{counted(len(without), 'video')} without a subset, which others have: {listed(without)}; --subset rules "
            "say it for all"
        )
    return wrong


def _by_rules(
    paths: Mapping[str, str],
    said: Mapping[str, set[str]],
    rules: SplitRules,
    earlier: Mapping[str, str],
    notes: list[str],
) -> tuple[dict[str, str], list[str]]:
    """Return the subset of each video by the rules; of those that no rule names, the earlier one or the labels'."""

    def fits(video: str, pattern: str) -> bool:
        """Return whether a pattern means a video, by its name or the path of its file."""
        # Accents as one character: file systems and keyboards differ there.
        names = (unicodedata.normalize("NFC", name) for name in (video, paths[video]))
        return any(fnmatchcase(name, unicodedata.normalize("NFC", pattern)) for name in names)

    wrong = [
        f"--subset {subset}={pattern}: no video is called so; they are {listed(list(paths.values()))}"
        for subset, pattern in rules.patterns
        if not any(fits(video, pattern) for video in paths)
    ]
    # Who names the validation videos means the others for training, and the other way round.
    rest = VALIDATION if {subset for subset, _ in rules.patterns} == {TRAINING} else TRAINING
    fixed = {}
    for video in paths:
        named = next((subset for subset, pattern in rules.patterns if fits(video, pattern)), None)
        by_labels = min(said[video]) if len(said[video]) == 1 else ""
        fixed[video] = named or earlier.get(video) or by_labels or rest
    counts = Counter(fixed.values())
    notes.append(
        f"subsets by the rules: {listed([f'{count} {subset}' for subset, count in sorted(counts.items())])}; videos "
        f"that nothing else names are for {rest}"
    )
    return fixed, wrong


def _kept(said: Mapping[str, set[str]], earlier: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """Return the earlier subset of old videos, and what labels say of new ones."""
    fixed = {video: earlier[video] for video in said if video in earlier}
    others = [video for video, subset in fixed.items() if said[video] - {"", subset}]
    if others:
        notes.append(
            f"{counted(len(others), 'video')} of another subset by the labels, kept in the earlier one: "
            f"{listed(others)}"
        )
    for video, subsets in said.items():
        if video not in fixed and len(subsets) == 1 and any(subsets):
            fixed[video] = min(subsets)
    return fixed


def _validated(fixed: dict[str, str], videos: Iterable[str], notes: list[str]) -> dict[str, str]:
    """Return subsets with test in the place of validation, if nothing else validates."""
    there = set(fixed.values())
    if TEST not in there:
        return fixed
    if VALIDATION not in there and len(fixed) == len(list(videos)):
        notes.append("no video is for validation, but some for test: these are validated on")
        return {video: VALIDATION if subset == TEST else subset for video, subset in fixed.items()}
    count = sum(subset == TEST for subset in fixed.values())
    notes.append(f"{counted(count, 'video')} for test: in the annotation file, but neither trained nor validated on")
    return fixed


def _lacking(classes: Mapping[str, frozenset[str]], chosen: Mapping[str, str]) -> list[str]:
    """Return remarks on classes that can't be scored, and why."""
    videos = Counter(label for labels in classes.values() for label in labels)
    scored = {label for video, labels in classes.items() if chosen[video] == VALIDATION for label in labels}
    single = sorted(label for label, count in videos.items() if count == 1 and label not in scored)
    if not single:
        return []
    return [
        f"warning: {counted(len(single), 'class')} can't be evaluated, with one video "
        f"each, which trains: {listed(single, 10)}; label more videos of them"
    ]


def split(
    classes: Mapping[str, frozenset[str]],
    validation_share: float,
    seed: int = 0,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the subset of each video. classes: of each of two or more videos; fixed: subsets that stay.

    Each class of at least two videos gets into validation, the rarest first, but never by taking its last video from
    training; then validation is filled up to its share in the same way. Videos are tried in the order of their names'
    digests: the choice is always the same, and mostly stays when videos are added. Where that leaves a class out of a
    subset, further orders are tried.
    """
    best: dict[str, str] = {}
    fewest = -1
    for number in range(ORDERS):
        # Order 0 of seed 0 has the bare names: what was split by it stays as it was.
        salt = f"{seed}:{number}:" if seed or number else ""
        # A digest's order is random but the same on every machine, and a new video doesn't move the others.
        order = sorted(classes, key=lambda video, salt=salt: hashlib.sha256(f"{salt}{video}".encode()).digest())
        chosen = _split_in(order, classes, validation_share, fixed or {})
        lacking = _count_lacking(classes, chosen)
        if fewest < 0 or lacking < fewest:
            best, fewest = chosen, lacking
        if not fewest:
            break
    return best


def _count_lacking(classes: Mapping[str, frozenset[str]], chosen: Mapping[str, str]) -> int:
    """Count the classes of several videos that a subset lacks."""
    used = [(video, labels) for video, labels in classes.items() if chosen[video] != TEST]
    videos = Counter(label for _, labels in used for label in labels)
    sides = {(chosen[video], label) for video, labels in used for label in labels}
    return sum(
        (side, label) not in sides for label, count in videos.items() if count > 1 for side in (TRAINING, VALIDATION)
    )


def _split_in(
    order: Sequence[str], classes: Mapping[str, frozenset[str]], validation_share: float, fixed: Mapping[str, str]
) -> dict[str, str]:
    """Split videos, trying them in an order."""
    used = [video for video in order if fixed.get(video) != TEST]
    validation = {video for video in used if fixed.get(video) == VALIDATION}
    free = [video for video in used if video not in fixed]
    # Of each class, the videos that train as yet.
    left = Counter(label for video in used if video not in validation for label in classes[video])
    videos = Counter(label for video in used for label in classes[video])

    def can_go(video: str) -> bool:
        """Return whether training keeps each of the video's classes without it."""
        return video not in validation and all(left[label] > 1 for label in classes[video])

    def take(video: str) -> None:
        """Move a video to validation."""
        validation.add(video)
        left.subtract(classes[video])

    # The rarest class first: it has the least choice of videos.
    for label, count in sorted(videos.items(), key=lambda item: (item[1], item[0])):
        if count > 1 and not any(label in classes[video] for video in validation):
            video = next((video for video in free if label in classes[video] and can_go(video)), None)
            if video is not None:
                take(video)
    # One at least on each side.
    wanted = min(max(1, round(validation_share * len(used))), len(used) - 1)
    for video in free:
        if len(validation) < wanted and can_go(video):
            take(video)
    if not validation and free:
        # Every video is the only one of some class: take the one with the fewest such classes from training.
        take(min(free, key=lambda video: sum(left[label] == 1 for label in classes[video])))
    return {video: fixed.get(video) or (VALIDATION if video in validation else TRAINING) for video in classes}
