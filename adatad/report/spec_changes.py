"""Keys of the spec in which runs differ, and what that makes of them: the same experiment, another seed, or others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from adatad.spec import Spec

MISSING = "-"
"""Text of a key that a spec doesn't have, as its section is null or its list is shorter."""
# Where a run lives says nothing about it, and a name is one for the same keys.
LEFT_OUT = ("run.",)
SEED = "train.seed"


class Change(NamedTuple):
    """A key of the spec whose values differ. values: one a spec, as text."""

    key: str
    values: list[str]


def changes(specs: Sequence[Spec]) -> list[Change]:
    """Return the keys in which the specs differ, in the order of the spec."""
    flat = [_flat(spec.model_dump(mode="json")) for spec in specs]
    # In the order of the first; keys of the others stand at the end of what is alike before them.
    keys = list(dict.fromkeys(key for values in flat for key in values))
    found = []
    for key in keys:
        values = [_text(own[key]) if key in own else MISSING for own in flat]
        if len(set(values)) > 1 and not key.startswith(LEFT_OUT):
            found.append(Change(key, values))
    return found


def relation(first: Spec, other: Spec) -> str:
    """Return how a spec differs from the first one, in words."""
    keys = {change.key for change in changes([first, other])} - {"name"}
    if not keys:
        return "same spec and seed"
    if keys == {SEED}:
        return "same spec, other seed"
    seed = ", other seed" if SEED in keys else ""
    count = len(keys - {SEED})
    return f"{count} key{'s' * (count != 1)} of the spec differ{'s' * (count == 1)}{seed}"


def _flat(values: Any, at: str = "") -> dict[str, Any]:
    """Return values by their whole key, such as optimizer.backbone.custom.0.lr; empty sections as they are."""
    if isinstance(values, list) and any(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if not isinstance(values, Mapping) or not values:
        return {at: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{at}.{key}" if at else str(key))
    return flat


def _text(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    # 1 and 1.0 equal True: they aren't meant here.
    return value is None or isinstance(value, bool)
