"""Samples and batches: what is in them, that ranks share them out, and that what a user can mend is said plainly."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.annotations import read_annotations
from adatad.data.dataset import (
    MAX_LISTED_MISSING,
    TrainingWindows,
    ValidationWindows,
    check_videos,
    collate,
    video_path,
)
from adatad.data.decode import VideoError, open_video
from adatad.data.loader import EpochBatches, Loader, Share
from adatad.data.resize import fit_frames
from adatad.data.rng import epoch_order, model_key
from adatad.data.windows import WindowError, sliding_windows
from adatad.spec.data_sections import DataSpec, WindowSpec

SEED = 3


@pytest.fixture
def data_spec(tiny_data) -> DataSpec:
    """Windows shorter than the videos of 14 s and more."""
    window = WindowSpec(size_grid=32, stride_frames=2, overlap=0.5)
    return DataSpec(
        annotations=str(tiny_data / "annotations.json"), videos=str(tiny_data / "videos"), window=window, size_pixels=64
    )


@pytest.fixture
def training(data_spec) -> TrainingWindows:
    return TrainingWindows(read_annotations(data_spec).train, data_spec, SEED)


def validation(spec: DataSpec, shuffle_clips: int = 0) -> ValidationWindows:
    videos = read_annotations(spec).validation
    places = [place for video in videos for place in sliding_windows(video, spec.window)]
    return ValidationWindows(places, spec, shuffle_clips)


def same(one, other) -> bool:
    tensors = all(torch.equal(one[field], other[field]) for field in range(4))
    return tensors and one.key == other.key and one.window.start_frame == other.window.start_frame


# ---- samples


def test_a_training_sample_holds_its_window(training, data_spec):
    sample = training[1, 2]
    assert sample.frames.shape == (3, 32, 64, 64)
    assert sample.frames.dtype == torch.uint8
    assert sample.window.video is training.videos[2]
    with open_video(video_path(data_spec, sample.window.video.name)) as reader:
        expected = reader.frames(sample.window.indices)
    assert torch.equal(sample.frames.permute(1, 2, 3, 0), torch.from_numpy(expected))
    assert sample.mask.tolist() == [True] * sample.window.valid_grid + [False] * (32 - sample.window.valid_grid)
    assert len(sample.segments_grid) == len(sample.labels) > 0
    assert (sample.segments_grid.dtype, sample.labels.dtype) == (torch.float32, torch.int64)
    assert sample.key == model_key(SEED, 1, 2)


def test_a_sample_depends_on_its_address_alone(training, data_spec):
    addresses = [(epoch, number) for epoch in (0, 1) for number in (0, 3)]
    forwards = {address: training[address] for address in addresses}
    again = TrainingWindows(training.videos, data_spec, SEED)
    assert all(same(again[address], forwards[address]) for address in reversed(addresses))
    assert not same(forwards[0, 0], forwards[1, 0])
    assert not same(TrainingWindows(training.videos, data_spec, SEED + 1)[0, 0], forwards[0, 0])


def test_validation_windows_come_in_order_without_segments(data_spec):
    dataset = validation(data_spec)
    assert len(dataset) > len(read_annotations(data_spec).validation)
    sample = dataset[1]
    assert sample.window.start_frame == dataset.places[1].start_grid * 2 == 32
    assert sample.segments_grid.shape == (0, 2)
    assert sample.key == 0


def test_shuffled_clips_hold_their_own_frames_in_another_order(data_spec):
    whole, shuffled = (validation(data_spec, clips)[0].frames for clips in (0, 16))
    for first in (0, 16):
        clip, mixed = (frames[:, first : first + 16].permute(1, 0, 2, 3) for frames in (whole, shuffled))
        places = [[torch.equal(frame, other) for other in clip].index(True) for frame in mixed]
        assert sorted(places) == list(range(16))
        assert places != list(range(16))
    assert torch.equal(validation(data_spec, 16)[0].frames, shuffled)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (8, 12), (12, 8), (20, 30), (5, 7)])
def test_frames_are_resized_by_their_short_side_and_cut_in_the_middle(size):
    """Two ramps, down and to the right: they stay ramps about the middle."""
    height, width = size
    ramps = np.zeros((2, height, width, 3), np.uint8)
    ramps[..., 0] = np.arange(height)[:, None] * 8
    ramps[..., 1] = np.arange(width) * 8
    frames = fit_frames(ramps, 8)
    assert frames.shape == (3, 2, 8, 8)
    assert frames.is_contiguous()
    step = 8 * min(size) / 8
    middle = slice(1, -1)
    down = (height - 1) * 4 + (np.arange(8) - 3.5) * step
    right = (width - 1) * 4 + (np.arange(8) - 3.5) * step
    # An odd number of pixels outside puts the cut half a pixel off the middle.
    off = 0.5 * step + 1.1
    np.testing.assert_allclose(frames[0, 0, middle, 4], down[middle], atol=off)
    np.testing.assert_allclose(frames[1, 1, 4, middle], right[middle], atol=off)
    assert (frames[2] == 0).all()


def test_frames_of_the_right_size_are_not_touched():
    images = np.random.default_rng(0).integers(256, size=(3, 8, 8, 3), dtype=np.uint8)
    assert torch.equal(fit_frames(images, 8).permute(1, 2, 3, 0), torch.from_numpy(images))


def test_collating(training):
    samples = [training[0, number] for number in range(3)]
    batch = collate(samples)
    assert batch.frames.shape == (3, 3, 32, 64, 64)
    assert batch.mask.shape == (3, 32)
    assert batch.keys.tolist() == [sample.key for sample in samples]
    assert [labels.tolist() for labels in batch.labels] == [sample.labels.tolist() for sample in samples]
    assert [len(segments) for segments in batch.segments_grid] == [len(sample.labels) for sample in samples]
    assert [window.video.name for window in batch.windows] == [video.name for video in training.videos[:3]]


# ---- batches


def micro_batches(count: int, share: Share, epochs: int = 2, start: tuple[int, int] = (0, 0)) -> list[list]:
    return list(EpochBatches(count, share, SEED, epochs, start))


splits = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
"""Ranks, accumulation, and windows of a micro-batch."""


@given(splits, st.integers(1, 60))
def test_ranks_and_micro_batches_share_out_each_global_batch(split, count):
    world, accumulation, micro = split
    whole = world * accumulation * micro
    expected = micro_batches(count, Share(0, 1, 1, whole))
    assert len(expected) == 2 * (count // whole)
    shares = [micro_batches(count, Share(rank, world, accumulation, whole)) for rank in range(world)]
    assert all(len(share) == len(expected) * accumulation for share in shares)
    for step, addresses in enumerate(expected):
        parts = [share[step * accumulation + number] for number in range(accumulation) for share in shares]
        assert all(len(part) == micro for part in parts)
        assert sorted(address for part in parts for address in part) == sorted(addresses)


@given(splits, st.integers(1, 60), st.data())
def test_batches_from_a_position_are_the_rest(split, count, data):
    world, accumulation, micro = split
    share = Share(data.draw(st.integers(0, world - 1)), world, accumulation, world * accumulation * micro)
    steps = count // share.global_batch
    epoch, step = data.draw(st.integers(0, 2)), data.draw(st.integers(0, steps))
    rest = micro_batches(count, share, epochs=3, start=(epoch, step))
    skipped = (epoch * steps + step) * accumulation
    assert rest == micro_batches(count, share, epochs=3)[skipped:]


def test_an_epoch_follows_its_order_and_leaves_out_the_last_partial_batch():
    addresses = [address for batch in micro_batches(10, Share(0, 1, 1, 4)) for address in batch]
    for epoch in (0, 1):
        assert [number for at, number in addresses if at == epoch] == epoch_order(SEED, epoch, 10)[:8].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_the_batches_that_were_asked_for(training, workers):
    asked = [[(0, 4), (0, 1)], [(1, 0)]]
    batches = list(Loader(training, asked, workers))
    assert [len(batch.keys) for batch in batches] == [2, 1]
    for batch, addresses in zip(batches, asked, strict=True):
        expected = collate([training[address] for address in addresses])
        assert torch.equal(batch.frames, expected.frames)
        assert torch.equal(batch.keys, expected.keys)


# ---- what goes wrong


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_video_is_named_without_a_traceback_inside_the_message(training, tmp_path, workers):
    good, broken = training.videos[:2]
    spec = training.spec.model_copy(update={"videos": str(tmp_path)})
    video_path(spec, good.name).symlink_to(video_path(training.spec, good.name))
    video_path(spec, broken.name).write_text("no video")
    batches = iter(Loader(TrainingWindows((good, broken), spec, SEED), [[(0, 0)], [(0, 0), (0, 1)]], workers))
    assert next(batches).windows[0].video.name == good.name
    with pytest.raises(VideoError) as caught:
        next(batches)
    assert str(video_path(spec, broken.name)) in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_too_short_for_its_windows_is_named(data_spec, workers):
    dataset = validation(data_spec)
    place = dataset.places[0]
    dataset.places = [dataclasses.replace(place, start_grid=10_000)]
    with pytest.raises(WindowError, match=place.video.name):
        list(Loader(dataset, [[0]], workers))


FORKED = {"with a thread": False}


def start_a_thread() -> None:
    if FORKED["with a thread"]:
        threading.Thread(target=time.sleep, args=[60], daemon=True).start()


os.register_at_fork(after_in_child=start_a_thread)


class SignalsItself(torch.utils.data.Dataset):
    """Each sample is read by a process that has just been sent a signal."""

    def __init__(self, training: TrainingWindows, number: signal.Signals):
        self.training, self.number = training, number

    def __getitem__(self, address):
        os.kill(os.getpid(), self.number)
        return self.training[address]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
def test_loader_processes_outlive_the_signals_that_stop_a_run(training, number):
    assert len(list(Loader(SignalsItself(training, number), [[(0, 0)], [(0, 1)]], workers=1))) == 2


def test_a_thread_that_torch_starts_in_a_loader_process_does_not_end_it_either(training, monkeypatch):
    """Its pool has threads where the training process computes with more than one."""
    monkeypatch.setitem(FORKED, "with a thread", True)
    assert len(list(Loader(SignalsItself(training, signal.SIGTERM), [[(0, 0)], [(0, 1)]], workers=1))) == 2
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_training_process_can_still_end_its_loaders(training):
    """Python does so when a program leaves, and waits for them."""
    batches = iter(Loader(training, [[(0, 0)]] * 10, workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=30)
    assert worker.exitcode == 0


def test_missing_videos_are_listed_at_once(training, tmp_path):
    videos, spec = training.videos, training.spec
    check_videos(spec, videos)
    elsewhere = spec.model_copy(update={"videos": str(tmp_path)})
    video_path(elsewhere, videos[0].name).symlink_to(video_path(spec, videos[0].name))
    with pytest.raises(VideoError) as caught:
        check_videos(elsewhere, videos)
    message = str(caught.value)
    assert f"{tmp_path}: 5 of 6 videos of {spec.annotations} aren't there: " in message
    assert all(f"{video.name}.mp4" in message for video in videos[1:])
    assert f"{videos[0].name}.mp4" not in message


def test_a_long_list_of_missing_videos_is_cut(training):
    many = tuple(dataclasses.replace(training.videos[0], name=f"gone{number:02}") for number in range(25))
    with pytest.raises(
        VideoError, match=f"gone{MAX_LISTED_MISSING - 1:02}.mp4 and {25 - MAX_LISTED_MISSING} more; "
    ) as caught:
        check_videos(training.spec, many)
    assert f"gone{MAX_LISTED_MISSING:02}" not in str(caught.value)
