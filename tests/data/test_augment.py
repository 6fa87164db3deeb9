"""Random changes of frames: equal to Pillow and OpenCV, drawn from an address alone, the same for all frames."""

from __future__ import annotations

import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from adatad.data import augment as augment_module
from adatad.data import image_ops
from adatad.data.augment import (
    KINDS,
    OPERATIONS_PER_SAMPLE,
    SIGNED_KINDS,
    STRENGTHS,
    Augmentation,
    ColorJitter,
    Operation,
    apply_operation,
    augment,
    draw_augmentation,
    draw_operations,
    jitter_colors,
    turn_hue,
)
from adatad.spec.data_sections import AugmentSpec, ColorJitterSpec

ALL = AugmentSpec(flip=0.5, rand_augment=True, color_jitter=ColorJitterSpec())
CPU = torch.device("cpu")

PILLOW = {
    "invert": ImageOps.invert,
    "solarize": lambda image: ImageOps.solarize(image, 230),
    "posterize": lambda image: ImageOps.posterize(image, 3),
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "color": lambda image: ImageEnhance.Color(image).enhance(1.72),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.72),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.72),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.72),
}


def random_frames(frames: int, height: int, width: int, low: int = 0, high: int = 256, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (3, frames, height, width), generator=draw, dtype=torch.uint8)


# ---- operations


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 255), st.integers(1, 256), st.integers(0, 9))
@pytest.mark.parametrize("kind", PILLOW)
def test_operations_on_colors_are_those_of_pillow(kind, height, width, low, span, seed):
    frames = random_frames(2, height, width, low, min(low + span, 256), seed)
    ours = apply_operation(frames, Operation(kind, STRENGTHS.get(kind, 0.0)))
    for number in range(2):
        theirs = PILLOW[kind](Image.fromarray(frames[:, number].permute(1, 2, 0).numpy()))
        np.testing.assert_array_equal(ours[:, number].permute(1, 2, 0), np.asarray(theirs))


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 2.77])
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_factors_of_any_size_are_those_of_pillow(name, factor):
    frames = random_frames(1, 24, 31)
    ours = getattr(image_ops, f"adjust_{name.lower()}")(frames, factor)
    theirs = getattr(ImageEnhance, name)(Image.fromarray(frames[:, 0].permute(1, 2, 0).numpy())).enhance(factor)
    np.testing.assert_array_equal(ours[:, 0].permute(1, 2, 0), np.asarray(theirs))


def spot(x: int, y: int) -> Tensor:
    frames = torch.zeros(3, 1, 41, 61, dtype=torch.uint8)
    frames[:, :, y, x] = 200
    return frames


@pytest.mark.parametrize(
    ("move", "to"),
    [
        (lambda frames: image_ops.shear_x(frames, 45.0), (35, 30)),
        (lambda frames: image_ops.shear_x(frames, -45.0), (55, 30)),
        (lambda frames: image_ops.shear_y(frames, math.degrees(math.atan(0.2))), (45, 33)),
        (lambda frames: image_ops.shear_y(frames, -math.degrees(math.atan(0.2))), (45, 27)),
        (lambda frames: image_ops.translate_x(frames, 10 / 61), (55, 30)),
        (lambda frames: image_ops.translate_x(frames, -10 / 61), (35, 30)),
        (lambda frames: image_ops.translate_y(frames, 7 / 41), (45, 37)),
        (lambda frames: image_ops.translate_y(frames, -7 / 41), (45, 23)),
        (lambda frames: image_ops.rotate(frames, 90.0), (20, 35)),
        (lambda frames: image_ops.rotate(frames, -90.0), (40, 5)),
    ],
)
def test_where_a_point_goes(move, to):
    """A point 15 right of the centre and 10 below."""
    x, y = to
    moved = move(spot(45, 30))[0, 0]
    assert moved[y, x] > 195
    assert moved.long().sum() < 210


def test_what_comes_in_is_black_and_the_rest_stays():
    frames = torch.full((3, 2, 20, 20), 90, dtype=torch.uint8)
    moved = image_ops.translate_x(frames, 0.25)
    assert (moved[..., :5] == 0).all()
    assert (moved[..., 5:] == 90).all()
    assert torch.equal(image_ops.rotate(frames, 0.0), frames)


