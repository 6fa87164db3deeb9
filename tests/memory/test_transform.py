"""A block's weights as its tiles use them."""

import pytest
import torch
from small_backbones import batch, build, error, gradients, under

from adatad.memory import transform
from adatad.memory.transform import BlockWeights

TILE = {"policy": "tile", "tile_clips": 1, "segment_blocks": 2}


@pytest.mark.parametrize(
    "changes", [{}, {"recompute": "twice"}, {"order": "blocks"}], ids=["hold", "rebuild", "blocks"]
)
def test_weights_cast_once_a_segment_give_the_bits_of_casts_at_every_use(changes, monkeypatch):
    backbone, (frames, keys) = build("full", torch.float32), batch(windows=2, clips=3)
    once = gradients(under(backbone, torch.bfloat16, **TILE, **changes), frames, keys)
    # Autocast casts what isn't cast yet.
    monkeypatch.setattr(transform, "_cast", lambda parameter, dtype: parameter)
    every_time = gradients(under(backbone, torch.bfloat16, **TILE, **changes), frames, keys)
    assert all(torch.equal(once[name], tensor) for name, tensor in every_time.items())
    assert all(tensor.dtype == torch.float32 for tensor in once.values())


@pytest.mark.parametrize("order", ["tiles", "blocks"])
def test_weights_are_cast_once_forward_and_once_a_segment_going_back(order, monkeypatch):
    made, alive = [], []
    start, release = BlockWeights.__init__, transform.Transform.release

    def count(self, block, dtype):
        made.append(block)
        start(self, block, dtype)

    def look(self, blocks):
        alive.append(len(self._weights))
        release(self, blocks)

    monkeypatch.setattr(BlockWeights, "__init__", count)
    monkeypatch.setattr(transform.Transform, "release", look)
    backbone, (frames, keys) = build("full", torch.float32), batch(windows=2, clips=3)
    waved = under(backbone, torch.bfloat16, order=order, **TILE)
    gradients(waved, frames, keys)
    blocks = [id(block) for block in waved.blocks]
    assert [id(block) for block in made] == [*blocks, *blocks[2:], *blocks[:2]]
    assert max(alive) == (len(blocks) if order == "tiles" else TILE["segment_blocks"])
    # Forward, then the segments.
    assert alive[-2:] == [2, 2]


def test_one_trained_bias_beside_frozen_ones_gets_its_gradient_alone():
    backbone, (frames, keys) = build("full"), batch()
    for index, block in enumerate(backbone.blocks):
        block.attn.q_bias.requires_grad_(index % 2 == 0)
        block.attn.v_bias.requires_grad_(index < 2)
    truth = gradients(backbone, frames, keys)
    assert error(gradients(under(backbone, **TILE), frames, keys), truth) < 1e-10
