"""Lines of a run on its first step: the losses to expect are those of an untrained head, and what is far off them is
named."""

import logging
import math

import pytest
import torch

import adatad.training.run as run_module
from adatad.models.actionformer import PRIOR, ActionFormer
from adatad.models.losses import Targets, untrained_losses
from adatad.spec import load
from adatad.spec.model_sections import DetectorSpec
from adatad.training.first_step import MAX_FACTOR, difference
from adatad.training.loop import Training
from adatad.training.run import train
from adatad.training.run_directory import run_directory

SPEC = DetectorSpec(
    width=8, heads=2, branch_blocks=2, max_length=32, regression_ranges=((0, 4), (4, 8), (8, 10000))
)  # fmt: skip
POINTS, CLASSES = 10, 3


def targets_of(positives: int) -> Targets:
    """One sample whose first points are positive, and whose last two are padding."""
    classes, positive = torch.zeros(1, POINTS, CLASSES), torch.arange(POINTS)[None] < positives
    classes[positive, 1] = 1.0
    offsets = torch.tensor([1.0, 3.0]).expand(1, POINTS, 2)
    return Targets(classes, offsets, positive, torch.arange(POINTS)[None] < POINTS - 2)


@pytest.mark.parametrize("positives", [0, 1, 5])
def test_expected_losses_are_those_of_the_formulas_at_the_prior(positives):
    losses = untrained_losses(targets_of(positives), 7.0, SPEC)
    hit = -SPEC.focal_alpha * (1 - PRIOR) ** SPEC.focal_gamma * math.log(PRIOR)
    miss = -(1 - SPEC.focal_alpha) * PRIOR**SPEC.focal_gamma * math.log(1 - PRIOR)
    of_classes = (positives * hit + ((POINTS - 2) * CLASSES - positives) * miss) / 7
    # Without length nothing overlaps: 1, and the distance of the centres, 1, over the length of 4, squared.
    of_segments = positives * (1 + (1 / 4) ** 2) / 7
    assert float(losses["cls_loss"]) == pytest.approx(of_classes, rel=1e-5)
    assert float(losses["reg_loss"]) == pytest.approx(of_segments, rel=1e-5)
    assert float(losses["cost"]) == pytest.approx(of_classes + of_segments, rel=1e-5)


def test_what_is_far_from_its_expectation_is_named():
    expected = {"cls_loss": 1.0, "reg_loss": 0.5}
    assert difference({"cls_loss": 1.3, "reg_loss": 0.4}, expected) == ""
    assert difference({"cls_loss": MAX_FACTOR + 0.1, "reg_loss": 0.4}, expected).startswith(
        "class loss 2.100 at step 0"
    )
    both = difference({"cls_loss": 0.1, "reg_loss": 5.0}, expected)
    assert both.count("expected about") == 2


def test_a_head_is_new_until_its_bias_changes():
    head = ActionFormer(SPEC, 4, CLASSES).head
    assert head.is_new
    with torch.no_grad():
        head.cls_head.bias[1] += 0.01
    assert not head.is_new


@pytest.mark.parametrize("broken", [False, True])
def test_a_run_begins_with_the_expected_loss_and_one_whose_prior_is_lost_is_warned(tiny_spec, monkeypatch, broken):
    spec = load(tiny_spec, ["schedule.epochs=1", "schedule.warmup_epochs=0"])
    if broken:
        real = run_module.initial_state

        def without_prior(*arguments):
            state = real(*arguments)
            with torch.no_grad():
                state.model.detector.head.cls_head.bias.zero_()
            return state

        monkeypatch.setattr(run_module, "initial_state", without_prior)
    monkeypatch.setattr(Training, "evaluate_if_due", lambda self: setattr(self, "result", {}))
    train(spec)
    log = (run_directory(spec).path / "log.txt").read_text()
    assert "trained in all: " in log
    assert " frozen\n" in log
    (said,) = [line for line in log.splitlines() if "step 0: loss" in line]
    assert "positive points; expected " in said
    assert ("look at the last bias of the head" in log) == broken


@pytest.mark.pictures
def test_a_picture_that_cannot_be_drawn_is_a_warning(caplog):
    logger = logging.getLogger("adatad")
    logger.addHandler(caplog.handler)
    try:
        run_module._draw_first_batch(None, None, None)
    finally:
        logger.removeHandler(caplog.handler)
    assert "no first_batch.png: " in caplog.text
