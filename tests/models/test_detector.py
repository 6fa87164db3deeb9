"""The detector as a whole, and its losses: padding, masks, initial state, sums that add up."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.memory.costs import CostProbe
from adatad.models.actionformer import ActionFormer, Head, Predictions, decode, padded_length
from adatad.models.losses import (
    RunningNormalizer,
    Targets,
    assign_targets,
    detection_losses,
    diou_loss,
    giou_loss,
    sigmoid_focal_loss,
)
from adatad.spec import load
from adatad.spec.model_sections import DetectorSpec

SPEC = DetectorSpec(
    width=8, heads=2, stem_blocks=1, branch_blocks=2, max_length=32, drop_path=0.0,
    regression_ranges=((0, 4), (4, 8), (8, 10000)),
)  # fmt: skip


def former_of(**changes) -> ActionFormer:
    torch.manual_seed(0)
    return ActionFormer(SPEC.model_copy(update=changes), 6, 3)


def batch_of(valid=(32, 20)):
    mask = torch.arange(32)[None] < torch.tensor(valid)[:, None]
    segments = [torch.tensor([[2.0, 7.0], [4.0, 20.0]])] * len(valid)
    return torch.randn(len(valid), 6, 32), mask, segments, [torch.tensor([0, 2])] * len(valid)


def targets_of(former, mask, segments, labels) -> Targets:
    return assign_targets(former.points(mask.shape[1]), former.level_masks(mask), segments, labels, 3, former.spec)


def test_masks_and_points_need_no_forward_pass():
    former = former_of()
    features, mask, *_ = batch_of()
    predictions = former(features, mask)
    for ours, theirs in zip(former.level_masks(mask), predictions.masks, strict=True):
        assert torch.equal(ours, theirs)
    assert [len(points) for points in predictions.points] == [32, 16, 8]
    assert predictions.points[1][3].tolist() == [6.0, 4.0, 8.0, 2.0]


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_the_head_over_joined_levels_is_the_head_over_each(lengths, valid):
    torch.manual_seed(sum(lengths))
    head = Head(SPEC, 3).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    levels = [torch.randn(2, 8, length, dtype=torch.float64, requires_grad=True) for length in lengths]
    masks = [torch.arange(n)[None] < torch.tensor([[n], [v]]) for n, v in zip(lengths, valid, strict=True)]
    logits, offsets = head(levels, masks)
    wanted_logits, wanted_offsets = [], []
    for level, mask, scale in zip(levels, masks, head.scales, strict=True):
        classes, distances = level, level
        for to_classes, to_distances in zip(head.cls_convs, head.reg_convs, strict=True):
            classes, distances = to_classes(classes, mask)[0], to_distances(distances, mask)[0]
        wanted_logits.append(head.cls_head(classes))
        wanted_offsets.append((head.reg_head(distances) * scale).relu())
    variables = [*levels, *head.parameters()]
    both = [(*logits, *offsets), (*wanted_logits, *wanted_offsets)]
    torch.testing.assert_close(*both)
    got, wanted = (torch.autograd.grad(sum((x**2).sum() for x in outputs), variables) for outputs in both)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("config", ["s_768x160_adapter", "g_768x160_adapter"])
def test_a_step_of_the_detector_is_at_most_1200_launches(config):
    spec = load(f"configs/thumos/{config}.yaml", check_files=False)
    assert CostProbe(spec, spec.train.global_batch, torch.bfloat16, 20).outer.run.kernels <= 1200


def test_short_features_are_padded_and_long_ones_too():
    former = former_of(attention_window=8)
    assert padded_length(20, former.spec) == 32
    assert padded_length(33, former.spec) == 64
    predictions = former(torch.randn(1, 6, 20), torch.ones(1, 20, dtype=torch.bool))
    assert predictions.masks[0].sum() == 20
    assert [level.shape[-1] for level in predictions.logits] == [32, 16, 8]


@pytest.mark.parametrize("changes", [{}, {"attention_window": 8}, {"neck": "fpn", "absolute_positions": True}])
def test_samples_of_a_batch_are_independent(changes):
    former = former_of(**changes).eval()
    features, mask, *_ = batch_of()
    both, alone = former(features, mask), former(features[1:], mask[1:])
    for level in range(3):
        torch.testing.assert_close(both.logits[level][1:], alone.logits[level])


def test_positions_past_the_table_are_an_error_in_training_and_stretched_in_evaluation():
    former = former_of(absolute_positions=True)
    features, mask = torch.randn(1, 6, 40), torch.ones(1, 40, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"40 positions in training, but model\.detector\.max_length is 32"):
        former(features, mask)
    assert former.eval()(features, mask).logits[0].shape[-1] == 40


def test_a_fresh_head_says_one_percent():
    former = former_of()
    assert former.head.cls_head.bias.tolist() == pytest.approx([-math.log(99)] * 3)
    assert [scale.item() for scale in former.head.scales] == [1.0] * 3
    biases = [
        p for n, p in former.projection.named_parameters() if n.endswith("bias") and "norm" not in n and "ln" not in n
    ]
    assert all(not bias.any() for bias in biases)


def test_every_parameter_gets_a_gradient_with_and_without_positives():
    for segments in ([[2.0, 7.0]], []):
        former = former_of()
        features, mask, *_ = batch_of((32,))
        given_segments = [torch.tensor(segments).reshape(-1, 2)]
        targets = targets_of(former, mask, given_segments, [torch.zeros(len(segments), dtype=torch.int64)])
        losses = detection_losses(former(features, mask), targets, 10.0, SPEC)
        losses["cost"].backward()
        assert all(parameter.grad is not None for parameter in former.parameters())
        assert (losses["reg_loss"] > 0) == bool(segments)


def test_losses_of_parts_add_up_to_the_loss_of_the_whole():
    former = former_of(label_smoothing=0.1)
    features, mask, segments, labels = batch_of((32, 20, 32, 9))

    def losses(part: slice):
        targets = targets_of(former, mask[part], segments[part], labels[part])
        return detection_losses(former(features[part], mask[part]), targets, 17.0, former.spec)

    whole, first, second = losses(slice(0, 4)), losses(slice(0, 1)), losses(slice(1, 4))
    for name in whole:
        torch.testing.assert_close(whole[name], first[name] + second[name])


def test_focal_loss_by_hand():
    logits = torch.tensor([0.0, 2.0])
    p = 1 / (1 + math.exp(-2))
    losses = sigmoid_focal_loss(logits, torch.tensor([1.0, 0.0]), alpha=0.25, gamma=2.0)
    assert losses.tolist() == pytest.approx([0.25 * 0.25 * math.log(2), 0.75 * p**2 * -math.log(1 - p)])


def overlap(predicted, wanted):
    (a, b), (c, d) = (-predicted[0], predicted[1]), (-wanted[0], wanted[1])
    intersection = max(min(b, d) - max(a, c), 0)
    union = b - a + d - c - intersection
    return intersection / union, union, max(b, d) - min(a, c), (a + b - c - d) / 2


distances = st.tuples(*[st.integers(1, 40).map(lambda n: n / 4)] * 4)


@given(distances)
def test_distance_losses_are_their_definitions(values):
    predicted, wanted = torch.tensor([values[:2]]), torch.tensor([values[2:]])
    iou, union, hull, centre = overlap(values[:2], values[2:])
    assert diou_loss(predicted, wanted).item() == pytest.approx(1 - iou + centre**2 / hull**2, abs=1e-5)
    assert giou_loss(predicted, wanted).item() == pytest.approx(1 - iou + (hull - union) / hull, abs=1e-5)


def test_weights_of_the_regression_loss():
    former = former_of()
    features, mask, segments, labels = batch_of()
    targets = targets_of(former, mask, segments, labels)
    predictions = former(features, mask)
    plain = detection_losses(predictions, targets, 10.0, SPEC)
    half = detection_losses(predictions, targets, 10.0, SPEC.model_copy(update={"regression_weight": 0.5}))
    torch.testing.assert_close(half["reg_loss"], plain["reg_loss"] / 2)
    torch.testing.assert_close(half["cost"], plain["cls_loss"] + plain["reg_loss"] / 2)
    dynamic = detection_losses(predictions, targets, 10.0, SPEC.model_copy(update={"regression_weight": 0.0}))
    torch.testing.assert_close(dynamic["reg_loss"], plain["cls_loss"])


def test_losses_are_float32_from_half_precision_predictions():
    former = former_of()
    features, mask, segments, labels = batch_of()
    predictions = former(features, mask)
    low = Predictions(
        [x.bfloat16() for x in predictions.logits], [x.bfloat16() for x in predictions.offsets], *predictions[2:]
    )
    losses = detection_losses(low, targets_of(former, mask, segments, labels), 10.0, SPEC)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_the_normalizer_takes_a_step_in_before_it_is_used():
    normalizer = RunningNormalizer(100.0, 0.9)
    assert normalizer.update(12) == pytest.approx(91.2)
    assert normalizer.update(0) == pytest.approx(0.9 * 91.2 + 0.1)


def test_decoding_gives_valid_points_as_segments():
    points = [torch.tensor([[0.0, 0, 4, 1], [1, 0, 4, 1]]), torch.tensor([[0.0, 4, 8, 2]])]
    predictions = Predictions(
        [torch.zeros(1, 1, 2), torch.ones(1, 1, 1)],
        [torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[0.5], [2.0]]])],
        [torch.tensor([[True, False]]), torch.tensor([[True]])],
        points,
    )
    ((segments, scores),) = decode(predictions)
    assert segments.tolist() == [[-1.0, 3.0], [-1.0, 4.0]]
    assert scores.flatten().tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))])