def test_a_square_is_hidden():
    frames = torch.zeros(3, 2, 50, 100, dtype=torch.uint8)
    hidden = image_ops.cut_out(frames, 0.2, (0.5, 0.5))
    assert (hidden[:, :, 20:30, 45:55] == 128).all()
    assert (hidden > 0).sum() == 3 * 2 * 100
    corner = image_ops.cut_out(frames, 0.2, (0.0, 1.0))
    assert (corner[:, :, 45:, :5] == 128).all()
    assert (corner > 0).sum() == 3 * 2 * 25


def test_hue_is_turned_as_by_opencv():
    """Written down from OpenCV 5.0.0, which rounds only the last columns of a row, those after whole 32."""
    colors = torch.tensor([[10, 200, 30], [255, 255, 255], [0, 0, 0], [90, 17, 230], [120, 119, 121]])
    frames = colors.repeat(7, 1)[:33].T.reshape(3, 1, 1, 33).to(torch.uint8)
    turned = turn_hue(frames, 25)[:, 0, 0].T.tolist()
    assert turned[:5] == [[10, 200, 187], [255, 255, 255], [0, 0, 0], [230, 17, 194], [121, 119, 120]]
    few_columns = turn_hue(frames[..., :5], 25)[:, 0, 0].T.tolist()
    assert few_columns == [*turned[:3], [230, 17, 195], turned[4]]


@given(st.integers(0, 100), st.permutations(range(4)))
def test_jitter_that_changes_nothing(seed, order):
    frames = random_frames(1, 6, 7, seed=seed)
    ours = jitter_colors(frames, ColorJitter(1.0, 1.0, 1.0, 0.0, tuple(order)))
    # A hue is a whole number of 2 degrees: up to a sixtieth of 255 levels away, and the other steps round by one each.
    assert (ours.int() - frames.int()).abs().max() <= 255 / 60 + 2


def test_the_order_of_jitter_counts():
    frames = random_frames(1, 16, 16)
    results = [jitter_colors(frames, ColorJitter(1.4, 0.6, 1.4, 0.05, order)) for order in ((0, 1, 2, 3), (3, 2, 1, 0))]
    assert not torch.equal(*results)


# ---- draws


@given(st.integers(0, 2**31), st.integers(0, 100), st.integers(0, 10**6), st.booleans())
def test_an_augmentation_depends_on_its_address_alone(seed, epoch, sample, reference):
    one = draw_augmentation(ALL, seed, epoch, sample, reference)
    np.random.default_rng(1).random()
    torch.rand(3)
    assert draw_augmentation(ALL, seed, epoch, sample, reference) == one
    assert pickle.loads(pickle.dumps(one)) == one
    others = [(seed + 1, epoch, sample), (seed, epoch + 1, sample), (seed, epoch, sample + 1)]
    assert one not in [draw_augmentation(ALL, *other, reference) for other in others]


def test_what_is_off_does_not_change_what_is_on():
    """Each part has draws of its own."""
    whole = draw_augmentation(ALL, 1, 2, 3)
    jitter = draw_augmentation(AugmentSpec(color_jitter=ColorJitterSpec()), 1, 2, 3)
    assert jitter == Augmentation(False, (), whole.jitter)
    assert draw_augmentation(AugmentSpec(), 1, 2, 3) == Augmentation(False, (), None)


def test_two_of_fifteen_operations_in_the_order_of_the_list():
    samples = [draw_operations(0, 0, sample, draw_once_per_run=False) for sample in range(1500)]
    for operations in samples:
        numbers = [KINDS.index(operation.kind) for operation in operations]
        assert len(numbers) == OPERATIONS_PER_SAMPLE
        assert numbers == sorted(set(numbers))
    counts = Counter(operation.kind for operations in samples for operation in operations)
    assert len(counts) == 15
    assert all(130 < count < 270 for count in counts.values())
    centers = np.array([o.center for operations in samples for o in operations if o.kind == "cut_out"])
    assert centers.min() < 0.05
    assert centers.max() > 0.95


def signs(reference: bool, seed: int = 0) -> dict[str, set[float]]:
    found: dict[str, set[float]] = {kind: set() for kind in SIGNED_KINDS}
    for sample in range(200):
        for operation in draw_operations(seed, sample % 3, sample, reference):
            assert abs(operation.strength) == STRENGTHS.get(operation.kind, 0.0)
            if operation.kind in SIGNED_KINDS:
                found[operation.kind].add(math.copysign(1.0, operation.strength))
            else:
                assert operation.strength >= 0
    return found


