"""The adapter against torch's own convolutions, over random shapes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from adatad.models.adapter import Adapter, depthwise_over_time

shapes = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4))


@given(shapes, st.sampled_from([1, 3, 5]), st.integers(1, 3), st.integers(0, 2**31))
def test_shifted_sums_are_a_depthwise_convolution(shape, kernel, dilation, seed):
    batch, tubelets, positions, hidden = shape
    draw = torch.Generator().manual_seed(seed)
    window = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(hidden, 1, kernel, generator=draw, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(hidden, generator=draw, dtype=torch.float64, requires_grad=True)
    along_time = window.permute(0, 2, 3, 1).reshape(batch * positions, hidden, tubelets)
    padding = dilation * (kernel - 1) // 2
    expected = F.conv1d(along_time, weight, bias, padding=padding, dilation=dilation, groups=hidden)
    expected = expected.reshape(batch, positions, hidden, tubelets).permute(0, 3, 1, 2)
    result = depthwise_over_time(F.pad(window, (0, 0, 0, 0, padding, padding)), weight, bias, dilation)
    torch.testing.assert_close(result, expected)
    towards = torch.randn(result.shape, generator=draw, dtype=torch.float64)
    ours = torch.autograd.grad(result, (window, weight, bias), towards, retain_graph=True)
    theirs = torch.autograd.grad(expected, (window, weight, bias), towards)
    torch.testing.assert_close(ours, theirs)


def awake_adapter(temporal: bool = True) -> Adapter:
    adapter = Adapter(width=8, hidden=4, clip_tubelets=2, temporal=temporal)
    torch.nn.init.normal_(adapter.up.weight)
    return adapter


def test_a_fresh_adapter_changes_nothing_and_trains_only_its_last_projection():
    adapter = Adapter(width=8, hidden=4, clip_tubelets=2)
    delta = adapter(torch.randn(3, 6, 8), batch=1)
    assert not delta.any()
    delta.backward(torch.randn_like(delta))
    moved = {name for name, parameter in adapter.named_parameters() if parameter.grad.any()}
    assert moved == {"up.weight", "up.bias"}


def test_time_is_mixed_across_clips_of_a_window_but_not_across_windows():
    adapter = awake_adapter()
    tokens = torch.randn(4, 6, 8)
    changed = tokens.clone()
    changed[1, 3:] += 1.0  # the last tubelet of the second clip
    separate = (adapter(changed, batch=2) - adapter(tokens, batch=2)).abs().amax((1, 2))
    joined = (adapter(changed, batch=1) - adapter(tokens, batch=1)).abs().amax((1, 2))
    assert (separate > 0).tolist() == [False, True, False, False]
    assert (joined > 0).tolist() == [False, True, True, False]


def test_a_plain_adapter_sees_one_token():
    adapter = awake_adapter(temporal=False)
    tokens = torch.randn(2, 6, 8)
    changed = tokens.clone()
    changed[0, 5] += 1.0
    difference = (adapter(changed, batch=1) - adapter(tokens, batch=1)).abs().amax(2)
    assert difference.flatten().nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize(("width", "ratio"), [(384, 0.25), (1408, 0.25), (1408, 0.125)])
def test_parameter_count(width, ratio):
    hidden = int(width * ratio)
    adapter = Adapter(width, hidden, clip_tubelets=8)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * width * hidden + hidden**2 + 6 * hidden + width + 1
