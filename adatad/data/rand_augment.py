"""RandAugment as the reference sets it: two of fifteen operations, at level 0.9 of their strength.

The two are drawn for a sample and act on all of its frames, in the order of the list.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from torch import Tensor

from adatad.data import image_ops, warp
from adatad.data.draws import generator

Kind = Literal[
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "posterize", "solarize", "color", "contrast",
    "brightness", "sharpness", "autocontrast", "equalize", "invert", "cut_out",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
STRENGTHS: dict[Kind, float] = {
    "shear_x": 15.471, "shear_y": 15.471, "translate_x": 0.18, "translate_y": 0.18, "rotate": 27.0, "posterize": 3,
    "solarize": 230, "color": 1.72, "contrast": 1.72, "brightness": 1.72, "sharpness": 1.72, "cut_out": 0.18,
}  # fmt: skip
"""Degrees; shares of width or height; bits left; first level that is inverted; factors; share of the height."""
SIGNED: tuple[Kind, ...] = KINDS[:5]
"""Operations that go one way or the other."""
OPERATIONS = 2
"""Operations of a sample."""


class Operation(NamedTuple):
    """strength: of STRENGTHS, with a sign; center: (x, y) of the square that is cut out, as shares of the frame."""

    kind: Kind
    strength: float = 0.0
    center: tuple[float, float] = (0.5, 0.5)


def draw_operations(seed: int, epoch: int, sample: int, draw_once_per_run: bool) -> tuple[Operation, ...]:
    """The operations of a sample. draw_once_per_run: shear, shift and turn all samples of a run the same way."""
    draw = generator(seed, epoch, sample, "rand_augment")
    chosen = sorted(draw.choice(len(KINDS), OPERATIONS, replace=False).tolist())
    sign_draw = generator(seed, 0, 0, "rand_augment signs of the run") if draw_once_per_run else draw
    signs = dict(zip(SIGNED, sign_draw.choice((-1.0, 1.0), len(SIGNED)).tolist(), strict=True))
    x, y = draw.random(2).tolist()
    return tuple(
        Operation(kind, STRENGTHS.get(kind, 0.0) * signs.get(kind, 1.0), (x, y) if kind == "cut_out" else (0.5, 0.5))
        for kind in (KINDS[number] for number in chosen)
    )


def apply_operation(frames: Tensor, operation: Operation) -> Tensor:
    """frames: uint8 [3, n, h, w], of one sample -> the same."""
    strength = operation.strength
    match operation.kind:
        case "shear_x":
            return warp.shear_x(frames, strength)
        case "shear_y":
            return warp.shear_y(frames, strength)
        case "translate_x":
            return warp.translate_x(frames, strength)
        case "translate_y":
            return warp.translate_y(frames, strength)
        case "rotate":
            return warp.rotate(frames, strength)
        case "posterize":
            return image_ops.posterize(frames, int(strength))
        case "solarize":
            return image_ops.solarize(frames, int(strength))
        case "color":
            return image_ops.adjust_color(frames, strength)
        case "contrast":
            return image_ops.adjust_contrast(frames, strength)
        case "brightness":
            return image_ops.adjust_brightness(frames, strength)
        case "sharpness":
            return image_ops.adjust_sharpness(frames, strength)
        case "autocontrast":
            return image_ops.autocontrast(frames)
        case "equalize":
            return image_ops.equalize(frames)
        case "invert":
            return image_ops.invert(frames)
        case "cut_out":
            return warp.cut_out(frames, strength, operation.center)