def test_signs_are_drawn_for_a_sample_or_in_the_reference_for_a_run():
    assert all(both == {1.0, -1.0} for both in signs(reference=False).values())
    runs = [signs(reference=True, seed=seed) for seed in range(6)]
    assert all(len(one) == 1 for run in runs for one in run.values())
    assert len({str(run) for run in runs}) > 1


def test_the_order_of_jitter_is_drawn_for_a_sample_or_in_the_reference_for_a_run():
    def orders(reference: bool, seed: int = 0) -> set[tuple[int, ...]]:
        addresses = [(seed, sample % 3, sample) for sample in range(100)]
        return {draw_augmentation(ALL, *address, reference).jitter.order for address in addresses}

    assert len(orders(reference=False)) > 15
    assert all(len(orders(True, seed)) == 1 for seed in range(6))
    assert len(set.union(*(orders(True, seed) for seed in range(6)))) > 1


def test_factors_stay_in_their_ranges():
    spec = AugmentSpec(flip=1.0, color_jitter=ColorJitterSpec(brightness=0.5, contrast=0.2, saturation=1.5, hue=0.1))
    drawn = [draw_augmentation(spec, 0, 0, sample) for sample in range(500)]
    assert all(augmentation.flip for augmentation in drawn)
    ranges = {"brightness": (0.5, 1.5), "contrast": (0.8, 1.2), "saturation": (0.0, 2.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        values = np.array([getattr(augmentation.jitter, name) for augmentation in drawn])
        margin = 0.02 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high


def test_about_half_are_flipped():
    flips = [draw_augmentation(ALL, 0, 0, sample).flip for sample in range(1000)]
    assert 430 < sum(flips) < 570


# ---- on batches


def drawn(count: int) -> list[Augmentation]:
    return [draw_augmentation(ALL, 5, 0, sample) for sample in range(count)]


def test_all_frames_of_a_sample_are_changed_alike():
    """The same image twelve times stays twelve times the same."""
    for augmentation in drawn(40):
        frames = random_frames(1, 20, 33).repeat(1, 12, 1, 1)
        changed = augment(frames[None], [augmentation], CPU)[0]
        assert (changed == changed[:, :1]).all()


def test_a_batch_is_changed_as_its_samples_one_by_one(monkeypatch):
    batch = torch.stack([random_frames(7, 20, 33, seed=seed) for seed in range(30)])
    augmentations = [*drawn(29), None]
    expected = [augment(frames[None].clone(), [one], CPU)[0] for frames, one in zip(batch, augmentations, strict=True)]
    assert torch.equal(expected[-1], batch[-1])
    # Two frames of 33 x 20 at a time.
    monkeypatch.setattr(augment_module, "CHUNK_VALUES", 2 * 3 * 33 * 20)
    result = augment(batch, augmentations, CPU)
    assert result is batch
    assert torch.equal(batch, torch.stack(expected))


def test_flip_comes_first():
    frames = random_frames(2, 9, 12)
    moves = Augmentation(True, (Operation("translate_x", 0.25),), None)
    expected = image_ops.translate_x(frames.flip(3), 0.25)
    assert torch.equal(augment(frames.clone()[None], [moves], CPU)[0], expected)


def test_operations_come_before_jitter():
    frames, jitter = random_frames(2, 9, 12), ColorJitter(1.5, 0.7, 1.2, 0.1, (2, 0, 3, 1))
    both = augment(frames.clone()[None], [Augmentation(False, (Operation("invert"),), jitter)], CPU)[0]
    assert torch.equal(both, jitter_colors(255 - frames, jitter))


def test_what_changes_nothing_moves_no_frames():
    frames = random_frames(2, 8, 8)
    nothing = Augmentation(flip=False, operations=(), jitter=None)
    # Nothing comes back from this device: a frame that went there would be missed.
    nowhere = torch.device("meta")
    assert torch.equal(augment(frames[None].clone(), [nothing], nowhere)[0], frames)
    with pytest.raises(NotImplementedError):
        augment(frames[None].clone(), [nothing._replace(flip=True)], nowhere)
