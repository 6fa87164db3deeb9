"""Report of a step that ran out of memory: what was being done, what filled it, and what to set."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from adatad.errors import UserError
from adatad.memory.offload import GIB
from adatad.memory.planner import Plan
from adatad.memory.scopes import scope_path_of
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.training.plan import planner_for, this_rank
from adatad.training.run_directory import RunDirectory

MAX_CATEGORIES = 5
"""Kinds of memory that the message names."""


class OutOfMemoryError(UserError):
    """Memory ran out in training; the message says in what, what took most, and what to set."""


ALLOCATION_MESSAGES = (
    "DefaultCPUAllocator", "CUDA error: out of memory", "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""Words with which the CPU's allocator, the driver, cuBLAS and cuDNN (for their workspaces) say it, in an ordinary
RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory of a device or of the host ran out."""
    # torch has its own class for its GPU allocator alone; other libraries' failures come as plain RuntimeErrors.
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in ALLOCATION_MESSAGES)
    return said or isinstance(error, torch.OutOfMemoryError)


def snapshot_when_full(run: RunDirectory, processes: Processes) -> None:
    """Have the allocator of a GPU write its state at the moment it runs out, before anything is freed.

    The file is for https://pytorch.org/memory_viz. Where torch can't do it, `explain` writes a summary instead.
    """
    if processes.device.type != "cuda":
        return

    def write(*_: Any) -> None:
        """Write the snapshot; an error must not take the place of the one about memory."""
        with suppress(Exception):
            # Private, as is the hook below: a torch that renames them costs the file, and not the message.
            torch.cuda.memory._dump_snapshot(str(run.path / f"out_of_memory_rank{processes.rank}.pickle"))

    with suppress(Exception):
        torch._C._cuda_attach_out_of_memory_observer(write)


def explain(error: BaseException, spec: Spec, processes: Processes, num_classes: int, run: RunDirectory) -> str:
    """Return the message for the user; leaves a file beside it in the run's directory."""
    # Asks no other rank: they may be anywhere.
    planner = planner_for(spec, processes, this_rank(processes, empty=False), num_classes)
    own, plans = planner.own(), planner.plans(coarse=True)
    if own is not None and planner.machine.host_bytes is not None:
        # What this run has there is free for the next.
        planner.machine = replace(planner.machine, host_bytes=planner.machine.host_bytes + own.host_bytes)
    smaller = None if own is None else planner.smaller(plans, own)
    lines = [f"out of memory: {str(error).splitlines()[0]}"]
    if scope_path_of(error):
        lines.append(f"  in: {scope_path_of(error)}")
    if own is not None:
        largest = [f"{name} {size / GIB:.2f}" for name, size in list(own.categories.items())[:MAX_CATEGORIES]]
        lines.append(f"  by the planner's estimate the step takes {own.bytes / GIB:.2f} GiB at its fullest moment "
                     f"({own.moment}): {', '.join(largest)}")  # fmt: skip
    if own is None and plans:
        smaller = planner.best(plans)
    if smaller is None:
        lines.append("  no smaller plan is known: fewer windows (train.accumulation), frames or pixels, or a smaller "
                     "backbone; see docs/out-of-memory.md")  # fmt: skip
    else:
        host = f" and {smaller.host_bytes / GIB:.2f} on the host" if smaller.host_bytes else ""
        lines.append(f"  smaller: {smaller.describe()}, {smaller.bytes / GIB:.2f} GiB{host}; set")
        lines.append(f"    {shlex.join(['--set', *smaller.settings(spec)])}")
    lines.append(f"  details: {write_details(error, own, processes, run)}")
    return "\n".join(lines)


def write_details(error: BaseException, own: Plan | None, processes: Processes, run: RunDirectory) -> str:
    """Return the path of the allocator's snapshot if there is one, else of a JSON file: categories of the plan, and a
    GPU's statistics."""
    snapshot = run.path / f"out_of_memory_rank{processes.rank}.pickle"
    if snapshot.exists():
        return str(snapshot)
    name = f"out_of_memory_rank{processes.rank}.json"
    content: dict[str, Any] = {"error": str(error), "place": scope_path_of(error)}
    if own is not None:
        content |= {"planned_bytes": own.categories, "moment": own.moment}
    if processes.device.type == "cuda":
        content["memory_stats"] = torch.cuda.memory_stats(processes.device)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_text(name, json.dumps(content, indent=1))
    return str(run.path / name)
