"""How cost grows with work on one machine: curves of time and memory with their slopes, each size in a fresh process.

A slope is the exponent between the two largest sizes, log(cost ratio) / log(size ratio): 1 is linear, and fixed costs
pull it down. Time is CPU time, since other work on the machine stretches any other.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from adatad.dev.benchmarks.tables import ROOT, Result, Sheet, show_sheet
from adatad.dev.benchmarks.watched import watch
from adatad.errors import UserError

PICTURE = ROOT / "docs/images/scale.png"
VIDEOS, CLASSES, INSTANCES = (20, 200, 2_000, 20_000), (5, 30, 200, 1_000), (1, 10, 100, 1_000)
FRAMES, RANKS, CROWDED = (64, 256, 1_024, 4_096), (1, 2, 4), (125, 500, 2_000)
MAX_SLOPE = 1.1
"""Exponent of growth that still counts as linear: time is measured to a few percent."""
MAX_START_SECONDS, MAX_START_GIB = 10.0, 1.0
GIB, MIB = 1 << 30, 1 << 20
SECONDS, MEMORY, SENT = "CPU seconds", "MiB", "MB sent by a rank"


@dataclass(frozen=True)
class Curve:
    """Costs by size. bar: the highest slope allowed; None where the slope is explained in docs/scale.md instead."""

    work: str
    sizes: tuple[int, ...]
    what: str
    unit: str
    costs: list[float] = field(default_factory=list)
    bar: float | None = MAX_SLOPE

    @property
    def name(self) -> str:
        """Name of the curve: what was measured, against what."""
        return f"{self.what} against {self.work}, {self.unit}"

    @property
    def costs_by_size(self) -> str:
        """Every size with its cost, as text."""
        return "  ".join(f"{size:,}: {cost:.3g}" for size, cost in zip(self.sizes, self.costs, strict=True))

    @property
    def slope(self) -> float:
        """Exponent between the two largest sizes."""
        return slope(self.sizes[-2:], self.costs[-2:])


def slope(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Return the exponent of growth between two sizes; 0 where a cost is too small to be measured."""
    if min(costs) <= 0:
        return 0.0
    return math.log(costs[1] / costs[0]) / math.log(sizes[1] / sizes[0])


def run() -> list[Result]:
    """Measure all curves; a quarter of an hour on two cores. Writes docs/images/scale.png."""
    curves: list[Curve] = []
    for measured in (videos, frames, classes, instances, ranks):
        found = measured()
        # At once: what fails later takes nothing of it away.
        rows = [(curve.name, curve.costs_by_size, f"{curve.slope:.2f}") for curve in found]
        show_sheet(Sheet(f"cost by {measured.__name__}", ("", "size: cost", "slope"), rows))
        curves += found
    draw(curves, PICTURE)
    results = [Result(f"{curve.name}: slope", curve.slope, curve.bar) for curve in curves]
    start, memory = curves[:2]
    return [
        *results,
        Result(f"start on {VIDEOS[-1]:,} videos, CPU seconds", start.costs[-1], MAX_START_SECONDS),
        Result(f"start on {VIDEOS[-1]:,} videos, GiB", memory.costs[-1] * MIB / GIB, MAX_START_GIB),
    ]


def videos() -> list[Curve]:
    """Start `adatad train` until its first step is done, and run `adatad evaluate` and `adatad data summary`."""
    # Imported here: it draws the clip.
    from adatad.dev.benchmarks.scale_data import make_videos

    commands = ("adatad train, start", "adatad evaluate", "adatad data summary")
    curves = [Curve("videos", VIDEOS, what, unit) for what in commands for unit in (SECONDS, MEMORY)]
    for size in VIDEOS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_videos(folder, size)
            measure("detections_file", size, name)
            data = [f"data.annotations={folder}/annotations.json", f"data.videos={folder}/videos"]
            spec = ["configs/demo/tia.yaml", "--set", *data]
            adatad = [sys.executable, "-m", "adatad"]
            settings = ["data.workers=0", f"run.root={folder}/runs", "train.evaluate_untrained=false"]
            # The picture of the first batch is drawn when the first step is done.
            seen = partial(_is_there, folder / "runs", "first_batch.png")
            for place, (command, until) in enumerate((
                (["train", *spec, *settings], seen),
                (["evaluate", f"{folder}/truth.json", f"{folder}/found.json"], None),
                (["data", "summary", *spec], None),
            )):  # fmt: skip
                cost = watch([*adatad, *command], until)
                curves[2 * place].costs.append(cost.cpu_seconds)
                curves[2 * place + 1].costs.append(cost.peak_bytes / MIB)
    return curves


