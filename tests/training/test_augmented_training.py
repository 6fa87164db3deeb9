"""Training sees augmented frames, evaluation the plain centre; on any rank, worker and micro-batch the same ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adatad.data.annotations import read_annotations
from adatad.data.augment import augment, draw_augmentation
from adatad.data.dataset import SkippedVideos, TrainingWindows
from adatad.data.resize import fit_frames, random_geometry
from adatad.data.rng import generator
from adatad.parallel.processes import start_processes
from adatad.spec import Spec, load
from adatad.training.loaders import training_loader, validation_loader
from adatad.training.resolve import resolve_run
from adatad.training.setup import initial_state
from adatad.training.step import train_step
from adatad.training.validation import detect

AUGMENT = "data.augment={crop_short_side_pixels: 40, flip: 0.5, rand_augment: true, color_jitter: {}}"


@pytest.fixture
def spec(tiny_spec) -> Spec:
    return load(tiny_spec, [AUGMENT])


def frames_that_the_model_gets(spec: Spec) -> tuple[list[Tensor], list[Tensor]]:
    """In a step of training, and in an evaluation."""
    seen = []
    with start_processes() as processes:
        run = resolve_run(spec, processes)
        parts = initial_state(run, processes)
        parts.engine.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        train_step(parts, [next(iter(training_loader(run, (0, 0))))], step=0)
        trained_on = seen.copy()
        seen.clear()
        loader = validation_loader(run)
        skipped = SkippedVideos(0, print)
        detect(parts.engine.model, loader, run, processes, skipped)
    return trained_on, seen


def test_training_applies_what_was_drawn_and_evaluation_nothing(spec, tiny_spec):
    plain = load(tiny_spec)
    (ours,), evaluated = frames_that_the_model_gets(spec)
    (unchanged,), expected = frames_that_the_model_gets(plain)
    assert ours.dtype == torch.uint8
    assert not torch.equal(ours, unchanged)
    assert len(evaluated) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(evaluated, expected, strict=True))

    with start_processes() as processes:
        batch = next(iter(training_loader(resolve_run(spec, processes), (0, 0))))
    assert all(batch.augmentations)
    assert not torch.equal(batch.frames, unchanged)
    assert not torch.equal(batch.frames, ours)
    assert torch.equal(augment(batch.frames, batch.augmentations, batch.frames.device), ours)


def test_a_training_sample_is_a_random_part(spec):
    videos = read_annotations(spec.data).train
    sample = TrainingWindows(videos, spec.data, seed=3)[1, 2]
    plain = spec.data.model_copy(update={"augment": None})
    whole = plain.model_copy(update={"size_pixels": 64})
    images = TrainingWindows(videos, whole, seed=3)[1, 2].frames.permute(1, 2, 3, 0).numpy()
    geometry = random_geometry(64, 64, 40, 32, generator(3, 1, 2, "crop"))
    assert torch.equal(sample.frames, geometry.apply(images))
    assert sample.augmentation == draw_augmentation(spec.data.augment, 3, 1, 2)
    unchanged = TrainingWindows(videos, plain, seed=3)[1, 2]
    assert unchanged.augmentation is None
    assert torch.equal(unchanged.frames, fit_frames(images, 32))


@pytest.mark.parametrize("compat", ["fixed", "reference"])
def test_compat_of_the_spec_decides_about_draws_of_the_run(spec, compat):
    spec = spec.model_copy(update={"compat": compat})
    with start_processes() as processes:
        batches = iter(training_loader(resolve_run(spec, processes), (0, 0)))
        orders = {one.jitter.order for _ in range(9) for one in next(batches).augmentations}
    assert (len(orders) == 1) == (compat == "reference")


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(spec, workers):
    videos = read_annotations(spec.data).train
    data = spec.data.model_copy(update={"workers": workers})
    with start_processes() as processes:
        loader = training_loader(resolve_run(spec.model_copy(update={"data": data}), processes), (1, 0))
        batch = next(iter(loader))
    numbers = [[video.name for video in videos].index(window.video.name) for window in batch.windows]
    dataset = TrainingWindows(videos, spec.data, spec.train.seed)
    for frames, augmentation, number in zip(batch.frames, batch.augmentations, numbers, strict=True):
        alone = dataset[1, number]
        assert torch.equal(frames, alone.frames)
        assert augmentation == alone.augmentation
