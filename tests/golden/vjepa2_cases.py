"""Weights and clips of the goldens of V-JEPA 2, drawn alike where goldens are made and where they are compared."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Heads of 20 channels: 6 turn with each axis, and 2 are left over.
WIDTH, DEPTH, HEADS, MLP_RATIO, PATCH, TUBELET = 40, 2, 2, 2.0, 8, 2


class Case(NamedTuple):
    """Clips of a size. frames: of a clip; rows, columns: of patches; grid: rows and columns of the square of patches
    that transformers counts positions in."""

    frames: int
    rows: int
    columns: int
    grid: int


CASES = {
    "square": Case(16, 4, 4, 4),
    "wide": Case(16, 2, 5, 5),
    "high": Case(8, 6, 1, 6),
    "long": Case(64, 2, 2, 2),
}
TOKEN_STEP = 5
"""Every so many tokens of a clip are in the goldens."""


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the encoder's weights by transformers' names."""
    hidden = int(WIDTH * MLP_RATIO)
    layer = {
        "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
        "mlp.fc1.weight": (hidden, WIDTH), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (WIDTH, hidden), "mlp.fc2.bias": (WIDTH,),
    }  # fmt: skip
    for part in ("query", "key", "value", "proj"):
        layer |= {f"attention.{part}.weight": (WIDTH, WIDTH), f"attention.{part}.bias": (WIDTH,)}
    shapes = {
        "encoder.embeddings.patch_embeddings.proj.weight": (WIDTH, 3, TUBELET, PATCH, PATCH),
        "encoder.embeddings.patch_embeddings.proj.bias": (WIDTH,),
        "encoder.layernorm.weight": (WIDTH,),
        "encoder.layernorm.bias": (WIDTH,),
    }
    return shapes | {f"encoder.layer.{n}.{name}": shape for n in range(DEPTH) for name, shape in layer.items()}


def draw_weights() -> dict[str, np.ndarray]:
    """Return the weights, float32, far enough from their usual starts that each of them is felt."""
    # The old generator, whose numbers are the same in every version of numpy.
    random, weights = np.random.RandomState(2), {}
    for name, shape in sorted(weight_shapes().items()):
        # Products keep the size of what goes in; attention is far from uniform.
        scale = 0.3 if len(shape) == 1 else 1.5 / np.sqrt(np.prod(shape[1:]))
        weights[name] = (random.standard_normal(shape) * scale + ("norm" in name and "weight" in name)).astype("f4")
    return weights


def draw_frames(name: str) -> np.ndarray:
    """Return the one clip of a case: uint8 [1, 3, frames, height, width]."""
    case = CASES[name]
    random = np.random.RandomState(list(CASES).index(name))
    return random.randint(0, 256, (1, 3, case.frames, case.rows * PATCH, case.columns * PATCH)).astype(np.uint8)
