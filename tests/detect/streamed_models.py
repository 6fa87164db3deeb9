"""Tiny untrained detectors, and moving pictures for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import adatad
from adatad.library import Detector
from adatad.spec import Spec

CLASSES = ("pour", "stir")


def spec_of(mode: str = "adapter", memory: str = "none", window: dict[str, Any] | None = None, **more: Any) -> Spec:
    """A spec of a backbone of two blocks at 32 pixels, with clips of 8 frames and windows of 32 positions."""
    return Spec.model_validate(
        {
            "name": "streamed",
            "data": {
                "annotations": "", "videos": "", "size_pixels": 32,
                "window": {"size_grid": 32, "stride_frames": 1, "overlap": 0.5, **(window or {})},
            },
            "model": {
                "backbone": {
                    "width": 16, "depth": 2, "heads": 2, "patch": 16, "mlp_ratio": 2, "position_grid": 2,
                    "clip_frames": 8, "mode": mode, "weights": "random",
                },
                "detector": {
                    "width": 16, "heads": 2, "stem_blocks": 1, "branch_blocks": 2, "max_length": 32,
                    "regression_ranges": [[0, 4], [4, 8], [8, 10000]],
                },
            },
            "memory": {"policy": memory},
            "train": {"seed": 3},
            "postprocess": {"nms": {"max_segments": 200}},
            **more,
        }
    )  # fmt: skip


def detector_of(*arguments: Any, **changes: Any) -> Detector:
    """An untrained detector on the CPU whose adapters do something."""
    detector = adatad.build_detector(spec_of(*arguments, **changes), CLASSES, "cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in detector.module.named_parameters():
            # Zero at the start, and scores far from the threshold.
            if "adapter" in name or name.endswith("head.bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return detector


def pictures(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Frames of noise that changes little from one to the next: uint8 [count, side, side, 3]."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(0, 12, (count, 4, 4, 3)), axis=0) + 128
    return np.kron(np.clip(walk, 0, 255).astype(np.uint8), np.ones((1, side // 4, side // 4, 1), np.uint8))
