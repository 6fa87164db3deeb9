"""`model.freeze`: parameters that don't learn, by patterns of their names."""

import pytest
import torch

from adatad.errors import UserError
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training.loaders import training_loader
from adatad.training.resolve import resolve_run
from adatad.training.setup import initial_state
from adatad.training.step import batch_targets, forward_and_backward

CPU = Processes(0, 1, torch.device("cpu"))
FROZEN = ["backbone.blocks.0.adapter.*", "detector.neck.*", "detector.head.cls_head.bias"]


def state_of(spec_file, *overrides):
    return initial_state(resolve_run(load(spec_file, overrides), CPU), CPU)


def test_named_parameters_are_not_trained(tiny_spec):
    everything = state_of(tiny_spec).trained
    state = state_of(tiny_spec, f"model.freeze={FROZEN}")
    frozen = set(everything) - set(state.trained)
    assert {name.partition("adapter")[0] for name in frozen} >= {"backbone.blocks.0.", "detector.head.cls_head.bias"}
    assert not any(name.startswith(("backbone.blocks.0.", "detector.neck.")) for name in state.trained)
    assert any(name.startswith("backbone.blocks.1.adapter.") for name in state.trained)
    assert [name for name, p in state.model.named_parameters() if p.requires_grad] == state.trained
    assert {name for group in state.engine.groups for name in group["parameter_names"]} == set(state.trained)


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ([], FROZEN),
        (["model.backbone.mode=full", "optimizer.backbone={lr: 1e-3}"],
         ["backbone.blocks.0.*", "backbone.patch_embed.*", "backbone.blocks.1.mlp.*"]),
        (["model.backbone.mode=side"], ["backbone.side_adapters.0.*"]),
    ],
    ids=["adapter", "full", "side"],
)  # fmt: skip
def test_every_policy_gives_the_rest_the_same_gradients(tiny_spec, settings, frozen):
    found = {}
    policies = {"none": [], "block": [], "tile": [], "tile streamed": ["memory.frozen_weights=stream"]}
    if "model.backbone.mode=full" in settings:
        del policies["tile streamed"]
    for policy, more in policies.items():
        memory = [f"memory.policy={policy.split()[0]}", *more]
        state = state_of(tiny_spec, *settings, f"model.freeze={frozen}", *memory)
        batch = next(iter(training_loader(state.run, (0, 0))))
        forward_and_backward(state, [batch_targets(state, batch)], 10.0, [batch])
        found[policy] = {name: gradient.clone() for name, gradient in state.engine.gradients().items()}
        assert set(found[policy]) <= set(state.trained)
        assert len(found[policy]) > len(state.trained) / 2
    for policy in policies:
        assert found[policy].keys() == found["none"].keys()
        for name, expected in found["none"].items():
            torch.testing.assert_close(found[policy][name], expected, rtol=1e-4, atol=1e-6, msg=f"{policy}: {name}")


def test_a_pattern_without_parameter_is_refused_with_near_names(tiny_spec):
    with pytest.raises(UserError, match=r"model\.freeze: backbone\.blocks\.\*\.adaptor.* did you mean .*adapter"):
        state_of(tiny_spec, "model.freeze=[backbone.blocks.*.adaptor.conv.weight]")


def test_nothing_left_to_train_is_refused(tiny_spec):
    with pytest.raises(UserError, match=r"model\.freeze: \* leave nothing to train"):
        state_of(tiny_spec, "model.freeze=['*']")
