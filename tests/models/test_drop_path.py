"""Stochastic depth of the backbone: whose draws it takes, and what isn't computed."""

import pytest
import torch

from adatad.models.keyed_dropout import BranchDrop, Drops, HostKeys, clip_keys, mix, scale_of_kept, uniform, uniforms

KEYS = torch.randint(-(2**63), 2**63 - 1, (500,), generator=torch.Generator().manual_seed(0))
NAMES = ["backbone/0/attention", "backbone/0/mlp", "backbone/1/attention", "backbone/1/mlp"]
RATES = [0.0, 0.1, 0.25, 0.9]


def test_a_number_and_a_tensor_salt_alike():
    for salt in (0, 1, 7, 2**31, 2**32 - 1):
        assert torch.equal(mix(KEYS, salt), mix(KEYS, torch.tensor(salt)))


def test_the_table_has_the_draws_of_each_name():
    table = uniforms(KEYS, NAMES)
    for draws, name in zip(table, NAMES, strict=True):
        assert torch.equal(draws, uniform(KEYS, name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_factors_are_those_of_each_clip_s_draw(dtype):
    keys, clips = KEYS[:3], range(4, 9)
    drops = Drops(NAMES, RATES, keys, clips)
    like = torch.ones(15, 2, 3, dtype=dtype)
    for branch, (name, rate) in enumerate(zip(NAMES, RATES, strict=True)):
        kept = uniform(clip_keys(keys, clips), name) >= rate
        expected = kept.to(dtype) / (1.0 - rate)
        assert drops.kept[branch] == kept.tolist()
        assert torch.equal(drops.factors(branch, like), expected)
        whole = BranchDrop(drops, branch, 0, 15)
        for scaled in (whole.scale(like), whole.scale_(like.clone())):
            assert torch.equal(scaled, like * expected[:, None, None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_clips_that_are_all_kept_take_a_number_with_the_same_bits(dtype):
    drops = Drops(NAMES, RATES, KEYS, range(1))
    x = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    for branch, rate in enumerate(RATES):
        kept = drops.kept[branch].index(True)
        own = BranchDrop(drops, branch, kept, kept + 1)
        assert torch.equal(own.scale(x), x * drops.factors(branch, x)[kept])
        assert scale_of_kept(rate, dtype) == drops.factors(branch, x)[kept]
    assert not drops._factors.keys() - {(x.device, dtype)}


def test_only_clips_that_all_drop_drop_all():
    drops = Drops(NAMES, RATES, KEYS[:20], range(1))
    kept = drops.kept[3]
    first_kept = kept.index(True)
    assert BranchDrop(drops, 3, 0, first_kept).drops_all
    assert not BranchDrop(drops, 3, 0, first_kept + 1).drops_all


def test_engines_see_no_tensor_in_the_keys():
    assert not isinstance(HostKeys(KEYS), torch.Tensor)
