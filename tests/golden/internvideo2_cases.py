"""Weights and clips of the goldens of InternVideo2 and InternVideo-Next, drawn alike where goldens are made and where
they are compared."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WIDTH, DEPTH, HEADS, MLP_RATIO, PATCH, GRID = 24, 2, 2, 2.0, 8, 4


class Case(NamedTuple):
    """Clips of a size. preset: of the architecture; frames: of a clip, and of the table of positions; separate: the
    table comes in three parts; class_tokens: of a clip."""

    preset: str
    frames: int
    separate: bool = False
    class_tokens: int = 1


CASES = {
    "joint": Case("internvideo2-1b", 8),
    "separate": Case("internvideo2-1b", 4, separate=True),
    "next": Case("internvideo-next-base", 4, class_tokens=4),
}
TOKEN_STEP = 5
"""Every so many tokens of a clip are in the goldens."""


def weight_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the encoder's weights by its authors' names."""
    hidden, row = int(WIDTH * MLP_RATIO), (WIDTH,)
    block = {
        "norm1.weight": row, "norm2.weight": row, "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.q_norm.weight": row, "attn.k_norm.weight": row, "ls1.gamma": row, "ls2.gamma": row,
        "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": row, "mlp.fc1.weight": (hidden, WIDTH),
        "mlp.fc1.bias": (hidden,), "mlp.fc2.weight": (WIDTH, hidden), "mlp.fc2.bias": row,
    }  # fmt: skip
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, 1, PATCH, PATCH),
        "patch_embed.proj.bias": row,
        "cls_token": (1, case.class_tokens, WIDTH),
    }
    if case.class_tokens > 1:
        shapes |= {"patch_embed.norm.weight": row, "patch_embed.norm_before.weight": (3 * PATCH**2,)}
    if case.separate:
        parts = {"spatial": GRID**2, "temporal": case.frames, "cls": 1}
        shapes |= {f"pos_embed_{name}": (1, count, WIDTH) for name, count in parts.items()}
    else:
        shapes["pos_embed"] = (1, case.class_tokens + case.frames * GRID**2, WIDTH)
    return shapes | {f"blocks.{n}.{name}": shape for n in range(DEPTH) for name, shape in block.items()}


def draw_weights(name: str) -> dict[str, np.ndarray]:
    """Return a case's weights, float32, far enough from their usual starts that each of them is felt."""
    # The old generator, whose numbers are the same in every version of numpy.
    random, weights = np.random.RandomState(3), {}
    for key, shape in sorted(weight_shapes(CASES[name]).items()):
        is_matrix = len(shape) > 1 and shape[0] > 1
        # Products keep the size of what goes in; attention is far from uniform.
        scale = 1.5 / np.sqrt(np.prod(shape[1:])) if is_matrix else 0.5
        weights[key] = (random.standard_normal(shape) * scale + ("norm" in key)).astype("f4")
    return weights


def draw_frames(name: str) -> np.ndarray:
    """Return the one clip of a case: uint8 [1, 3, frames, height, width]."""
    random = np.random.RandomState(list(CASES).index(name))
    return random.randint(0, 256, (1, 3, CASES[name].frames, GRID * PATCH, GRID * PATCH)).astype(np.uint8)
