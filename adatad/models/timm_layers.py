"""timm's layers, importable wherever torch is.

timm imports torchvision, whose import fails when its compiled operators don't load: a torchvision built for CUDA beside
a CPU-only torch, which is what the package index gives a machine without a GPU. Nothing here needs those operators, so
the declarations that the import misses are made beforehand.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    _declaration = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _declaration.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.layers import Mlp, trunc_normal_

__all__ = ["Mlp", "trunc_normal_"]
