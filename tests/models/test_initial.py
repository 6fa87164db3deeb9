"""Building a model whose encoder comes from a file."""

import pytest
import torch
from torch import nn

from adatad.convert.backbone_weights import load_backbone_weights
from adatad.convert.weight_file import WeightsError, write_safetensors
from adatad.models.detector import build_model
from adatad.models.initial import SCRATCH_NUMBERS, DrawsAside
from adatad.spec import load


def model_of(seed, mode="adapter", drawn=True):
    spec = load("configs/demo/tia.yaml", [f"model.backbone.mode={mode}"], check_files=False)
    torch.manual_seed(seed)
    return build_model(spec.model, 6, drawn)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    encoder = {n: p.detach() for n, p in model_of(1).backbone.named_parameters() if "adapter" not in n}
    write_safetensors(path, encoder)
    return path


@pytest.mark.parametrize("mode", ["adapter", "side", "plain", "full"])
def test_a_model_filled_from_a_file_has_the_same_bits_whether_its_encoder_was_drawn_before_or_not(mode, weights):
    states, generators = [], []
    for drawn in (True, False):
        model = model_of(0, mode, drawn)
        load_backbone_weights(model.backbone, weights)
        states.append(dict(model.named_parameters()) | dict(model.named_buffers()))
        generators.append(torch.get_rng_state())
    assert states[0].keys() == states[1].keys()
    assert {"backbone.position_table", "backbone.pixel_mean"} <= states[0].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    assert torch.equal(*generators)


def test_a_file_that_leaves_a_parameter_unfilled_is_refused(weights, tmp_path):
    model = model_of(0, drawn=False)
    encoder = {n: p.detach() for n, p in model_of(1).backbone.named_parameters() if "adapter" not in n}
    del encoder["blocks.2.mlp.fc1.bias"]
    write_safetensors(tmp_path / "part.safetensors", encoder)
    with pytest.raises(WeightsError, match=r"missing blocks\.2\.mlp\.fc1\.bias"):
        load_backbone_weights(model.backbone, tmp_path / "part.safetensors")


@pytest.mark.parametrize("numbers", [1, 17, SCRATCH_NUMBERS, 2 * SCRATCH_NUMBERS + 5])
def test_draws_put_aside_leave_the_tensor_alone_and_the_generator_where_it_would_be(numbers):
    torch.manual_seed(0)
    torch.empty(numbers).uniform_(-1, 1)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    tensor = torch.full((numbers,), 7.0)
    with DrawsAside():
        nn.init.uniform_(tensor, -1, 1)
    assert torch.equal(torch.get_rng_state(), after)
    assert tensor.eq(7).all()


def test_draws_that_the_generator_counts_otherwise_are_refused():
    with DrawsAside(), pytest.raises(NotImplementedError, match="normal_"):
        torch.empty(40).normal_()
