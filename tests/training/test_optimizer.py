"""Parameter groups, learning rates and averages against numbers worked out by hand, and the reference's."""

import json
import math

import pytest
import torch

from adatad.errors import UserError
from adatad.models.detector import build_model, freeze
from adatad.parallel.base import swapped_tensors
from adatad.spec.model_sections import BackboneSpec, DetectorSpec, ModelSpec
from adatad.spec.schema import BackboneOptimizerSpec, OptimizerSpec, ParameterGroup
from adatad.training.ema import Ema
from adatad.training.optimizer import learning_rate, parameter_groups

ADAPTERS = ParameterGroup(name="adapter", lr=2e-4, weight_decay=0.03)


def model_of(mode: str):
    backbone = BackboneSpec(width=16, depth=2, heads=2, patch=8, mode=mode)
    spec = ModelSpec(backbone=backbone, detector=DetectorSpec(width=8, heads=2))
    model = build_model(spec, 3)
    freeze(model, backbone)
    return model


def groups_of(mode: str, **changes):
    return {group["name"]: group for group in parameter_groups(model_of(mode), OptimizerSpec(lr=1e-3, **changes))}


@pytest.mark.parametrize(
    ("mode", "backbone"),
    [
        ("adapter", BackboneOptimizerSpec(custom=(ADAPTERS,))),
        ("side", BackboneOptimizerSpec(custom=(ADAPTERS,))),
        ("frozen", None),
        ("full", BackboneOptimizerSpec(lr=1e-5)),
    ],
)
def test_every_trained_parameter_is_in_one_group(mode, backbone):
    model = model_of(mode)
    groups = parameter_groups(model, OptimizerSpec(backbone=backbone))
    names = [name for group in groups for name in group["parameter_names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert all(len(group["params"]) == len(group["parameter_names"]) for group in groups)


def test_groups_of_adapters_and_detector():
    groups = groups_of("adapter", backbone=BackboneOptimizerSpec(custom=(ADAPTERS,)))
    assert list(groups) == ["adapter", "detector", "detector_no_decay"]
    adapter = groups["adapter"]
    assert (adapter["lr"], adapter["weight_decay"], len(adapter["params"])) == (2e-4, 0.03, 2 * 9)
    assert "backbone.blocks.0.adapter.gamma" in adapter["parameter_names"]
    decaying, still = groups["detector"]["parameter_names"], groups["detector_no_decay"]["parameter_names"]
    assert all(name.endswith("weight") and "norm" not in name and ".ln" not in name for name in decaying)
    for name in ("detector.head.scales.0", "detector.projection.stem.0.attn_scale", "detector.neck.norms.0.weight"):
        assert name in still
    assert (groups["detector"]["weight_decay"], groups["detector_no_decay"]["weight_decay"]) == (0.05, 0.0)


def test_the_first_group_whose_name_fits_takes_a_parameter():
    first = ParameterGroup(name="adapter.up", lr=1e-2)
    groups = groups_of("adapter", backbone=BackboneOptimizerSpec(custom=(first, ADAPTERS)))
    assert len(groups["adapter.up"]["params"]) == 4
    assert len(groups["adapter"]["params"]) == 2 * 9 - 4


def test_layer_decay():
    groups = groups_of("full", layer_decay=0.5)
    assert groups["layer_0"]["lr"] == pytest.approx(1e-3 * 0.5**3)
    assert groups["layer_2"]["lr"] == pytest.approx(1e-3 * 0.5)
    assert groups["layer_1_no_decay"]["weight_decay"] == 0.0
    assert all("norm" in name for name in groups["layer_1_no_decay"]["parameter_names"])


def test_a_parameter_that_no_group_takes_is_named():
    only_up = BackboneOptimizerSpec(custom=(ParameterGroup(name="adapter.up", lr=1e-2),))
    with pytest.raises(UserError, match=r"blocks\.0\.adapter\.gamma is trained, but no entry"):
        groups_of("adapter", backbone=only_up)
    with pytest.raises(UserError, match=r"optimizer\.backbone is missing"):
        groups_of("full")


def test_learning_rate_by_hand():
    rates = [learning_rate(step, 1.0, 4, 12, 0.2) for step in range(13)]
    assert rates[:5] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.6)
    assert rates[12] == pytest.approx(0.2)
    assert rates[6] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(0, 1.0, 0, 10, 0.0) == 1.0
    assert learning_rate(0, 1.0, 1, 10, 0.0) == 0.0


def test_learning_rates_of_the_reference(shared_folder):
    for case in json.loads((shared_folder / "golden" / "data" / "lr.json").read_text())["cases"]:
        warmup, total = (case[key] * case["steps_per_epoch"] for key in ("warmup_epochs", "max_epochs"))
        for step, expected in zip(case["steps"], case["lrs"], strict=True):
            ours = [learning_rate(step, base, warmup, total, 1e-8) for base in case["base_lrs"]]
            assert ours == pytest.approx(expected, abs=1e-12), step


def test_averages_follow_the_parameters():
    weight = torch.randn(2, 2)
    ema, start = Ema({"weight": weight}, 0.9), weight.clone()
    weight.add_(1.0)
    ema.update({"weight": weight})
    ema.update({"weight": weight})
    torch.testing.assert_close(ema.averages["weight"], start + 1 - 0.9**2)
    live = weight.clone()
    with swapped_tensors({"weight": weight}, ema.averages):
        torch.testing.assert_close(weight, start + 1 - 0.9**2)
    assert torch.equal(weight, live)


def test_live_weights_come_back_after_an_error():
    weight = torch.randn(2, 2)
    ema, live = Ema({"weight": weight}, 0.5), weight.clone()
    ema.averages["weight"].add_(3)
    with pytest.raises(RuntimeError), swapped_tensors({"weight": weight}, ema.averages):
        raise RuntimeError
    assert torch.equal(weight, live)
    torch.testing.assert_close(ema.averages["weight"], live + 3)