def _is_there(folder: Path, name: str) -> bool:
    return any(folder.rglob(name))


def frames() -> list[Curve]:
    """Run training steps of the demo's model on windows of several lengths."""
    curves = []
    for policy in ("none", "block", "tile"):
        found = [measure("frames", size, policy) for size in FRAMES]
        curves += _both("frames", FRAMES, f"a step, {policy}", found)
    return curves


def classes() -> list[Curve]:
    """Run steps, NMS and mAP with several numbers of classes."""
    curves = []
    for name, what in (("step_classes", "a step"), ("map_classes", "mAP"), ("nms_classes", "NMS")):
        found = [measure(name, size) for size in CLASSES]
        curves += _both("classes", CLASSES, what, found)
    return curves


def instances() -> list[Curve]:
    """Assign targets and compute mAP with several numbers of instances a video."""
    curves = []
    for name, what in (("targets", "targets of a window"), ("map_instances", "mAP")):
        curves += _both("instances", INSTANCES, what, [measure(name, size) for size in INSTANCES])
    crowded = [measure("map_crowded", size)["seconds"] for size in CROWDED]
    what = "mAP, as many detections as instances, of one class"
    return [*curves, Curve("instances", CROWDED, what, SECONDS, crowded, bar=None)]


def ranks() -> list[Curve]:
    """Run steps under ddp, a window a rank."""
    found = [launch(world) for world in RANKS]
    memory = Curve("ranks", RANKS, "a step of a rank", MEMORY, [f["peak_bytes"] / MIB for f in found])
    # A ring sends 2 (n - 1) / n times the gradients: between 2 and 4 ranks it grows by half.
    return [memory, Curve("ranks", RANKS, "a step", SENT, [f["sent_bytes"] / 1e6 for f in found])]


def _both(work: str, sizes: tuple[int, ...], what: str, found: list[dict[str, float]]) -> list[Curve]:
    curves = [Curve(work, sizes, what, SECONDS, [f["seconds"] for f in found])]
    if "rise_bytes" in found[0]:
        curves.append(Curve(work, sizes, what, MEMORY, [f["rise_bytes"] / MIB for f in found]))
    return curves


def measure(name: str, size: int, *rest: str) -> dict[str, float]:
    """Run a measurement of `scale_measures` in a process of its own."""
    done = subprocess.run(_command(name, size, *rest), env=_environment(), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def launch(world: int) -> dict[str, float]:
    """Run the measurement of ranks in so many processes; return the first one's figures."""
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared["MASTER_PORT"] = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            _command("ranks", world), stdout=subprocess.PIPE,
            env={**_environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in processes]
    if failed := [rank for rank, process in enumerate(processes) if process.returncode]:
        raise UserError(f"ranks {failed} of {world} failed; what they said stands above")
    return json.loads(outputs[0].splitlines()[-1])


def _command(name: str, size: int, *rest: str) -> list[str]:
    return [sys.executable, "-m", "adatad.dev.benchmarks.scale_measures", name, str(size), *rest]


def _environment() -> dict[str, str]:
    # A fixed threshold, so that freed blocks go back to the system and the peak is the real one.
    return {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}


def draw(curves: list[Curve], path: Path) -> None:
    """Draw all curves, a panel for each kind of work and each unit."""
    from matplotlib.figure import Figure

    works = list(dict.fromkeys(curve.work for curve in curves))
    figure = Figure(figsize=(4 * len(works), 7), layout="constrained")
    panels = figure.subplots(2, len(works), squeeze=False)
    pick: Callable[[Curve], int] = lambda curve: 0 if curve.unit == SECONDS or curve.unit == SENT else 1  # noqa: E731
    for curve in curves:
        axes = panels[pick(curve)][works.index(curve.work)]
        positive = [(size, cost) for size, cost in zip(curve.sizes, curve.costs, strict=True) if cost > 0]
        axes.loglog(*zip(*positive, strict=True), marker="o", label=f"{curve.what} ({curve.slope:.2f})")
        axes.set(xlabel=curve.work, ylabel=curve.unit)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
