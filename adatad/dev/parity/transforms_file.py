"""Golden transforms of frames: transforms.json with its arrays; resizing, cropping, flips, colors, normalization."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adatad.data.augment import Augmentation, ColorJitter, Operation, augment
from adatad.data.resize import Box, center_box, first_fitting, fit_frames, resize, short_side_size
from adatad.dev.parity.comparison import TOLERANCES, Comparison, difference, largest, mismatch, rows_of_cases
from adatad.dev.parity.golden_cases import CaseError, read_arrays
from adatad.models.families import build_backbone
from adatad.spec.model_sections import BackboneSpec

RESIZES = ("resize_short_side", "resize_exact_wh", "short_side_then_center_crop")
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
VARIANTS = ("_neg", "_lowcontrast")
"""Suffixes of names that tell another input or sign, not another operation."""


def run_transforms(content: dict[str, Any], folder: Path) -> list[Comparison]:
    """Return every comparison of a transforms.json. Raises CaseError for missing arrays and unknown operations."""
    arrays = read_arrays(folder / "transforms.npz")
    return [
        *rows_of_cases(content.get("cases", ()), partial(_transform, arrays=arrays), "transform"),
        *rows_of_cases(content.get("augment_ops", ()), partial(_operation, arrays=arrays), "augment"),
        *rows_of_cases(content.get("sizes", ()), _size, "size"),
        *rows_of_cases(content.get("crop_boxes", ()), _crop_box, "crop box"),
        *rows_of_cases(
            [content["normalize"]] if "normalize" in content else [], partial(_normalize, arrays=arrays), "normalize"
        ),
    ]


def _transform(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[Comparison]:
    name, op = case["name"], case["op"]
    # Frames are arrays of their own: "name.in0", "name.out0", ...
    images, expected = (
        np.stack([arrays[f"{name}.{end}{number}"] for number in range(case["frames"])]) for end in ("in", "out")
    )
    if box := our_box(case):
        yield _row(name, "box", mismatch(list(box), case["box"]), "exact")
    ours = transformed(images, case).permute(1, 2, 3, 0).numpy()
    errors = difference(ours, expected)
    if op == "color_jitter":
        # Hue turns in steps: a few values may land on the next one.
        yield _row(name, "share of values off", float((errors > 2).mean()), "recolored_share")
    else:
        yield _row(name, op, largest(errors.ravel()), "level" if op in RESIZES else "exact")


def our_box(case: dict[str, Any]) -> Box | None:
    """Return the box that we crop from the middle, if the case's operation does that."""
    height, width = case["in_hw"]
    match case["op"]:
        case "center_crop":
            return center_box(height, width, case["size"])
        case "short_side_then_center_crop":
            return center_box(*short_side_size(height, width, case["size"]), case["size"])
    return None


def transformed(images: np.ndarray, case: dict[str, Any]) -> Tensor:
    """Transform uint8 [n, h, w, 3] into uint8 [3, n, height, width] by the functions of the loader and the training
    loop."""
    height, width = images.shape[1:3]
    match case["op"]:
        case "resize_short_side":
            return torch.from_numpy(resize(images, *short_side_size(height, width, case["size"])))
        case "resize_exact_wh":
            # The case has (width, height), we have (height, width).
            return torch.from_numpy(resize(images, *reversed(case["size"])))
        case "center_crop" | "random_area_crop":
            return torch.from_numpy(resize(images, height, width, our_box(case) or Box(*case["box"])))
        case "short_side_then_center_crop":
            return fit_frames(images, case["size"])
        case "horizontal_flip":
            return changed(images, Augmentation(flip=True, operations=(), jitter=None))
        case "color_jitter":
            factors = (case[name] for name in ("brightness", "contrast", "saturation", "hue"))
            return changed(images, Augmentation(False, (), ColorJitter(*factors, tuple(case["order"]))))
        case op:
            raise CaseError(f"case {case['name']}: {op!r} isn't a transform that there is")


def changed(images: np.ndarray, augmentation: Augmentation) -> Tensor:
    """Augment uint8 [n, h, w, 3] into uint8 [3, n, h, w]."""
    frames = torch.from_numpy(images.transpose(3, 0, 1, 2).copy())
    return augment(frames[None], [augmentation], frames.device)[0]


def _operation(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[Comparison]:
    operation = operation_of(case)
    ours = changed(arrays[case["input"]][None], Augmentation(False, (operation,), None))[:, 0].permute(1, 2, 0)
    errors = difference(ours.numpy(), arrays[case["output"]])
    if operation.kind in GEOMETRIC:
        # Warps interpolate in their own way; the mean tells a wrong direction or centre.
        yield _row(f"augment {case['name']}", "mean level", float(errors.mean()), "warped_level")
    else:
        yield _row(f"augment {case['name']}", "level", largest(errors.ravel()), "exact")


def operation_of(case: dict[str, Any]) -> Operation:
    """Return the operation of a case in our own terms."""
    name, params = case["name"], case["params"]
    # "rotate_neg" is a rotation by a negative angle, which the parameters tell.
    for end in VARIANTS:
        name = name.removesuffix(end)
    match name, params:
        case "shear_x" | "shear_y", {"shear": degrees}:
            return Operation(name, degrees)
        case "translate_x" | "translate_y", {"percent": share}:
            return Operation(name, share)
        case "rotate", {"rotate": degrees}:
            return Operation("rotate", degrees)
        case "posterize", {"nb_bits": bits}:
            return Operation("posterize", bits)
        case "solarize", {"threshold": threshold}:
            return Operation("solarize", threshold)
        case "enhance_color" | "enhance_contrast" | "enhance_brightness" | "enhance_sharpness", {"factor": factor}:
            return Operation(name.removeprefix("enhance_"), factor)
        case "autocontrast", {"cutoff": 0.0}:
            return Operation("autocontrast")
        case "equalize" | "invert", _:
            return Operation(name)
    raise CaseError(f"augment {case['name']}: with {params} isn't an operation that there is")


def _size(case: dict[str, Any]) -> Iterator[Comparison]:
    (height, width), short = case["in_hw"], case["short"]
    name, ours = f"size {height} x {width} to {short}", short_side_size(height, width, short)
    yield _row(name, "height and width", mismatch(list(ours), case["out_hw"]), "exact")
    if "center_box" in case:
        yield _row(name, "box", mismatch(list(center_box(*ours, short)), case["center_box"]), "exact")


def _crop_box(case: dict[str, Any]) -> Iterator[Comparison]:
    (height, width), expected = case["in_hw"], Box(*case["box"])
    name = f"crop box in {height} x {width}"
    if "aspects" in case:
        size = first_fitting(height, width, case["aspects"], case["area_fractions"])
        # Where no candidate fits, the square in the middle is cut out, whether or not the case says "fallback".
        if size is not None:
            yield _row(name, "height and width", mismatch(size, (expected.height, expected.width)), "exact")
            return
    yield _row(name, "box", mismatch(center_box(height, width, min(height, width)), expected), "exact")


def _normalize(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[Comparison]:
    backbone = build_backbone(BackboneSpec(preset="tiny"))  # any: all normalize alike
    clip = torch.from_numpy(arrays[case["input"]]).permute(2, 0, 1)[None, :, None]
    errors = difference(backbone.normalize(clip)[0, :, 0].numpy(), arrays[case["output"]])
    yield _row("normalize", "values", largest(errors.ravel()), "normalized")


def _row(case: str, quantity: str, error: float, kind: str) -> Comparison:
    return Comparison(case, quantity, error, TOLERANCES[kind])
