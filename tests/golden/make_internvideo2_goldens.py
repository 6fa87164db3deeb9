"""Make the goldens of InternVideo2's and InternVideo-Next's encoders with their authors' own code:

    python tests/golden/make_internvideo2_goldens.py FOLDER tests/golden/internvideo2.npz

FOLDER holds `internvideo2.py`, `InternVideo_next.py` and `pos_embed.py` of OpenGVLab/InternVideo (its folders
InternVideo2/single_modality/models and InternVideo-Next/models), which are no part of this repository; einops must be
there, too. Run only when the cases change, never to make a test pass. Of the code's two ways to compute, with fused
kernels of flash_attn or with PyTorch's, this is the second one, so that flash_attn isn't needed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from internvideo2_cases import CASES, DEPTH, GRID, HEADS, MLP_RATIO, PATCH, TOKEN_STEP, WIDTH, draw_frames, draw_weights
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ABSENT: dict[str, dict[str, Any]] = {
    "flash_attn": {}, "flash_attn.modules": {}, "flash_attn.modules.mlp": {"FusedMLP": None},
    "flash_attn.ops": {}, "flash_attn.ops.rms_norm": {"DropoutAddRMSNorm": None},
    "authors.flash_attention_class": {"FlashAttention": None},
    # What is needed of timm, whose import wants torchvision.
    "timm": {}, "timm.models": {}, "timm.models.registry": {"register_model": lambda function: function},
    "timm.models.layers": {
        "DropPath": lambda rate: nn.Identity(), "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
        "trunc_normal_": nn.init.trunc_normal_,
    },
}  # fmt: skip
"""Modules that the authors' code imports, as far as it uses them here."""


def import_authors(folder: Path) -> tuple[ModuleType, ModuleType]:
    """Return the authors' modules of both models."""
    package = ModuleType("authors")
    package.__path__ = [str(folder)]
    sys.modules["authors"] = package
    for name, values in ABSENT.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(values)
        sys.modules[name] = module
    return tuple(importlib.import_module(f"authors.{name}") for name in ("internvideo2", "InternVideo_next"))


@torch.no_grad()
def tokens_of(name: str, first: ModuleType, following: ModuleType) -> Tensor:
    """Return all tokens behind the last block: [l, c]."""
    case = CASES[name]
    module = first if case.class_tokens == 1 else following
    model = module.InternVideo2(
        patch_size=PATCH, img_size=GRID * PATCH, embed_dim=WIDTH, num_heads=HEADS, mlp_ratio=MLP_RATIO, depth=DEPTH,
        use_flash_attn=False, use_fused_rmsnorm=False, use_fused_mlp=False, attn_pool_num_heads=2, clip_embed_dim=8,
        num_frames=case.frames, sep_pos_embed=case.separate, layerscale_no_force_fp32=True,
    ).eval()  # fmt: skip
    weights = {key: torch.from_numpy(array) for key, array in draw_weights(name).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith(("clip_projector.", "fc_norm.", "head.")) for key in missing)
    found: list[Tensor] = []
    # What goes into the projector are the last block's tokens.
    model.clip_projector.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    pixels = (torch.from_numpy(draw_frames(name)) / 255.0 - mean) / std
    model(pixels, **({"projected": True} if case.class_tokens > 1 else {}))
    return found[0][0]


def main() -> None:
    """Write the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    options, arrays = parser.parse_args(), {}
    modules = import_authors(options.folder)
    for name, case in CASES.items():
        tokens = tokens_of(name, *modules)
        arrays[f"{name}.tokens"] = tokens[::TOKEN_STEP].numpy()
        arrays[f"{name}.means"] = tokens[case.class_tokens :].unflatten(0, (case.frames, -1)).mean(1).numpy()
    np.savez_compressed(options.output, **arrays)


if __name__ == "__main__":
    main()
