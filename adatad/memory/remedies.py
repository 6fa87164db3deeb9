"""What would make a spec fit that doesn't: computed by planning it anew with one thing changed, not guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from adatad.memory.offload import GIB
from adatad.memory.planner import Plan, Planner, size_for
from adatad.spec.checks import cross_checks
from adatad.spec.schema import MemorySpec, Spec

HALVINGS = 4
"""Of the number of frames that are tried."""


class Remedy(NamedTuple):
    """what: in words; settings: to paste, beside the plan's own; plan: that fits then."""

    what: str
    settings: list[str]
    plan: Plan


def remedies(planner: Planner, plans: list[Plan]) -> list[Remedy]:
    """Each by itself enough, from the one that costs least. plans: of the spec as it is."""
    tried = (_free(planner), _host(planner, plans), _accumulation(planner), _frames(planner), _pixels(planner))
    return [remedy for remedies in tried for remedy in remedies]


def shortfall(planner: Planner, plans: list[Plan]) -> str:
    """By how much the smallest plan misses."""
    machine, least = planner.machine, planner.smallest(plans)
    if least.bytes > machine.usable_bytes:
        text = f"the smallest plan ({least.describe()}) takes {least.bytes / GIB:.2f} GiB, "
        text += f"{(least.bytes - machine.usable_bytes) / GIB:.2f} more than the {machine.usable_bytes / GIB:.2f}"
        return f"{text} that are usable; it wants a device of {size_for(least.bytes) / GIB:.1f}"
    smallest = min((plan for plan in plans if plan.bytes <= machine.usable_bytes), key=lambda plan: plan.host_bytes)
    text = f"what fits the device takes at least {smallest.host_bytes / GIB:.2f} GiB of host memory"
    if machine.host_bytes is None or smallest.host_bytes <= machine.host_bytes:
        return f"{text}, of which memory.host_limit_gib allows {smallest.memory.host_limit_gib:g} for rows and halos"
    return f"{text}, {(smallest.host_bytes - machine.host_bytes) / GIB:.2f} more than there is"


def _free(planner: Planner) -> Iterator[Remedy]:
    """Without what the spec says beside `auto`."""
    spec = planner.spec
    if spec.memory.policy != "auto" or spec.memory.model_fields_set <= {"policy"}:
        return
    free = spec.model_copy(update={"memory": MemorySpec(policy="auto")})
    found = _fitting(planner, free)
    if found:
        yield Remedy("the other settings of section memory left out", found.settings(spec), found)


def _host(planner: Planner, plans: list[Plan]) -> Iterator[Remedy]:
    machine = planner.machine
    fitting = [plan for plan in plans if plan.bytes <= machine.usable_bytes and not plan.fits(machine)]
    if fitting:
        least = min(fitting, key=lambda plan: plan.host_bytes)
        least = replace(least, memory=least.memory.model_copy(update={"host_limit_gib": None}))
        bound = "memory.host_limit_gib left out and " if planner.spec.memory.host_limit_gib else ""
        what = f"{bound}{least.host_bytes / GIB:.1f} GiB of host memory for each rank"
        yield Remedy(what, least.settings(planner.spec), least)


def _accumulation(planner: Planner) -> Iterator[Remedy]:
    """One window at a time; the run stays the same."""
    train, groups = planner.spec.train, max(1, planner.machine.ranks // planner.spec.parallel.clip)
    most = train.global_batch // groups
    if most > train.accumulation and planner.spec.model.detector.regression_weight:
        changed = planner.spec.model_copy(update={"train": train.model_copy(update={"accumulation": most})})
        found = _fitting(planner, changed)
        if found:
            yield Remedy("one window at a time", [f"train.accumulation={most}", *found.settings(changed)], found)


def _frames(planner: Planner) -> Iterator[Remedy]:
    """Fewer frames of a window; this changes the result."""
    spec = planner.spec
    window, model, detector = spec.data.window, spec.model, spec.model.detector
    changed = {}
    for grid in (window.size_grid // 2**halving for halving in range(1, HALVINGS + 1)):
        lines = [f"data.window.size_grid={grid}"]
        if detector.max_length == window.size_grid:
            lines.append(f"model.detector.max_length={grid}")
            model = model.model_copy(update={"detector": detector.model_copy(update={"max_length": grid})})
        data = spec.data.model_copy(update={"window": window.model_copy(update={"size_grid": grid})})
        what = f"windows of {grid * window.frames_per_position} frames (another result)"
        changed[what] = lines, spec.model_copy(update={"data": data, "model": model})
    yield from _largest(planner, changed)


def _pixels(planner: Planner) -> Iterator[Remedy]:
    """Smaller frames; this changes the result."""
    spec, patch = planner.spec, planner.units(planner.spec.train.accumulation).sizes.patch
    changed = {}
    for pixels in (rows * patch for rows in range(spec.data.size_pixels // patch - 2, 1, -2)):
        data = spec.data.model_copy(update={"size_pixels": pixels})
        what = f"frames of {pixels} pixels (another result)"
        changed[what] = [f"data.size_pixels={pixels}"], spec.model_copy(update={"data": data})
    yield from _largest(planner, changed)


def _largest(planner: Planner, changed: dict[str, tuple[list[str], Spec]]) -> Iterator[Remedy]:
    """The first that fits of specs that become smaller, by halving: to plan one takes a second."""
    named = [(what, lines, spec) for what, (lines, spec) in changed.items() if not cross_checks(spec)]
    found, first, last = None, 0, len(named)
    while first < last:
        middle = (first + last) // 2
        what, lines, spec = named[middle]
        plan = _fitting(planner, spec)
        if plan:
            found, last = Remedy(what, lines + plan.settings(planner.spec), plan), middle
        else:
            first = middle + 1
    if found:
        yield found


def _fitting(planner: Planner, spec: Spec) -> Plan | None:
    """The fastest of a few plans of a changed spec that fits; None also if the spec isn't a valid one."""
    if cross_checks(spec):
        return None
    changed = Planner(spec, planner.machine, planner.arithmetic, planner.num_classes, planner.engines, planner.scale)
    return changed.best(changed.plans(coarse=True))
