"""Branches that stochastic depth drops aren't computed, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F
from small_backbones import batch, build, error, gradients, under

from adatad.memory import wave_state
from adatad.models.keyed_dropout import BranchDrop, Drops

TILE = {"policy": "tile", "tile_clips": 1, "segment_blocks": 3}
POLICIES = {
    "none": {},
    "block": {"policy": "block"},
    "hold": TILE,
    "rebuild": {**TILE, "recompute": "twice"},
    "pairs": {**TILE, "tile_clips": 2},
}


def computed(backbone, frames, keys, monkeypatch) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients, and how often attention ran."""
    runs, attention = [], F.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda *qkv: runs.append(qkv) or attention(*qkv))
        return gradients(backbone, frames, keys), len(runs)


@pytest.mark.parametrize("mode", ["adapter", "full"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_dropped_branch_is_left_out_with_the_same_bits(policy, mode, monkeypatch):
    backbone, (frames, keys) = build(mode, torch.float32, drop_path=0.7), batch(windows=2, clips=3)
    backbone = under(backbone, torch.float32, **POLICIES[policy])
    less, runs = computed(backbone, frames, keys, monkeypatch)
    monkeypatch.setattr(BranchDrop, "drops_all", False)
    more, all_runs = computed(backbone, frames, keys, monkeypatch)
    for name, tensor in more.items():
        assert torch.equal(less[name], tensor), name
    # Over whole windows some clip keeps nearly every branch.
    assert runs < all_runs or policy in ("none", "block")


@pytest.mark.parametrize("mode", ["adapter", "full"])
@pytest.mark.parametrize("policy", POLICIES)
def test_what_every_clip_drops_gets_a_gradient_of_zero(policy, mode, monkeypatch):
    """An optimizer passes over weights without a gradient, and engines wait for one."""
    backbone, (frames, keys) = build(mode, drop_path=0.5), batch(windows=1, clips=3)
    drawn = Drops._is_kept
    last = 2 * len(backbone.blocks) - 1

    def without_the_last(self, keys):
        kept = drawn(self, keys)
        kept[last] = False
        return kept

    monkeypatch.setattr(Drops, "_is_kept", without_the_last)
    truth = gradients(backbone, frames, keys)
    ours = gradients(under(backbone, **POLICIES[policy]), frames, keys)
    assert error(ours, truth) < 1e-10
    if mode == "full":
        assert not ours[f"blocks.{len(backbone.blocks) - 1}.mlp.fc1.weight"].any()


def test_ranks_share_sums_in_one_order_whatever_they_drop(monkeypatch):
    """Ranks meet in this exchange, one weight after the other."""
    backbone, (frames, _) = build("full", drop_path=0.7), batch(clips=3)
    waved, orders = under(backbone, **TILE), set()
    for key in range(4):
        shared = []
        monkeypatch.setattr(
            wave_state, "part_of_sum", lambda total, weight, shared=shared: shared.append(weight) or total
        )
        gradients(waved, frames, torch.tensor([key]))
        orders.add(tuple(map(id, shared)))
    assert len(orders) == 1
