"""Overfitting: sound set-ups come down to zero on fixed windows and leave nothing behind; of others it is said what is
probably wrong."""

import pytest

from adatad.errors import UserError
from adatad.spec import load
from adatad.training import overfit as overfit_module
from adatad.training.overfit import overfit, overfitting_spec, probable_cause

FAST = ["optimizer.lr=1e-2", "optimizer.backbone.custom.0.lr=1e-2"]


def history(*costs: float, norm: float = 1.0, classes_share: float = 0.5, applied: bool = True) -> list[dict]:
    return [
        {"cost": cost, "cls_loss": classes_share * cost, "reg_loss": (1 - classes_share) * cost,
         "gradient_norm": norm, "applied": applied}
        for cost in costs
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "cause"),
    [
        (history(2.0, float("nan"), applied=False), "train.precision=fp32"),
        (history(2.0, 2.0, 2.0, norm=0.0), "no parameter gets a gradient"),
        (history(2.0, 1.99, 1.98, 1.97), "hardly falls"),
        (history(2.0, 40.0, 30.0, 25.0), "hardly falls"),
        (history(2.0, 0.4, 0.9, 1.2), "rose again"),
        (history(2.0, 1.5, 1.0, 0.5), "still falling"),
        (history(2.0, 0.31, 0.3, 0.3, classes_share=0.1), "regression_ranges"),
        (history(2.0, 0.31, 0.3, 0.3, classes_share=0.9), "different labels"),
    ],
)
def test_the_course_of_the_loss_tells_what_is_probably_wrong(steps, cause):
    line = probable_cause(steps, "detector 0.001")
    assert cause in line
    assert "\n" not in line


def test_nothing_random_is_left_in_a_step(tiny_spec):
    spec = overfitting_spec(load(tiny_spec, ["data.augment.flip=0.5", "model.detector.label_smoothing=0.1"]), 3)
    assert spec.data.augment is None
    assert spec.model.backbone.drop_path == spec.model.detector.drop_path == spec.model.detector.input_dropout == 0
    assert spec.model.detector.label_smoothing == 0
    assert spec.train.global_batch == spec.train.accumulation == 3


@pytest.mark.slow
def test_a_sound_set_up_reaches_zero_and_leaves_no_run(tiny_spec, run_command, tmp_path):
    done = run_command("train", tiny_spec, "--overfit", 1, "--set", *FAST)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("--overfit 1: reached: loss 0.")
    assert not (tmp_path / "runs").exists()


def test_rates_of_zero_are_named_after_few_steps(tiny_spec, run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(overfit_module, "MAX_STEPS", 4)
    done = run_command(
        "train", tiny_spec, "--overfit", "--set", "optimizer.lr=1e-9", "optimizer.backbone.custom.0.lr=0"
    )
    assert done.returncode == 1
    assert "not reached on demo_" in done.stdout
    assert "hardly falls" in done.stdout
    assert "detector 1e-09" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_rates_that_end_in_nan_are_named(tiny_spec, monkeypatch):
    real = overfit_module.train_step
    nan = {"cost": float("nan"), "gradient_norm": float("nan"), "applied": False}
    steps = []

    def without_numbers(state, batches, step):
        steps.append(step)
        return {**real(state, batches, step), **nan} if step == 0 else {**history(1.0)[0], **nan}

    monkeypatch.setattr(overfit_module, "train_step", without_numbers)
    outcome = overfit(load(tiny_spec, ["train.stop_after_bad_steps=3"]), 1)
    assert not outcome.reached
    assert len(steps) == 3
    assert "a loss of nan" in outcome.line


def test_windows_without_positive_points_are_named_before_any_step(tiny_spec, monkeypatch):
    # No level is responsible for instances of any length.
    nowhere = "model.detector.regression_ranges=[[5000, 6000], [6000, 7000], [7000, 8000]]"
    monkeypatch.setattr(overfit_module, "initial_state", lambda *_: pytest.fail("a model was built"))
    outcome = overfit(load(tiny_spec, [nowhere]), 2)
    assert not outcome.reached
    assert "none of 6 windows holds a positive point" in outcome.line


def test_what_makes_no_sense_is_refused(tiny_spec, run_command):
    with pytest.raises(UserError, match=r"--overfit 7: .* has 6 training videos"):
        overfit(load(tiny_spec), 7)
    for option in (("--force",), ("--resume", "auto")):
        refused = run_command("train", tiny_spec, "--overfit", 2, *option)
        assert refused.returncode == 2
        assert "neither --resume nor --force" in refused.stderr
    assert run_command("train", tiny_spec, "--overfit", 0).returncode == 2


def test_it_begins_from_the_detector_that_training_would_begin_from(tiny_spec, monkeypatch):
    given = []
    monkeypatch.setattr(overfit_module, "find_source", lambda spec: (spec.model.init_from, []))
    monkeypatch.setattr(overfit_module, "start_from", lambda model, run, path, processes: given.append(path) or [])
    monkeypatch.setattr(overfit_module, "MAX_STEPS", 1)
    overfit(load(tiny_spec, ["model.init_from=trained.safetensors"], check_files=False), 1)
    assert [str(path).endswith("trained.safetensors") for path in given] == [True]
