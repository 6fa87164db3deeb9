"""Runs on the pretended GPU: a training step, augmentation, an evaluation, a whole run and its resumption."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
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
from adatad.dev.pretended_gpu import GPU, PretendedGpu
from adatad.models.detector import build_model
from adatad.parallel.processes import Processes
from adatad.spec import Spec, load
from adatad.training.metered import random_batch
from adatad.training.resolve import resolve_model
from adatad.training.run import train
from adatad.training.setup import TrainState, build_train_state, own_clip_group
from adatad.training.step import train_step
from adatad.training.validation import detect

ROOT = Path(__file__).parents[2]
CLASSES = tuple(f"class {number}" for number in range(20))


def run_step(spec: Spec, gpu: PretendedGpu, ranks: int = 1) -> None:
    """Count the second training step of rank 0; the first one makes the optimizer's state and pinned memory."""
    # FSDP refuses parameters that torch's C++ sees on the meta device.
    with fake_ranks(ranks) as processes, patch.object(FSDPParamGroup, "_validate_no_meta_params"):
        parts = build(spec, processes)
        for step in (1, 2):
            batches = [batch_of(spec, ranks // spec.parallel.clip) for _ in range(spec.train.accumulation)]
            gpu.counts.clear()
            train_step(parts, batches, step)
            # As the loop asks after each step whether any rank shall stop.
            processes.any(False)


def run_augmentation(spec: Spec, gpu: PretendedGpu) -> None:
    """Count all operations of RandAugment, each with color jitter on one window, for the second time."""
    frames = batch_of(spec).frames.to(GPU, non_blocking=True)
    drawn = draw_augmentation(spec.data.augment, 0, 0, 0)
    jitter = ColorJitter(0.5, 0.5, 0.5, 0.1, (0, 1, 2, 3))
    for _ in range(2):
        gpu.counts.clear()
        for kind in KINDS:
            operation = Operation(kind, STRENGTHS.get(kind, 0.0))
            augment(frames[:1], [drawn._replace(flip=True, operations=(operation,), jitter=jitter)], GPU)


def run_evaluation(spec: Spec, gpu: PretendedGpu, windows: int = 1) -> None:
    """Count the detection of windows, one at a time."""
    parts = build(spec, Processes(0, 1, GPU))
    batches = [batch_of(spec, windows=1, video="a") for _ in range(windows)]
    skipped = SkippedVideos(0, print)
    gpu.counts.clear()
    detect(parts.engine.model, batches, parts.run, parts.processes, skipped)


def run_all(overrides: Sequence[str], gpu: PretendedGpu) -> None:
    """Count a whole run of two epochs on four videos: evaluations, checkpoints, and its resumption after the first."""
    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder) / "data", train_videos=4, validation_videos=1, seed=5)
        paths = [f"data.annotations={folder}/data/annotations.json", f"data.videos={folder}/data/videos"]
        for end in (1, 2):
            position = [f"run.root={folder}/runs", f"schedule.end_epoch={end}"]
            spec = load(ROOT / "configs/demo/tia.yaml", [*DEMO, *paths, *position, *overrides])
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), without_pictures():
                train(spec, resume="auto")


DEMO = (
    "data.window.size_grid=32", "data.window.stride_frames=4", "data.size_pixels=32", "data.workers=0",
    "model.backbone.width=16",
    "model.backbone.depth=2", "model.backbone.heads=2", "model.backbone.weights=random", "model.detector.width=16",
    "model.detector.max_length=32", "model.detector.branch_blocks=2", "schedule.warmup_epochs=0",
    "model.detector.regression_ranges=[[0, 4], [4, 8], [8, 10000]]", "schedule.epochs=4",
    "train.evaluate_every_epochs=1",
)  # fmt: skip
"""Of the demo's spec, what makes it tiny."""


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
        # Engines that shard take the parameters as they find them.
        model.to(processes.device)
    with patch("adatad.parallel.ddp.DistributedDataParallel", WithoutReducer):
        run = resolve_model(spec, processes, CLASSES)
        return build_train_state(run, processes, model, own_clip_group(run, processes))


def batch_of(spec: Spec, groups: int = 1, windows: int | None = None, video: str | None = None) -> Batch:
    """Return a micro-batch as the loader gives it, in pinned memory. windows: of it; None: what one of
    `groups` groups of ranks has of the global batch."""
    windows = windows or spec.train.global_batch // (spec.train.accumulation * groups)
    batch = random_batch(spec, windows, len(CLASSES), torch.device("cpu"))
    augmentations = [draw_augmentation(spec.data.augment, 0, 0, sample) for sample in range(windows)]
    return pin_memory(batch._replace(augmentations=augmentations, windows=windows_of(spec, windows, video)))


def windows_of(spec: Spec, count: int, video: str | None) -> list[Window]:
    """Return where windows come from, of a video without annotations; none without its name."""
    if video is None:
        return []
    size, none = spec.data.window.size_grid, np.zeros((0, 2), np.float32)
    labels = np.zeros(0, np.int64)
    source = Video(video, 100.0, 30.0, 3000, none.astype(np.float64), none.astype(np.int64), labels)
    window = Window(source, 0, np.arange(size * spec.data.window.frames_per_position), size, none, labels)
    return [dataclasses.replace(window, start_frame=number * size) for number in range(count)]


@contextmanager
def fake_ranks(ranks: int) -> Iterator[Processes]:
    """Yield rank 0 of several, of which the others aren't there: what they send is what rank 0 has."""
    if ranks == 1:
        yield Processes(0, 1, GPU)
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield Processes(0, ranks, GPU)
    finally:
        dist.destroy_process_group()


class WithoutReducer(nn.Module):
    """DistributedDataParallel without its exchange of gradients, which is C++ and wants values of parameters when it is
    made; in a step it doesn't make the host wait."""

    def __init__(self, module: nn.Module, **_: object):
        super().__init__()
        self.module = module

    def forward(self, *inputs: object) -> object:
        return self.module(*inputs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        yield
