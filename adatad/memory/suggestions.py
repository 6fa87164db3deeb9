"""Suggestions for a spec that doesn't: found by planning it again with one thing changed, not guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from adatad.memory.offload import GIB
from adatad.memory.planner import RESERVED_FRACTION, Plan, Planner
from adatad.spec.checks import cross_checks
from adatad.spec.schema import MemorySpec

MAX_HALVINGS = 4
"""Of the number of frames, that are tried."""
Change = tuple[str, dict[str, Any]]
"""In words, and as dotted keys with their values."""


class Suggestion(NamedTuple):
    """what: in words; settings: to paste, with the plan's own; plan: what fits then."""

    what: str
    settings: list[str]
    plan: Plan


def suggestions(planner: Planner, plans: list[Plan]) -> Iterator[Suggestion]:
    """Yield changes that are enough, each by itself, from the one that costs least. plans: of the spec as it is."""
    spec, machine = planner.spec, planner.machine
    if spec.memory.policy == "auto" and spec.memory.model_fields_set > {"policy"}:
        free = {"memory": MemorySpec(policy="auto")}
        if found := _first_that_fits(planner, [("the other settings of section memory left out", free)]):
            yield found._replace(settings=found.plan.settings(spec))
    fitting = [plan for plan in plans if plan.bytes <= machine.usable_bytes and not plan.fits(machine)]
    if fitting:
        least = min(fitting, key=lambda plan: plan.host_bytes)
        least = replace(least, memory=least.memory.model_copy(update={"host_limit_gib": None}))
        bound = "memory.host_limit_gib left out and " if spec.memory.host_limit_gib else ""
        what = f"{bound}{least.host_bytes / GIB:.1f} GiB of host memory for each rank"
        yield Suggestion(what, least.settings(spec), least)
    yield from filter(None, (_first_that_fits(planner, changes) for changes in _changes(planner)))


def _changes(planner: Planner) -> Iterator[list[Change]]:
    """Yield lists of changes of one kind, each from the smallest to the largest."""
    spec, patch, parallel = planner.spec, planner.costs.sizes.patch, planner.spec.parallel
    # One window at a time; the run stays the same.
    most = spec.train.global_batch // max(1, planner.machine.ranks // parallel.clip)
    if most > spec.train.accumulation and spec.model.detector.regression_weight:
        yield [("one window at a time", {"train.accumulation": most})]
    window, frames = spec.data.window, []
    for grid in (window.size_grid // 2**halving for halving in range(1, MAX_HALVINGS + 1)):
        keys = {"data.window.size_grid": grid}
        if spec.model.detector.max_length == window.size_grid:
            keys["model.detector.max_length"] = grid
        frames.append((f"windows of {grid * window.frames_per_position} frames (another result)", keys))
    yield frames
    sides = (rows * patch for rows in range(spec.data.size_pixels // patch - 2, 1, -2))
    yield [(f"frames of {pixels} pixels (another result)", {"data.size_pixels": pixels}) for pixels in sides]


def _first_that_fits(planner: Planner, changes: list[Change]) -> Suggestion | None:
    """Return the smallest change that is enough, by bisection: to plan a changed spec takes a second."""
    specs = [_changed(planner.spec, keys) for _, keys in changes]
    valid = [(change, spec) for change, spec in zip(changes, specs, strict=True) if not cross_checks(spec)]
    found, first, last = None, 0, len(valid)
    while first < last:
        middle = (first + last) // 2
        (what, keys), spec = valid[middle]
        changed = Planner(spec, planner.machine, planner.arithmetic, planner.num_classes, planner.engines)
        if plan := changed.best(changed.plans(coarse=True)):
            settings = [f"{key}={value}" for key, value in keys.items()]
            found, last = Suggestion(what, settings + plan.settings(planner.spec), plan), middle
        else:
            first = middle + 1
    return found


def _changed(section: Any, keys: dict[str, Any]) -> Any:
    """Return a section (or a whole spec) with other values at dotted keys."""
    for key, value in keys.items():
        name, _, rest = key.partition(".")
        value = _changed(getattr(section, name), {rest: value}) if rest else value
        section = section.model_copy(update={name: value})
    return section


def shortfall(planner: Planner, plans: list[Plan]) -> str:
    """Say by how much the smallest plan misses."""
    machine, least = planner.machine, planner.smallest(plans)
    if least.bytes > machine.usable_bytes:
        needed = (least.bytes + GIB) / (1 - RESERVED_FRACTION)
        text = f"the smallest plan ({least.describe()}) takes {least.bytes / GIB:.2f} GiB, "
        text += f"{(least.bytes - machine.usable_bytes) / GIB:.2f} more than the {machine.usable_bytes / GIB:.2f}"
        return f"{text} that are usable; it needs a device of {needed / GIB:.1f}"
    smallest = min((plan for plan in plans if plan.bytes <= machine.usable_bytes), key=lambda plan: plan.host_bytes)
    text = f"what fits the device takes at least {smallest.host_bytes / GIB:.2f} GiB of host memory"
    if machine.host_bytes is None or smallest.host_bytes <= machine.host_bytes:
        return f"{text}, of which memory.host_limit_gib allows {smallest.memory.host_limit_gib:g} for rows and halos"
    return f"{text}, {(smallest.host_bytes - machine.host_bytes) / GIB:.2f} more than there is"
