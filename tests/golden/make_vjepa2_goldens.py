"""Make the goldens of V-JEPA 2's encoder with the implementation in transformers (an extra, `dev`):

    python tests/golden/make_vjepa2_goldens.py tests/golden/vjepa2.npz

Run only when the cases change, never to make a test pass. transformers counts positions in a square of patches; frames
of another shape are given to it as the tokens of a part of such a square, by their numbers in it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# transformers takes it for absent: nothing here needs torchvision, and one made for another torch can't be imported.
sys.modules["torchvision"] = None
from transformers import VJEPA2Config, VJEPA2Model  # noqa: E402
from vjepa2_cases import CASES, DEPTH, HEADS, MLP_RATIO, PATCH, TOKEN_STEP, TUBELET, WIDTH, draw_frames, draw_weights  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(grid: int, frames: int) -> VJEPA2Model:
    """Return transformers' model with the weights of the goldens; its predictor's are random, and unused."""
    config = VJEPA2Config(
        patch_size=PATCH, crop_size=grid * PATCH, frames_per_clip=frames, tubelet_size=TUBELET, hidden_size=WIDTH,
        num_attention_heads=HEADS, num_hidden_layers=DEPTH, mlp_ratio=MLP_RATIO, attn_implementation="eager",
        pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1,
    )  # fmt: skip
    model = VJEPA2Model(config).eval()
    weights = {name: torch.from_numpy(array) for name, array in draw_weights().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith("predictor.") for name in missing)
    return model


@torch.no_grad()
def tokens_of(name: str) -> Tensor:
    """Return the tokens behind the encoder's norm: [l, c]."""
    case, frames = CASES[name], torch.from_numpy(draw_frames(name))
    model = build(case.grid, case.frames)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    pixels = ((frames / 255.0 - mean) / std).transpose(1, 2)
    time, row, column = torch.meshgrid(
        torch.arange(case.frames // TUBELET), torch.arange(case.rows), torch.arange(case.columns), indexing="ij"
    )
    numbers = ((time * case.grid + row) * case.grid + column).flatten()[None]
    hidden = model.encoder.embeddings(pixels)
    for layer in model.encoder.layer:
        hidden = layer(hidden, numbers)[0]
    tokens = model.encoder.layernorm(hidden)
    if case.rows == case.columns == case.grid:
        # Where no part of a square is asked for, it is what the whole model says.
        whole = model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        torch.testing.assert_close(tokens, whole, rtol=0, atol=1e-6)
    return tokens[0]


def main() -> None:
    """Write the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    arrays = {}
    for name in CASES:
        tokens = tokens_of(name)
        arrays[f"{name}.tokens"] = tokens[::TOKEN_STEP].numpy()
        arrays[f"{name}.means"] = tokens.unflatten(0, (CASES[name].frames // TUBELET, -1)).mean(1).numpy()
    np.savez_compressed(parser.parse_args().output, **arrays)


if __name__ == "__main__":
    main()
