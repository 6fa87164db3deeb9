"""Cases for the pretended GPU: every mode, policy and placement, in training steps, evaluations and runs.

python -m adatad.dev.pretended.cases [CASE ...] prints the counts of the cases named, or of all, by place in the code.
"""

from __future__ import annotations

import dataclasses
import io
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.utils.data._utils.pin_memory import pin_memory

from adatad.data.annotations import Video
from adatad.data.augment import KINDS, STRENGTHS, ColorJitter, Operation, augment, draw_augmentation
from adatad.data.dataset import Batch, SkippedVideos
from adatad.data.prepare.demo import make_demo
from adatad.data.windows import Window
from adatad.dev.pretended.cuda import GPU, PretendedGpu, pretended_gpu
from adatad.dev.pretended.streams import Counts
from adatad.models.detector import build_model
from adatad.parallel.processes import Processes
from adatad.spec import Spec, load
from adatad.training.metered import random_batch
from adatad.training.resolve import resolve_model
from adatad.training.run import train
from adatad.training.setup import TrainState, build_train_state, own_clip_group
from adatad.training.step import train_step
from adatad.training.validation import detect

ROOT = Path(__file__).parents[3]
# Names that no data set has: what is counted depends on their number alone.
CLASSES = tuple(f"class {number}" for number in range(20))
CONFIG = ROOT / "configs/thumos/s_768x160_adapter.yaml"
TINY = (
    "data.window.size_grid=64 data.size_pixels=32 model.detector.width=32 model.detector.max_length=64 "
    "model.detector.stem_blocks=1 model.detector.branch_blocks=2 "
    "model.detector.regression_ranges=[[0,4],[4,8],[8,10000]] "
    "model.backbone.depth=4 model.backbone.width=96 model.backbone.heads=2 train.global_batch=2"
)
"""Windows of four clips, two a step. As few numbers as possible: what is counted doesn't depend on them."""
DEMO = (
    "data.window.size_grid=32", "data.window.stride_frames=4", "data.size_pixels=32", "data.workers=0",
    "model.backbone.width=16",
    "model.backbone.depth=2", "model.backbone.heads=2", "model.backbone.weights=random", "model.detector.width=16",
    "model.detector.max_length=32", "model.detector.branch_blocks=2", "schedule.warmup_epochs=0",
    "model.detector.regression_ranges=[[0, 4], [4, 8], [8, 10000]]", "schedule.epochs=4",
    "train.evaluate_every_epochs=1",
)  # fmt: skip
"""Overrides that make the demo's spec tiny."""
# One clip a tile and two blocks a segment: several tiles and several segments with as little work as can be.
TILE = "memory.policy=tile memory.tile_clips=1 memory.segment_blocks=2"
HOST = "memory.saved_inputs=host memory.halos=host memory.frames=host"
STATE = "memory.optimizer_state=host memory.moving_average=host"
EVERYTHING = f"{TILE} {HOST} {STATE} memory.frozen_weights=stream"
FULL = "model.backbone.mode=full optimizer.backbone.lr=1e-4"
SIDE = "model.backbone.mode=side"
RANGES = "'memory.policy=[{first: 0, last: 1, policy: block}, {first: 2, last: 3, policy: tile}]' memory.tile_clips=1"

MAX_WAITS = 2
"""Host waits of a training step on one rank, under any policy and placement."""
MAX_WAITS_OF_RANKS = 3
"""Host waits of a step on each of several ranks."""
MAX_WAITS_OF_A_WINDOW = 1
"""Host waits for the detections of one window: the next one is queued before they are looked at."""


