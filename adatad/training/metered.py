"""One training step of a spec, counted byte by byte: the training code itself, on the meta device, with nothing run."""

from __future__ import annotations

import torch

from adatad.data.dataset import Batch
from adatad.memory.inputs import ahead_bytes
from adatad.memory.meta import gpu_like_meta
from adatad.memory.meter import Meter, Peak
from adatad.memory.scopes import memory_scope
from adatad.models.detector import build_model
from adatad.parallel.clip import ClipGroup, FakeClipGroup
from adatad.parallel.layout import Mesh
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.spec.sizes import clips_of_window
from adatad.training.loaders import frames_here
from adatad.training.resolve import resolve_model
from adatad.training.setup import TrainState, build_train_state
from adatad.training.step import train_step

# Tensors without values: sizes, dtypes and lifetimes are those of a real step.
META = torch.device("meta")


def step_memory(spec: Spec, num_classes: int = 20, windows: int | None = None) -> Peak:
    """Return the peak of a training step on one GPU, after a first step has made the optimizer's state.

    windows: of one micro-batch; null: all of the spec's global batch. Precision `auto` means bf16, as on a GPU.
    """
    windows = windows or spec.train.global_batch // spec.train.accumulation
    # On the CPU, as batches come from the loader.
    batch = random_batch(spec, windows, num_classes, torch.device("cpu"))
    meter = Meter("meta")
    with meter, gpu_like_meta():
        parts = metered_parts(spec, meter, num_classes)
        # torch makes AdamW's moments at the first step; the peak of any later one has them.
        make_optimizer_state(parts)
        meter.reset_peak()
        # On the device all the time; nothing is augmented here.
        ahead = torch.empty(
            ahead_bytes(spec, spec.memory, batch.frames.nbytes, windows), dtype=torch.uint8, device=META
        )
        meter.register([ahead], "frames ahead")
        # Step 1, the second: the optimizer's state is there already.
        train_step(parts, [batch] * spec.train.accumulation, step=1)
    return meter.peak


def metered_parts(spec: Spec, meter: Meter, num_classes: int) -> TrainState:
    """Return what `meta_parts` builds, counted by what it is."""
    parts = meta_parts(spec, num_classes)
    model = parts.model
    meter.register((p for p in model.parameters() if not p.requires_grad), "frozen weights")
    meter.register((p for p in model.parameters() if p.requires_grad), "trained weights")
    meter.register(model.buffers(), "buffers")
    meter.register(parts.ema.averages.values(), "moving average")
    return parts


def meta_parts(spec: Spec, num_classes: int = 20, group: ClipGroup | FakeClipGroup | None = None) -> TrainState:
    """Build a model on the meta device, its engine and its moving average. group: the ranks that share a window;
    None: those of `counted_mesh`, if the spec wants that."""
    with META:
        model = build_model(spec.model, num_classes)
    if group is None and spec.parallel.clip > 1:
        # What neighbours would send is allocated, and nothing is exchanged.
        group = FakeClipGroup(counted_mesh(spec), clips_of_window(spec.data, spec.model.backbone.clip_frames))
    processes = Processes(0, 1, META)
    return build_train_state(resolve_model(spec, processes, num_classes), processes, model, group)


def counted_mesh(spec: Spec) -> Mesh:
    """Return the mesh of a rank with the longest share, and with two neighbours if there is one."""
    # The first ranks have the longer shares, and ranks 1 to n - 2 neighbours on both sides, whose halos they keep.
    clip, clips = spec.parallel.clip, clips_of_window(spec.data, spec.model.backbone.clip_frames)
    return Mesh(data=1, clip=clip, data_rank=0, clip_rank=1 if clip > 2 and clips % clip != 1 else 0)


def make_optimizer_state(parts: TrainState) -> None:
    """Make AdamW's state as a first step leaves it."""
    for group in parts.engine.groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    with memory_scope("optimizer state"):
        parts.engine.update(max_norm=None)


def random_batch(spec: Spec, windows: int, num_classes: int, device: torch.device, here: slice | None = None) -> Batch:
    """Return windows full of valid frames of any content, with one action each. here: the frames that a rank has; None:
    those of `counted_mesh`."""
    window, side = spec.data.window, spec.data.size_pixels
    here = here or frames_here(spec, counted_mesh(spec))
    frames = here.stop - here.start
    return Batch(
        frames=torch.empty(windows, 3, frames, side, side, dtype=torch.uint8, device=device),
        mask=torch.ones(windows, window.size_grid, dtype=torch.bool),
        keys=torch.arange(windows),
        # One action: numbers of positives change nothing in the sizes of tensors.
        segments_grid=[torch.tensor([[1.0, 9.0]])] * windows,
        labels=[torch.tensor([num_classes - 1])] * windows,
        windows=[],
        augmentations=[None] * windows,
    )
