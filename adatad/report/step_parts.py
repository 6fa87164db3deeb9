"""The profile of a training step in the terminal: its dearest parts and its rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from adatad.files import shown
from adatad.printing import print_table
from adatad.training.step_profile import PROFILE

MAX_PARTS = 10
MIB = 2**20


def print_profile(content: dict[str, Any], run_directory: Path) -> None:
    """Print the dearest parts of a step, its rates, and where the files are. content: of profile.json."""
    on_device, ranks = content["times_of"] == "device", content["ranks"]
    where = f", rank {content['rank']} of {ranks}" if ranks > 1 else ""
    table = Table(
        "part of a step", "ms", "%", "calls", "MiB allocated", title=f"{shown(content['device'])}{where}",
        title_justify="left", caption=rates_line(content), caption_justify="left",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    parts = content["parts"]
    for row in parts[:MAX_PARTS]:
        table.add_row(*cells(row))
    if rest := parts[MAX_PARTS:]:
        names = ("milliseconds", "share", "calls", "allocated_bytes")
        table.add_row(*cells({"part": f"{len(rest)} more", **{name: sum(row[name] for row in rest) for name in names}}))
    print_table(table)
    seconds, profiled = content["profiled_step_seconds_by_rank"], content["profiled_step_seconds"]
    what = "of the device" if on_device else "of the CPU"
    print(f"times are {what}, of steps of {profiled:.4g} s under the profiler: {content['steps']} after "
          f"{content['warmup_steps']} to warm up")  # fmt: skip
    if ranks > 1:
        slowest = max(range(ranks), key=seconds.__getitem__)
        print(f"slowest: rank {slowest}, {seconds[slowest]:.4g} s a step; each rank has a trace of its own")
    print(f"{'table':12} {shown(run_directory / PROFILE)}")
    print(f"{'trace':12} {shown(run_directory / content['trace'])} (ui.perfetto.dev opens it)")
    if content["memory_snapshot"]:
        print(f"{'memory':12} {shown(run_directory / content['memory_snapshot'])} (pytorch.org/memory_viz opens it)")
    else:
        print(f"{'memory':12} no snapshot: PyTorch makes one of a GPU alone")
    print("the run has ended here: a profile saves no checkpoint and claims no result")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a part of profile.json as the cells of its row."""
    milliseconds, percent, mib = row["milliseconds"], 100 * row["share"], row["allocated_bytes"] / MIB
    calls = f"{row['calls']:,.1f}".removesuffix(".0")
    return row["part"], f"{milliseconds:.2f}", f"{percent:.1f}", calls, f"{mib:.1f}"


def rates_line(content: dict[str, Any]) -> str:
    """Return the rates of a step without the profiler, in words."""
    parts = [f"{content['step_seconds']:.4g} s a step without the profiler",
             f"{content['frames_per_second']:.4g} frames/s"]  # fmt: skip
    if "tflops_per_second" in content:
        parts.append(f"{content['tflops_per_second']:.3g} TFLOP/s")
    if "mfu" in content:
        parts.append(f"MFU {100 * content['mfu']:.1f} %")
    return ", ".join(parts)