@dataclass(frozen=True)
class PretendedCase:
    """One case. overrides: on top of TINY, or of the demo for a run; ranks: number of ranks, of which rank 0 is
    counted."""

    name: str
    overrides: str = ""
    kind: Literal["step", "augmentation", "evaluation", "run"] = "step"
    ranks: int = 1

    def spec(self) -> Spec:
        """Return the spec of a case that isn't a run."""
        return load(CONFIG, [*TINY.split(), *shlex.split(self.overrides)], check_files=False)

    @property
    def max_waits(self) -> int | None:
        """Allowed host waits; None for a run, which may wait between steps."""
        match self.kind:
            case "step":
                return MAX_WAITS if self.ranks == 1 else MAX_WAITS_OF_RANKS
            case "augmentation":
                return 0
            case "evaluation":
                return MAX_WAITS_OF_A_WINDOW
            case _:
                return None

    def faults(self, counts: Counts) -> dict[str, Counter]:
        """Return the counts that must be zero, by name. Evaluations and runs may pin memory."""
        # Faults under any circumstances: a copy that blocks, and memory that another stream still uses.
        names = {"unpinned", "races", "freed"}
        if self.kind in ("step", "augmentation"):
            names.add("pinnings")
        return {name: counter for name, counter in vars(counts).items() if name in names}


CASES = (
    PretendedCase("none", "memory.policy=none"),
    PretendedCase("selective", "memory.policy=selective"),
    PretendedCase("block", "memory.policy=block"),
    PretendedCase("tile", TILE),
    PretendedCase("tile, rebuild", f"{TILE} memory.recompute=twice"),
    PretendedCase("tile, compiled", f"{TILE} memory.compile=true"),
    PretendedCase("full, tile, compiled", f"{FULL} {TILE} memory.compile=true"),
    PretendedCase("tile, by blocks", f"{TILE} memory.order=blocks"),
    PretendedCase("ranges", RANGES),
    PretendedCase("tile, rows on the host", f"{TILE} memory.saved_inputs=host"),
    PretendedCase("tile, halos on the host", f"{TILE} memory.halos=host"),
    PretendedCase("tile, frames on the host", f"{TILE} memory.frames=host"),
    PretendedCase("tile, rows, halos, frames on the host", f"{TILE} {HOST}"),
    PretendedCase("tile, frozen weights streamed", f"{TILE} memory.frozen_weights=stream"),
    PretendedCase("block, optimizer and average on the host", f"memory.policy=block {STATE}"),
    PretendedCase("tile, everything on the host", EVERYTHING),
    PretendedCase("tile, everything on the host, rebuild", f"{EVERYTHING} memory.recompute=twice"),
    PretendedCase("tile, fp16", f"{TILE} train.precision=fp16 memory.saved_inputs=host"),
    PretendedCase("none, fp32", "memory.policy=none train.precision=fp32"),
    PretendedCase("tile, accumulation", f"{TILE} train.accumulation=2"),
    PretendedCase("tile, long window", f"{TILE} data.window.size_grid=128 model.detector.max_length=128"),
    PretendedCase("side", f"{SIDE} memory.policy=none"),
    PretendedCase("side, block", f"{SIDE} memory.policy=block"),
    PretendedCase(
        "side, tile", f"{SIDE} memory.policy=tile memory.tile_clips=1 memory.frames=host memory.frozen_weights=stream"
    ),
    PretendedCase("full", f"{FULL} memory.policy=block"),
    PretendedCase("full, tile", f"{FULL} {TILE}"),
    PretendedCase("full, tile, rows, halos, frames on the host", f"{FULL} {TILE} {HOST}"),
    PretendedCase("frozen", "model.backbone.mode=frozen optimizer.backbone=null memory.policy=none"),
    PretendedCase("frozen, tile", f"model.backbone.mode=frozen optimizer.backbone=null {TILE}"),
    PretendedCase("plain, tile", f"model.backbone.mode=plain {TILE}"),
    PretendedCase("none, two ranks", "memory.policy=none", ranks=2),
    PretendedCase("tile, two ranks", TILE, ranks=2),
    PretendedCase("block, fairscale, two ranks", "memory.policy=block parallel.engine=fairscale", ranks=2),
    PretendedCase("block, fsdp, two ranks", "memory.policy=block parallel.engine=fsdp", ranks=2),
    PretendedCase("tile, fsdp, two ranks", f"{TILE} parallel.engine=fsdp", ranks=2),
    PretendedCase("tile, two ranks share windows", f"{TILE} parallel.clip=2", ranks=2),
    PretendedCase("augmentation", kind="augmentation"),
    PretendedCase("evaluation", "memory.policy=none", kind="evaluation"),
    PretendedCase("evaluation, tile, frames on the host", f"{TILE} memory.frames=host", kind="evaluation"),
    PretendedCase("run", "memory.policy=none", kind="run"),
    PretendedCase("run, tile, everything on the host", EVERYTHING, kind="run"),
)


