"""Suggestions for a spec that doesn't: found by planning it again with one thing changed, not guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from adatad.memory.offload import GIB
from adatad.memory.planner import RESERVED_FRACTION, Plan, Planner
from adatad.spec.checks import cross_checks
from adatad.spec.schema import MemorySpec, Spec

MAX_HALVINGS = 4
"""Of the number of frames, that are tried."""


class Suggestion(NamedTuple):
    """what: in words; settings: to paste, with the plan's own; plan: what fits then."""

    what: str
    settings: list[str]
    plan: Plan


def suggestions(planner: Planner, plans: list[Plan]) -> Iterator[Suggestion]:
    """Yield changes that are enough, each by itself, from the one that costs least. plans: of the spec as it is."""
    spec, machine = planner.spec, planner.machine
    if spec.memory.policy == "auto" and spec.memory.model_fields_set > {"policy"}:
        free = spec.model_copy(update={"memory": MemorySpec(policy="auto")})
        if found := _fitting(planner, free):
            yield Suggestion("the other settings of section memory left out", found.settings(spec), found)

    fitting = [plan for plan in plans if plan.bytes <= machine.usable_bytes and not plan.fits(machine)]
    if fitting:
        least = min(fitting, key=lambda plan: plan.host_bytes)
        least = replace(least, memory=least.memory.model_copy(update={"host_limit_gib": None}))
        bound = "memory.host_limit_gib left out and " if spec.memory.host_limit_gib else ""
        what = f"{bound}{least.host_bytes / GIB:.1f} GiB of host memory for each rank"
        yield Suggestion(what, least.settings(spec), least)

    # One window at a time; the run stays the same.
    most = spec.train.global_batch // max(1, machine.ranks // spec.parallel.clip)
    if most > spec.train.accumulation and spec.model.detector.regression_weight:
        changed = spec.model_copy(update={"train": spec.train.model_copy(update={"accumulation": most})})
        if found := _fitting(planner, changed):
            settings = [f"train.accumulation={most}", *found.settings(changed)]
            yield Suggestion("one window at a time", settings, found)

    yield from _largest_that_fits(planner, list(_with_fewer_frames(spec)))
    patch = planner.costs(spec.train.accumulation).sizes.patch
    yield from _largest_that_fits(planner, list(_with_fewer_pixels(spec, patch)))


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


Changed = tuple[str, list[str], Spec]
"""In words; settings; the spec with them."""


def _with_fewer_frames(spec: Spec) -> Iterator[Changed]:
    """Windows of fewer frames; this changes the result."""
    window, model, detector = spec.data.window, spec.model, spec.model.detector
    for grid in (window.size_grid // 2**halving for halving in range(1, MAX_HALVINGS + 1)):
        settings = [f"data.window.size_grid={grid}"]
        if detector.max_length == window.size_grid:
            settings.append(f"model.detector.max_length={grid}")
            model = model.model_copy(update={"detector": detector.model_copy(update={"max_length": grid})})
        data = spec.data.model_copy(update={"window": window.model_copy(update={"size_grid": grid})})
        what = f"windows of {grid * window.frames_per_position} frames (another result)"
        yield what, settings, spec.model_copy(update={"data": data, "model": model})


def _with_fewer_pixels(spec: Spec, patch: int) -> Iterator[Changed]:
    """Smaller frames; this changes the result."""
    for pixels in (rows * patch for rows in range(spec.data.size_pixels // patch - 2, 1, -2)):
        data = spec.data.model_copy(update={"size_pixels": pixels})
        changed = spec.model_copy(update={"data": data})
        yield f"frames of {pixels} pixels (another result)", [f"data.size_pixels={pixels}"], changed


def _largest_that_fits(planner: Planner, changed: list[Changed]) -> Iterator[Suggestion]:
    """The first that fits of specs that become smaller, by bisection: to plan one takes a second."""
    named = [entry for entry in changed if not cross_checks(entry[2])]
    found, first, last = None, 0, len(named)
    while first < last:
        middle = (first + last) // 2
        what, settings, spec = named[middle]
        if plan := _fitting(planner, spec):
            found, last = Suggestion(what, settings + plan.settings(planner.spec), plan), middle
        else:
            first = middle + 1
    if found:
        yield found


def _fitting(planner: Planner, spec: Spec) -> Plan | None:
    """The fastest of a few plans of a changed spec that fits; None also if the spec isn't a valid one."""
    if cross_checks(spec):
        return None
    changed = Planner(spec, planner.machine, planner.arithmetic, planner.num_classes, planner.engines)
    return changed.best(changed.plans(coarse=True))
