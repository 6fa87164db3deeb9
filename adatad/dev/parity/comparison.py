"""Comparisons with golden values: a row holds the largest error of a quantity, in the unit of its tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from adatad.errors import UserError
from adatad.files import reason

Detection = dict[str, Any]

TOLERANCES = {
    "activation": 1e-4,  # of the array's largest value
    "loss": 1e-4,  # relative
    "proposal": 1e-5,  # relative
    "gradient": 1e-4,  # L2 of the difference, of the joint norm
    "gradient_tensor": 1.0,  # L2 of the difference, of 1e-3 of the tensor's own norm + 1e-5 of the joint one
    "rate": 1e-8,  # relative
    "change": 2e-3,  # of the change's L2 norm
    "seconds": 0.011,
    "score": 2e-4,
    "level": 1.0,  # of 255: bilinear sampling that rounds in its own way
    "warped_level": 2.0,  # of 255, mean over the image
    "recolored_share": 0.01,  # values that are more than two levels off: hue may turn by a step where floats round
    "normalized": 1e-5,
    "exact": 0.0,
    "nms": 1e-6,  # relative to max(1, value)
    "vote": 1e-4,  # the same
    "map": 1e-6,
    "unrounded": 1e-5,  # seconds and scores
    "fused": 1e-6,  # relative to max(1, value)
    "last_digit": 1.01,  # units of the last digit of rounded seconds and scores
    "learning_rate": 1e-12,
    "segments_grid": 1e-6,  # relative to max(1, value)
    "seconds_unrounded": 1e-4,
}
"""Tolerances by kind of quantity, from the description of the golden cases; the unit stands beside each."""


class Comparison(NamedTuple):
    """The largest error of one quantity of a case, beside its tolerance."""

    case: str
    quantity: str
    error: float
    tolerance: float
    verdict: str = ""
    """NOT_COMPUTED or UNREADABLE if there was nothing to compare; then the quantity says why."""

    @property
    def passed(self) -> bool:
        """True if the error is within the tolerance, or nothing was to be computed."""
        # Not `not error > tolerance`, which NaN would pass.
        return self.verdict == NOT_COMPUTED or self.error <= self.tolerance


NOT_COMPUTED = "not computed"
"""Verdict on a quantity that the model, under this memory policy, never makes: neither right nor wrong."""
UNREADABLE = "UNREADABLE"
"""Verdict on a case whose content has not the form of a case."""


def not_computed(case: str, quantity: str, why: str) -> Comparison:
    """Return the row of a quantity that the model never makes."""
    return Comparison(case, f"{quantity}: {why}", 0.0, 0.0, NOT_COMPUTED)


def unreadable(case: str, error: Exception) -> Comparison:
    """Return the row of a case that can't be run."""
    return Comparison(case, f"can't be run: {described(error)}", float("inf"), 0.0, UNREADABLE)


def described(error: Exception) -> str:
    """Return an error as one line that a reader of the case understands."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return f"{type(error).__name__}: {reason(error)}"


def rows_of_cases(
    cases: Iterable[dict[str, Any]], compare: Callable[[dict[str, Any]], Iterable[Comparison]], name: str = ""
) -> list[Comparison]:
    """Return the rows of every case. A case that can't be run gives a row that fails and says why, under its own name
    or under `name` and its number; the others are compared all the same."""
    rows = []
    for number, case in enumerate(cases):
        try:
            rows += compare(case)
        except Exception as error:  # a damaged case can raise anything
            # A case that isn't even an object has no name.
            own = case.get("name") if isinstance(case, dict) else None
            rows.append(unreadable(str(own or f"{name} {number}".strip()), error))
    return rows


def largest(errors: Iterable[float]) -> float:
    """Return the largest of some errors; NaN if one is NaN, 0 if there are none."""
    # np.max keeps NaN, which Python's max drops or not, by position.
    return float(np.max(np.fromiter(errors, np.float64), initial=0.0))


def of_largest(ours: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest expected value; infinity if shapes differ."""
    if ours.shape != expected.shape:
        return float("inf")
    if not expected.size:  # max() of nothing would raise
        return 0.0
    # In float64: the difference of two float32 arrays would be rounded itself.
    difference = float(np.abs(ours.astype(np.float64) - expected).max())
    return difference / max(float(np.abs(expected).max()), 1e-12)


def difference(ours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the absolute difference of every element in float64; one infinity if shapes differ."""
    if ours.shape != expected.shape:
        return np.array([np.inf])
    return np.abs(ours.astype(np.float64) - expected)


def relative(ours: float, expected: float) -> float:
    """Return the difference of two numbers relative to the expected one."""
    return abs(ours - expected) / max(abs(expected), 1e-12)


def relative_to_value(ours: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference relative to max(1, value); infinity if shapes differ."""
    if ours.shape != expected.shape:
        return float("inf")
    return largest((np.abs(ours.astype(np.float64) - expected) / np.maximum(1.0, np.abs(expected))).ravel())


def norm(array: np.ndarray) -> float:
    """Return the L2 norm, summed in float64."""
    return float(np.linalg.norm(array.astype(np.float64)))


def mismatch(ours: object, expected: object) -> float:
    """Return 0 if two values are equal, otherwise 1."""
    return float(ours != expected)


def largest_differences(ours: dict[str, list[Detection]], expected: dict[str, list[Detection]]) -> tuple[float, float]:
    """Return the largest differences of seconds and of scores over all videos; infinity for both if the videos differ,
    or the labels of one."""
    seconds, scores = [], []
    if ours.keys() != expected.keys():
        return float("inf"), float("inf")
    for video, wanted in expected.items():
        got = ours[video]
        if sorted(item["label"] for item in got) != sorted(item["label"] for item in wanted):
            return float("inf"), float("inf")
        for one, other in pair_up(got, wanted):
            seconds += [abs(a - b) for a, b in zip(one["segment"], other["segment"], strict=True)]
            scores.append(abs(one["score"] - other["score"]))
    return largest(seconds), largest(scores)


def pair_up(ours: list[Detection], expected: list[Detection]) -> Iterator[tuple[Detection, Detection]]:
    """Yield each expected detection with the nearest of ours that has its label and isn't taken yet: the order of equal
    scores isn't defined."""
    # Greedy: equal scores are rare, and near ones are far apart beside the tolerance.
    free = list(ours)
    for other in expected:
        same = [item for item in free if item["label"] == other["label"]]
        nearest = min(same, key=lambda item: _distance(item, other))
        free.remove(nearest)
        yield nearest, other


def _distance(one: Detection, other: Detection) -> float:
    ends = sum(abs(a - b) for a, b in zip(one["segment"], other["segment"], strict=True))
    return ends + abs(one["score"] - other["score"])
