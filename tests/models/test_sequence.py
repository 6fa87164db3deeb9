"""Attention over time against dense forms, over random shapes and masks; conv units and their masks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.models.sequence import ConvUnit, SequenceBlock, global_attention, windowed_attention


def dense_windowed(q, k, v, mask, reach):
    """All scores at once: -inf outside the band, -1e4 added to masked keys, masked queries zeroed."""
    length = q.shape[2]
    scores = (q / q.shape[-1] ** 0.5) @ k.transpose(2, 3)
    distance = (torch.arange(length)[:, None] - torch.arange(length)[None]).abs()
    scores = scores + torch.where(mask, 0.0, -1e4)[:, None, None]
    scores = scores.masked_fill(distance > reach, float("-inf"))
    return scores.softmax(-1) @ v * mask[:, None, :, None]


@given(st.integers(1, 90), st.integers(2, 12), st.integers(0, 90), st.integers(0, 1000))
def test_windowed_attention_is_the_dense_form(length, reach, valid, seed):
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, length, 4, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.arange(length)[None] < torch.tensor([[length], [min(valid, length)]])
    ours, expected = windowed_attention(q, k, v, mask, reach), dense_windowed(q, k, v, mask, reach)
    torch.testing.assert_close(ours, expected)
    towards = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    got = torch.autograd.grad(ours, (q, k, v), towards)
    torch.testing.assert_close(got, torch.autograd.grad(expected, (q, k, v), towards))


def test_windowed_attention_holds_no_square_matrix():
    """Nothing that autograd keeps grows with the square of the length."""
    length, kept = 2304, []
    q = torch.randn(1, 4, length, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        windowed_attention(q, q, q, torch.ones(1, length, dtype=torch.bool), 9).sum().backward()
    assert max(kept) < length * 4 * 64


def test_global_attention_sees_valid_positions_alone():
    q = torch.randn(2, 2, 6, 4)
    mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    mixed = global_attention(q, q, q, mask)
    torch.testing.assert_close(mixed[0, :, :4], global_attention(*[q[:1, :, :4]] * 3, mask[:1, :4])[0])
    assert not mixed[1].any(), "nothing valid gives zeros, not NaN"


def test_a_conv_unit_masks_its_output_and_halves_its_mask():
    unit = ConvUnit(3, 5, 3, stride=2, norm=True, relu=True)
    torch.nn.init.ones_(unit.norm.bias)
    mask = torch.arange(10)[None] < torch.tensor([[10], [5]])
    x, short = unit(torch.randn(2, 3, 10), mask)
    assert short.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert (x[1, :, :3] >= 0).all()
    assert not x[1, :, 3:].any()
    assert x[0].any(0).all()


def test_the_first_padded_feature_reaches_the_last_valid_position_and_no_further():
    """The reference's way: inputs aren't masked before the convolution."""
    unit = ConvUnit(2, 2, 3)
    mask = torch.arange(6)[None] < 4
    x = torch.randn(1, 2, 6)
    changed = x.clone()
    changed[..., 4:] += 1
    difference = (unit(x, mask)[0] - unit(changed, mask)[0]).abs().amax(1)[0]
    assert (difference > 0).tolist() == [False, False, False, True, False, False]


def test_a_fresh_block_with_layer_scale_is_nearly_the_identity():
    block = SequenceBlock(8, 2, 1, -1, True, 0.0, "b")
    x, mask = torch.randn(1, 8, 12), torch.ones(1, 12, dtype=torch.bool)
    assert (block(x, mask, None)[0] - x).abs().max() < 1e-3
    assert block.attn_scale.shape == (1, 8, 1)
    assert SequenceBlock(8, 2, 1, -1, False, 0.0, "b").attn_scale is None


def test_stochastic_depth_drops_a_sample_s_branches_by_its_key():
    block = SequenceBlock(8, 2, 1, -1, False, 0.6, "b")
    x, mask = torch.randn(6, 8, 4), torch.ones(6, 4, dtype=torch.bool)
    keys = torch.arange(6)
    out = block(x, mask, keys)[0]
    torch.testing.assert_close(block(x[2:3], mask[2:3], keys[2:3])[0], out[2:3])
    untouched = [(out[i] == x[i]).all().item() for i in range(6)]
    assert any(untouched)
    assert not all(untouched)


def test_dropout_acts_on_both_branches_of_a_block_and_only_with_keys():
    torch.manual_seed(0)
    x, mask, keys = torch.randn(2, 8, 6), torch.ones(2, 6, dtype=torch.bool), torch.tensor([3, 4])
    plain, dropping = (SequenceBlock(8, 2, 1, -1, False, 0.0, "b", rate) for rate in (0.0, 0.5))
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(dropping(x, mask, None)[0], plain(x, mask, keys)[0])
    for silent in ("attn.proj", "mlp.2"):
        torch.nn.init.zeros_(dropping.get_submodule(silent).weight)
        torch.nn.init.zeros_(dropping.get_submodule(silent).bias)
        assert not torch.equal(dropping(x, mask, keys)[0], dropping(x, mask, keys + 1)[0]), "the other branch drops"
        dropping.load_state_dict(plain.state_dict())
