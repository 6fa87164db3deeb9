"""What would make a spec fit that doesn't: computed by planning it anew with one thing changed, not guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from adatad.memory.offload import GIB
from adatad.memory.planner import Plan, Planner
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
        return f"{text}{(least.bytes - machine.usable_bytes) / GIB:.2f} more than the {machine.usable_bytes / GIB:.2f}"
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
        yield Remedy("without the other settings of section memory", found.settings(spec), found)


def _host(planner: Planner, plans: list[Plan]) -> Iterator[Remedy]:
    machine = planner.machine
    fitting = [plan for plan in plans if plan.bytes <= machine.usable_bytes and not plan.fits(machine)]
    if fitting:
        least = min(fitting, key=lambda plan: plan.host_bytes)
        least = replace(least, memory=least.memory.model_copy(update={"host_limit_gib": None}))
        bound = "no bound and " if planner.spec.memory.host_limit_gib else ""
        what = f"{bound}{least.host_bytes / GIB:.1f} GiB of host memory for each rank"
        yield Remedy(what, least.settings(planner.spec), least)


def _accumulation(planner: Planner) -> Iterator[Remedy]:
    """One window at a time; the run stays the same."""
    train, most = planner.spec.train, planner.spec.train.global_batch // planner.machine.ranks
    if most > train.accumulation and planner.spec.model.detector.regression_weight:
        changed = planner.spec.model_copy(update={"train": train.model_copy(update={"accumulation": most})})
        found = _fitting(planner, changed)
        if found:
            yield Remedy("one window at a time", [f"train.accumulation={most}", *found.settings(changed)], found)


def _frames(planner: Planner) -> Iterator[Remedy]:
    """Fewer frames of a window; this changes the result."""
    data, detector = planner.spec.data, planner.spec.model.detector
    window = data.window
    for halving in range(1, HALVINGS + 1):
        grid = window.size_grid // 2**halving
        settings = {"data.window.size_grid": grid}
        model = planner.spec.model
        if detector.max_length == window.size_grid:
            settings["model.detector.max_length"] = grid
            model = model.model_copy(update={"detector": detector.model_copy(update={"max_length": grid})})
        shorter = data.model_copy(update={"window": window.model_copy(update={"size_grid": grid})})
        found = _fitting(planner, planner.spec.model_copy(update={"data": shorter, "model": model}))
        if found:
            frames = grid * window.frames_per_position
            lines = [f"{key}={value}" for key, value in settings.items()]
            yield Remedy(f"windows of {frames} frames (another result)", lines + found.settings(planner.spec), found)
            return


def _pixels(planner: Planner) -> Iterator[Remedy]:
    """Smaller frames; this changes the result."""
    data, patch = planner.spec.data, planner.units(planner.spec.train.accumulation).sizes.patch
    for rows in range(data.size_pixels // patch - 2, 1, -2):
        smaller = data.model_copy(update={"size_pixels": rows * patch})
        found = _fitting(planner, planner.spec.model_copy(update={"data": smaller}))
        if found:
            lines = [f"data.size_pixels={rows * patch}", *found.settings(planner.spec)]
            yield Remedy(f"frames of {rows * patch} pixels (another result)", lines, found)
            return


def _fitting(planner: Planner, spec: Spec) -> Plan | None:
    """The fastest of a few plans of a changed spec that fits; None also if the spec isn't a valid one."""
    if cross_checks(spec):
        return None
    changed = Planner(spec, planner.machine, planner.arithmetic, planner.num_classes, planner.engines)
    return changed.best(changed.plans(coarse=True))
