"""Pretrained backbone weights in the project's own form: a safetensors file of VideoBackbone's parameter names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from adatad.errors import UserError
from adatad.models.backbone import VideoBackbone


class WeightsError(UserError):
    """A weight file that doesn't fit; the message names the file and what differs."""


def load_backbone_weights(backbone: VideoBackbone, path: str | Path) -> None:
    """Copy a file's weights into the backbone; adapters keep theirs. Nothing is changed on an error."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}") from error
    wanted = {name: p for name, p in backbone.named_parameters() if "adapter" not in name}
    problems = [f"missing {name}" for name in wanted.keys() - weights.keys()]
    problems += [f"unknown {name}" for name in weights.keys() - wanted.keys()]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(parameter.shape)}"
        for name, parameter in wanted.items()
        if name in weights and weights[name].shape != parameter.shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8])
        raise WeightsError(f"{path}: doesn't fit the backbone ({len(problems)} differences): {shown}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
