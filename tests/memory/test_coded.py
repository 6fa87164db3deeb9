"""Weights and kept rows in 8 bits: what rounding does to numbers; nothing else changes in what the wave computes."""

import pytest
import torch
from small_backbones import batch, build, error, gradients, under

from adatad.memory.coded import SCALE, EightBitStore, decode, encode, encode_frozen_
from adatad.memory.meter import Meter
from adatad.memory.offload import DeviceStore, HostMemory, HostStore
from adatad.memory.scopes import memory_scope

KINDS = ("fp8", "int8")
CPU = torch.device("cpu")


def numbers() -> torch.Tensor:
    """Rows of any size, the last one with an outlier."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 500, generator=generator) * 10.0 ** torch.arange(-3, 3).view(-1, 1)
    x[-1, 7] *= 100
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_is_as_near_as_its_format_says(kind):
    x = numbers()
    codes, scale = encode(x, kind)
    assert codes.itemsize == 1
    assert scale.shape == (6, 1)
    found = decode(codes, scale, torch.float64)
    if kind == "fp8":
        # Three bits behind the point; below 2**-6 of the scale the steps stay the same.
        assert ((found - x).abs() <= torch.maximum(x.abs() / 16, scale.double() * 2.0**-10)).all()
    else:
        assert ((found - x).abs() <= scale.double() * 0.51).all()
    largest = x.abs().amax(1)
    assert torch.allclose(found.abs().amax(1), largest.double(), rtol=1 / 16)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_down_once_stays_as_it_is(kind):
    once = decode(*encode(numbers(), kind), torch.float32)
    again = decode(*encode(once, kind), torch.float32)
    assert torch.allclose(again, once, rtol=2e-3 if kind == "int8" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_of_zeros_are_zeros(kind, dtype):
    assert torch.equal(decode(*encode(torch.zeros(2, 4, dtype=dtype), kind), dtype), torch.zeros(2, 4, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_small_tokens_of_fp16_are_not_lost(kind):
    x = torch.full((1, 4), 2e-6, dtype=torch.float16)
    assert torch.allclose(decode(*encode(x, kind), torch.float16), x, rtol=1 / 16)


def test_what_is_no_number_is_none_afterwards():
    """A step with such a gradient is skipped, as ever."""
    x = torch.ones(3, 4)
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    assert decode(*encode(x, "fp8"), torch.float32).isfinite().all(1).tolist() == [False, False, True]


# Frozen weights


WAYS = [
    ("adapter", {"segment_blocks": 2}),
    ("adapter", {"segment_blocks": 3, "recompute": "twice", "frozen_weights": "stream"}),
    ("plain", {"segment_blocks": 1, "saved_inputs": "host"}),
    ("side", {}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mode", "memory"), WAYS, ids=["hold", "streamed", "plain", "side"])
def test_frozen_weights_in_8_bits_compute_as_the_numbers_that_they_stand_for(kind, mode, memory):
    backbone, (frames, keys) = build(mode), batch(windows=2)
    keys = None if mode == "side" else keys
    waved = under(backbone, policy="tile", tile_clips=2, frozen_dtype=kind, **memory)
    exact = gradients(backbone, frames, keys)
    with torch.no_grad():
        for block in backbone.blocks:
            for part in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                part.weight.copy_(decode(*encode(part.weight, kind), torch.float64))
    ours = gradients(waved, frames, keys)
    assert error(ours, gradients(backbone, frames, keys)) < 1e-10
    assert error(ours, exact) > 1e-4, "the weights aren't those of before"


def test_blocks_are_cast_while_tiles_are_at_them_and_no_longer():
    backbone, (frames, keys) = build("adapter"), batch()
    waved = under(backbone, policy="tile", tile_clips=1, segment_blocks=2, frozen_dtype="fp8")
    block = waved.blocks[0]
    matrices = [m.weight for m in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)]
    assert all(weight.itemsize == 1 for weight in matrices)
    assert block.norm1.weight.dtype == block.mlp.fc1.bias.dtype == torch.float64
    assert all(
        waved.blocks[0].get_submodule(name).get_parameter(SCALE).shape[1] == 1 for name in ("attn.qkv", "mlp.fc1")
    )
    casts = []
    whole = type(waved.executor.passes[0].provider).materialized

    def noted(self, blocks, following):
        casts.append(meter.by_label.get("weight casts", 0))
        return whole(self, blocks, following)

    one = 8 * sum(weight.numel() for weight in matrices) + 8 * 3 * 16
    with Meter("cpu") as meter, pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(waved.executor.passes[0].provider), "materialized", noted)
        meter.register(waved.parameters(), "weights")
        gradients(waved, frames, keys)
    # Four blocks forward, two segments back: whatever is begun finds no casts of before.
    assert casts == [0] * 6
    assert meter.by_label["weight casts"] == 0
    assert 0 < meter.peak.by_label.get("weight casts", 0) <= 2 * one


def test_trained_weights_and_adapters_are_left_alone():
    backbone = build("adapter")
    encode_frozen_(backbone.blocks, "int8")
    for name, parameter in backbone.named_parameters():
        coded = not parameter.is_floating_point()
        assert coded == (not parameter.requires_grad and "blocks" in name and parameter.dim() == 2
                         and not name.endswith(SCALE)), name  # fmt: skip


# Saved inputs


@pytest.mark.parametrize("recompute", ["once", "twice"])
@pytest.mark.parametrize("mode", ["adapter", "full"])
def test_saved_inputs_in_fp8_change_no_feature_and_gradients_a_little(mode, recompute):
    backbone, (frames, keys) = build(mode), batch(windows=2, clips=5)
    memory = {"policy": "tile", "tile_clips": 2, "segment_blocks": 2, "recompute": recompute}
    plain = gradients(under(backbone, clips=5, **memory), frames, keys)
    coded = gradients(under(backbone, clips=5, saved_input_dtype="fp8", **memory), frames, keys)
    assert torch.equal(coded["timeline"], plain["timeline"])
    assert 1e-4 < error(coded, plain) < 0.05
    on_host = gradients(
        under(backbone, clips=5, saved_input_dtype="fp8", order="blocks", saved_inputs="host", **memory), frames, keys
    )
    assert all(torch.equal(on_host[name], gradient) for name, gradient in coded.items())


def test_a_store_keeps_half_of_a_16_bit_row_wherever_it_is():
    tokens = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = decode(*encode(tokens, "fp8"), torch.bfloat16)
    size = 2 * 8 * (64 + 2)
    for inner in (DeviceStore("x"), HostStore("x", HostMemory(CPU), buffer_bytes=size)):
        store = EightBitStore(inner, torch.bfloat16, "saved inputs")
        with Meter("cpu") as meter, memory_scope("other"):
            store.save_copy(0, tokens)
            if isinstance(inner, DeviceStore):
                assert meter.by_label["saved inputs"] == size
            store.prefetch(0)
            assert torch.equal(store.pop(0), expected)
