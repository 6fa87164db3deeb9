"""Frames that are augmented ahead: only where there is room, counted, in order, and with the same bits."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from adatad.data.augment import (
    CHUNK_VALUES,
    KINDS,
    STRENGTHS,
    Augmentation,
    ColorJitter,
    Operation,
    augment,
    work_bytes,
)
from adatad.memory.inputs import FramesAhead
from adatad.memory.meter import Meter
from adatad.memory.planner import GIB, Machine, Planner
from adatad.spec import load
from adatad.training.metered import random_batch

CONFIG = "configs/thumos/s_768x160_adapter.yaml"
TINY = ["data.window.size_grid=32", "data.size_pixels=16", "model.detector.max_length=32"]
CPU = torch.device("cpu")
JITTER = ColorJitter(1.1, 0.9, 1.2, 0.05, (3, 1, 0, 2))


@pytest.mark.parametrize(
    ("overrides", "counted"),
    [
        (["memory.policy=none"], True),
        (["memory.policy=selective"], True),
        (["memory.policy=block"], False),
        (["memory.policy=tile"], False),
        (["memory.policy=tile", "memory.frames=host"], False),
        (["memory.policy=none", "data.augment=null"], False),
        (["memory.policy=none", "model.backbone.mode=full", "optimizer.backbone.lr=1e-5"], False),
        (["memory.policy=none", "data.augment={crop_short_side_pixels: 182, flip: 0}"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_planner_counts_frames_ahead_where_a_gpu_has_them(overrides, counted):
    spec = load(CONFIG, [*TINY, *overrides], check_files=False)
    frames, windows = random_batch(spec, 2, 20, CPU).frames.nbytes, spec.train.global_batch
    wanted = frames + work_bytes(frames // windows) if counted else 0
    planned = {}
    for shared in (False, True):
        planner = Planner(spec, Machine(1000.0 * GIB, shared=shared), torch.bfloat16)
        planned[shared] = planner.own().categories.get("frames ahead", 0)
    assert planned == {False: wanted, True: 0}
    assert not FramesAhead(spec, CPU).active


def test_temporaries_of_any_augmentation_are_as_large_as_is_counted():
    largest, side = 0, 160
    count = CHUNK_VALUES // (3 * side * side)
    for kind in KINDS:
        augmentation = Augmentation(True, (Operation(kind, STRENGTHS.get(kind, 0.0)),), JITTER)
        with Meter("meta") as meter:
            frames = torch.empty(1, 3, 2 * count, side, side, dtype=torch.uint8, device="meta")
            augment(frames, [augmentation], torch.device("meta"))
        largest = max(largest, meter.peak.bytes - frames.nbytes)
    assert 0.9 * work_bytes(frames.numel()) < largest <= work_bytes(frames.numel())


class Stream:
    """Does everything at once, and remembers for what it would have waited."""

    def __init__(self, log: list[str], name: str):
        self.log, self.name = log, name

    def record_event(self) -> str:
        self.log.append(f"{self.name} records")
        return self.name

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")


@pytest.fixture
def ahead(monkeypatch):
    """Prepare batches as on a GPU, with frames in host memory."""
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(log, "computing"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    ahead = FramesAhead(load(CONFIG, TINY, check_files=False), CPU)
    ahead.active, ahead._stream, ahead.log = True, Stream(log, "second"), log
    return ahead


def batches(spec, count: int):
    draw = torch.Generator().manual_seed(0)
    for number in range(count):
        batch = random_batch(spec, 1, 20, CPU)
        frames = torch.randint(0, 256, batch.frames.shape, dtype=torch.uint8, generator=draw)
        operation = Operation(KINDS[number], STRENGTHS.get(KINDS[number], 0.0))
        yield batch._replace(frames=frames, augmentations=[Augmentation(number % 2 == 0, (operation,), JITTER)])


def test_frames_ahead_are_those_of_their_batch_with_the_same_bits(ahead):
    wanted = [augment(batch.frames, batch.augmentations, CPU) for batch in batches(ahead.spec, 6)]
    following, found = ahead.wrap_batches(batches(ahead.spec, 6)), []
    for _ in range(3):
        # A step of two micro-batches.
        first, second = next(following), next(following)
        for batch, then in ((first, second), (second, None)):
            # The next frames take the place of these.
            found.append(ahead.take(batch).clone())
            ahead.forward_queued(then)
        ahead.prefetch_next_step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    with pytest.raises(StopIteration):
        next(following)
    # Of five micro-batches that came ahead, each is waited for, and begun only when the one before has been read.
    assert ahead.log.count("computing waits for second") == 5
    assert ahead.log.count("second waits for computing") == 5
    assert "second waits for second" not in ahead.log


def test_an_error_of_the_loader_belongs_to_the_next_step(ahead):
    def failing():
        yield from batches(ahead.spec, 1)
        raise OSError("a video")

    following = ahead.wrap_batches(failing())
    ahead.take(next(following))
    ahead.forward_queued()
    ahead.prefetch_next_step()
    assert ahead.waited_seconds > 0
    with pytest.raises(OSError, match="a video"):
        next(following)
