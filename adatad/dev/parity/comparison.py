"""One comparison as a row: the largest error of a quantity, in the unit of its tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from adatad.errors import UserError
from adatad.files import reason

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
"""What the golden cases' description allows; the unit stands beside each."""


class Comparison(NamedTuple):
    case: str
    quantity: str
    error: float
    tolerance: float
    verdict: str = ""
    """NOT_COMPUTED or UNREADABLE where there was nothing to compare; then the quantity says why."""

    @property
    def passed(self) -> bool:
        # Not `error > tolerance`, which NaN would pass.
        return self.verdict == NOT_COMPUTED or self.error <= self.tolerance


NOT_COMPUTED = "not computed"
"""What a case expects and the model, as it is run, never makes: nothing is wrong, and nothing was shown."""
UNREADABLE = "UNREADABLE"
"""A case whose content is no such case."""


def not_computed(case: str, quantity: str, why: str) -> Comparison:
    return Comparison(case, f"{quantity}: {why}", 0.0, 0.0, NOT_COMPUTED)


def unreadable(case: str, error: Exception) -> Comparison:
    return Comparison(case, f"can't be run: {described(error)}", float("inf"), 0.0, UNREADABLE)


def described(error: Exception) -> str:
    """An error in one line that a reader of the case understands."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return f"{type(error).__name__}: {reason(error)}"


def rows_of_cases(
    cases: Iterable[dict[str, Any]], compare: Callable[[dict[str, Any]], Iterable[Comparison]], name: str = ""
) -> list[Comparison]:
    """The rows of every case. One that can't be run is a row that fails and says why, under its own name or `name`
    with its number; the others are compared all the same."""
    rows = []
    for number, case in enumerate(cases):
        try:
            rows += compare(case)
        except Exception as error:  # Whatever a case's content leads to: it isn't ours.
            own = case.get("name") if isinstance(case, dict) else None
            rows.append(unreadable(str(own or f"{name} {number}".strip()), error))
    return rows


def largest(errors: Iterable[float]) -> float:
    """The largest of some errors; NaN if one is, 0 of none."""
    return float(np.max(np.fromiter(errors, np.float64), initial=0.0))


def of_largest(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest expected value; infinite where shapes differ."""
    if ours.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    difference = float(np.abs(ours.astype(np.float64) - expected).max())
    return difference / max(float(np.abs(expected).max()), 1e-12)


def difference(ours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of every element; infinite where shapes differ."""
    if ours.shape != expected.shape:
        return np.array([np.inf])
    return np.abs(ours.astype(np.float64) - expected)


def relative(ours: float, expected: float) -> float:
    return abs(ours - expected) / max(abs(expected), 1e-12)


def relative_to_value(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to max(1, value)."""
    if ours.shape != expected.shape:
        return float("inf")
    return largest((np.abs(ours.astype(np.float64) - expected) / np.maximum(1.0, np.abs(expected))).ravel())


def norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64)))


def mismatch(ours: object, expected: object) -> float:
    """0 where two things are equal, otherwise 1."""
    return float(ours != expected)
