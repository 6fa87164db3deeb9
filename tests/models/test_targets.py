"""Targets against their definition, written out point by point."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.models.actionformer import ActionFormer
from adatad.models.losses import assign_targets
from adatad.spec.model_sections import DetectorSpec

SPEC = DetectorSpec(
    width=8, heads=2, branch_blocks=2, max_length=32, regression_ranges=((0, 4), (4, 8), (8, 10000))
)  # fmt: skip
CLASSES = 3


def assign(spec, segments, labels, valid=32):
    former = ActionFormer(spec, 4, CLASSES)
    mask = torch.arange(32)[None] < valid
    targets = assign_targets(
        former.points(32), former.level_masks(mask), [torch.tensor(segments, dtype=torch.float32).reshape(-1, 2)],
        [torch.tensor(labels, dtype=torch.int64)], CLASSES, spec,
    )  # fmt: skip
    return torch.cat(former.points(32)).tolist(), targets


def by_definition(point, segments, labels, spec):
    """(classes of a point, its offsets) or (empty, None)."""
    position, low, high, stride = point
    fitting = []
    for (start, end), label in zip(segments, labels, strict=True):
        left, right = position - start, end - position
        inner = (left, right)
        if spec.center_sampling == "radius":
            centre, reach = (start + end) / 2, spec.center_radius * stride
            inner = (position - max(centre - reach, start), min(centre + reach, end) - position)
        if min(inner) > 0 and low <= max(left, right) <= high:
            fitting.append((end - start, label, (left / stride, right / stride)))
    if not fitting:
        return set(), None
    shortest = min(length for length, *_ in fitting)
    chosen = [f for f in fitting if f[0] <= shortest + 1e-3] if spec.similar_segments_only else fitting
    return {label for _, label, _ in chosen}, next(o for length, _, o in fitting if length == shortest)


quarters = st.integers(0, 128).map(lambda n: n / 4)
items = st.lists(st.tuples(quarters, st.integers(1, 80).map(lambda n: n / 4), st.integers(0, CLASSES - 1)), max_size=5)


@given(items, st.sampled_from(["radius", "none"]), st.booleans(), st.booleans())
def test_targets_are_their_definition(items, sampling, similar, offset):
    spec = SPEC.model_copy(
        update={"center_sampling": sampling, "similar_segments_only": similar, "point_offset": offset}
    )
    segments = [(start, start + length) for start, length, _ in items]
    labels = [label for *_, label in items]
    points, targets = assign(spec, segments, labels)
    for index, point in enumerate(points):
        classes, offsets = by_definition(point, segments, labels, spec)
        assert set(targets.classes[0, index].nonzero().flatten().tolist()) == classes
        if offsets:
            assert targets.offsets[0, index].tolist() == pytest.approx(offsets)
    assert torch.equal(targets.positive, targets.classes.sum(2) > 0)


def test_a_border_value_is_positive_in_two_levels():
    """Both ends of a range count: here the furthest distance is 4 on level 0 and on level 1."""
    spec = SPEC.model_copy(update={"center_sampling": "none"})
    points, targets = assign(spec, [(4.0, 12.0)], [1])
    at_eight = [
        point[3] for point, hit in zip(points, targets.positive[0].tolist(), strict=True) if hit and point[0] == 8
    ]
    assert at_eight == [1, 2]


def test_padded_points_are_never_positive():
    _, targets = assign(SPEC, [(10.0, 20.0)], [0], valid=12)
    assert targets.positive.sum() < targets.classes.sum()
    assert not (targets.positive & ~targets.valid).any()


def test_class_agnostic_targets_have_one_class():
    spec = SPEC.model_copy(update={"class_agnostic": True})
    former = ActionFormer(spec, 4, 1)
    masks = former.level_masks(torch.ones(1, 32, dtype=torch.bool))
    targets = assign_targets(former.points(32), masks, [torch.tensor([[2.0, 9.0]])], [torch.tensor([7])], 1, spec)
    assert targets.classes.shape[-1] == 1
    assert targets.positive.any()
