"""Draws inside the model: uniform, independent, and a function of the key alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.models.keyed_dropout import Dropout, clip_keys, keep_factors, uniform, uniforms

KEYS = torch.arange(20_000)


def test_uniform_is_uniform_and_differs_by_name():
    first, second = uniform(KEYS, "a"), uniform(KEYS, "b")
    assert first.min() >= 0
    assert first.max() < 1
    counts = torch.histc(first, bins=20, min=0, max=1)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(correlation) < 0.03


def test_neighbouring_keys_are_uncorrelated():
    drawn = uniform(KEYS, "a")
    assert abs(torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]) < 0.03


@given(st.permutations(range(12)))
def test_a_row_draws_the_same_wherever_it_stands(order):
    keys = torch.arange(12) * 7919
    assert torch.equal(uniform(keys[list(order)], "x"), uniform(keys, "x")[list(order)])


def test_clips_of_a_sample_differ_and_samples_do_not_share_them():
    keys = clip_keys(torch.tensor([3, 4]), range(6))
    assert len(keys.unique()) == 12
    assert torch.equal(keys[:6], clip_keys(torch.tensor([3]), range(6)))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_path_drops_whole_rows_and_keeps_the_mean(rate):
    dropped = Dropout(rate, "d", axes=1)(torch.ones(20_000, 2), KEYS)
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    assert dropped.mean() == pytest.approx(1.0, abs=0.03)


def test_channel_dropout_drops_whole_channels_of_a_sample():
    dropped = Dropout(0.3, "c", axes=2)(torch.ones(50, 100, 4), KEYS[:50])
    assert torch.equal(dropped[..., 0], dropped[..., 3])
    assert (dropped[..., 0] == 0).float().mean() == pytest.approx(0.3, abs=0.04)
    assert not torch.equal(dropped[0], dropped[1])


def test_without_keys_nothing_is_dropped():
    x = torch.randn(4, 3, 2)
    assert torch.equal(Dropout(0.9, "d", axes=1)(x, None), x)
    assert torch.equal(Dropout(0.9, "c", axes=2)(x, None), x)


def test_dropout_drops_single_numbers_and_keeps_the_mean():
    dropped = Dropout(0.3, "n", axes=3)(torch.ones(20, 30, 40), KEYS[:20])
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    zeros = (dropped == 0).float()
    assert zeros.mean(1).std() > 0.05
    assert zeros.mean(2).std() > 0.05
    assert torch.equal(dropped[3:4], Dropout(0.3, "n", axes=3)(torch.ones(1, 30, 40), KEYS[3:4])), (
        "whatever its batch is"
    )
    assert torch.equal(Dropout(0.3, "n", axes=3)(torch.ones(1, 2, 3), None), torch.ones(1, 2, 3))


def test_several_names_draw_in_one_go_what_each_draws_alone():
    names = [f"detector/{index}" for index in range(14)]
    for keys in (KEYS[:7], KEYS[:6].view(2, 3) - 2**62):
        assert torch.equal(uniforms(keys, names), torch.stack([uniform(keys, name) for name in names]))
    rows = torch.ones(7, 1, dtype=torch.float64)
    dropped = [Dropout(0.3, name, axes=1)(rows, KEYS[:7]) for name in names]
    factors = keep_factors(KEYS[:7], 0.3, names, torch.float64)
    assert torch.equal(factors, torch.cat(dropped, dim=1).T)