def case_of(name: str) -> PretendedCase:
    """Return the case of a name. Raises ValueError, which lists the names, for an unknown one."""
    for case in CASES:
        if case.name == name:
            return case
    raise ValueError(f"no case {name!r}; there are {', '.join(repr(case.name) for case in CASES)}")


def run_case(case: PretendedCase) -> Counts:
    """Run a case and return its counts; of a step, those of the second one. Raises DeviceMismatchError."""
    with pretended_gpu() as gpu:
        match case.kind:
            case "step":
                run_step(case.spec(), gpu, case.ranks)
            case "augmentation":
                run_augmentation(case.spec(), gpu)
            case "evaluation":
                run_evaluation(case.spec(), gpu)
            case "run":
                run_all(shlex.split(case.overrides), gpu)
        return gpu.counts


def run_step(spec: Spec, gpu: PretendedGpu, ranks: int = 1) -> None:
    """Count the second training step of rank 0; the first one makes the optimizer's state and pinned memory."""
    # FSDP refuses parameters that torch's C++ sees on the meta device.
    with fake_ranks(ranks) as processes, patch.object(FSDPParamGroup, "_validate_no_meta_params"):
        parts = build(spec, processes)
        # Cleared at each step, so that only the second one's counts are left.
        for step in (1, 2):
            batches = [batch_of(spec, ranks // spec.parallel.clip) for _ in range(spec.train.accumulation)]
            gpu.counts.clear()
            train_step(parts, batches, step)
            # The loop asks after each step whether any rank is to stop.
            processes.any(False)


def run_augmentation(spec: Spec, gpu: PretendedGpu) -> None:
    """Count all operations of RandAugment, each with color jitter on one window, for the second time."""
    frames = batch_of(spec).frames.to(GPU, non_blocking=True)
    drawn = draw_augmentation(spec.data.augment, 0, 0, 0)
    # All kinds of jitter in one order: draws would leave some out.
    jitter = ColorJitter(0.5, 0.5, 0.5, 0.1, (0, 1, 2, 3))
    # The first time fills caches of tables.
    for _ in range(2):
        gpu.counts.clear()
        for kind in KINDS:
            operation = Operation(kind, STRENGTHS.get(kind, 0.0))
            augment(frames[:1], [drawn._replace(flip=True, operations=(operation,), jitter=jitter)], GPU)


def run_evaluation(spec: Spec, gpu: PretendedGpu, windows: int = 1) -> None:
    """Count the detection of windows, one at a time."""
    parts = build(spec, Processes(0, 1, GPU))
    # Of one video, as windows of an evaluation come.
    batches = [batch_of(spec, windows=1, video="a") for _ in range(windows)]
    skipped = SkippedVideos(0, print)
    gpu.counts.clear()
    detect(parts.engine.model, batches, parts.run, parts.processes, skipped)


def run_all(overrides: Sequence[str], gpu: PretendedGpu) -> None:
    """Count a whole run of two epochs on four videos: evaluations, checkpoints, and its resumption after the first."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder) / "data", train_videos=4, validation_videos=1, seed=5)
        paths = [f"data.annotations={folder}/data/annotations.json", f"data.videos={folder}/data/videos"]
        # One epoch, then a second process's worth: the second call resumes.
        for end in (1, 2):
            position = [f"run.root={folder}/runs", f"schedule.end_epoch={end}"]
            spec = load(ROOT / "configs/demo/tia.yaml", [*DEMO, *paths, *position, *overrides])
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), without_pictures():
                train(spec, resume="auto")


@contextmanager
def without_pictures() -> Iterator[None]:
    """Leave out what a run draws on the host, which takes longer than everything else."""
    with (
        patch("adatad.training.run.validation_timelines", return_value=[]),
        patch("adatad.training.run.try_write_report", return_value=None),
    ):
        yield


def build(spec: Spec, processes: Processes) -> TrainState:
    """Return everything of a run on the pretended GPU, without weights from files."""
    model = build_model(spec.model, len(CLASSES))
    if processes.world > 1 and spec.parallel.engine not in ("auto", "ddp"):
        # Engines that shard expect the parameters on the device.
        model.to(processes.device)
    # Patched where it is looked up; the engine itself runs.
    with patch("adatad.parallel.ddp.DistributedDataParallel", WithoutReducer):
        run = resolve_model(spec, processes, CLASSES)
        return build_train_state(run, processes, model, own_clip_group(run, processes))


def batch_of(spec: Spec, groups: int = 1, windows: int | None = None, video: str | None = None) -> Batch:
    """Return a micro-batch as the loader gives it, in pinned memory. windows: its size; None: the share of the global
    batch of one of `groups` groups of ranks."""
    windows = windows or spec.train.global_batch // (spec.train.accumulation * groups)
    batch = random_batch(spec, windows, len(CLASSES), torch.device("cpu"))
    augmentations = [draw_augmentation(spec.data.augment, 0, 0, sample) for sample in range(windows)]
    # By torch's function for loaders, which walks the fields.
    return pin_memory(batch._replace(augmentations=augmentations, windows=windows_of(spec, windows, video)))


def windows_of(spec: Spec, count: int, video: str | None) -> list[Window]:
    """Return windows of a video without annotations; none if `video` is None."""
    if video is None:
        return []
    size, none = spec.data.window.size_grid, np.zeros((0, 2), np.float32)
    labels = np.zeros(0, np.int64)
    source = Video(video, 100.0, 30.0, 3000, none.astype(np.float64), none.astype(np.int64), labels)
    window = Window(source, 0, np.arange(size * spec.data.window.frames_per_position), size, none, labels)
    return [dataclasses.replace(window, start_frame=number * size) for number in range(count)]


@contextmanager
def fake_ranks(ranks: int) -> Iterator[Processes]:
    """Yield rank 0 of several that don't exist: in their place, torch's fake group returns rank 0's own data."""
    if ranks == 1:
        yield Processes(0, 1, GPU)
        return
    # torch's own tests have the only store for it.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield Processes(0, ranks, GPU)
    finally:
        dist.destroy_process_group()


class WithoutReducer(nn.Module):
    """DistributedDataParallel without its exchange of gradients.

    That is C++, and reads parameters' values when it is built. In a step it doesn't make the host wait.
    """

    def __init__(self, module: nn.Module, **_: object):
        super().__init__()
        self.module = module

    def forward(self, *inputs: object) -> object:
        """Run the module."""
        return self.module(*inputs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Do nothing: there is no exchange to leave out."""
        yield


def main() -> None:
    """Run the cases named on the command line, or all, and print their counts."""
    for case in [case_of(name) for name in sys.argv[1:]] or CASES:
        started = time.process_time()
        counts = run_case(case)
        totals = ", ".join(f"{counter.total()} {name}" for name, counter in vars(counts).items())
        print(f"{case.name}: {totals} ({time.process_time() - started:.1f} s)", flush=True)
        for name, counter in vars(counts).items():
            if name != "launches":
                for what, count in counter.most_common():
                    print(f"  {name} {count} {what}")


if __name__ == "__main__":
    main()
