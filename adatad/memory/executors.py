"""Executors that keep less than autograd would: blocks that are computed again in backward, and ranges run by waves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from adatad.models.adapter import Recompute
from adatad.models.backbone import PlainExecutor, VideoBackbone

KEPT = {
    "none": "autograd keeps what it wants",
    "selective": "kept are each block's input, its attention and what goes into the MLP's activation",
    "block": "kept is each block's input",
}

# Private names of PyTorch: one operator for each kernel that scaled_dot_product_attention may choose.
ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class CheckpointedExecutor(PlainExecutor):
    """Calls blocks as modules, each under its policy: none, selective or block (mode side: so are its adapters)."""

    policies: tuple[str, ...]
    """By block."""
    fc1_shape: tuple[int, int]
    """[out, in] of the MLP's first matrix. Taken before any engine shards it."""

    def recompute(self, index: int) -> Recompute | None:
        if self.policies[index] == "none" or not torch.is_grad_enabled():
            return None
        # Nothing in the model draws from a generator, so there is no random state to put back.
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        if self.policies[index] == "selective":
            return partial(again, context_fn=partial(create_selective_checkpoint_contexts, self.keeps()))
        return again

    def keeps(self) -> Callable[..., CheckpointPolicy]:
        """Return selective checkpointing's rule: which operators' results stay."""
        rows, columns = self.fc1_shape

        def keep(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
            # The MLP's first product is told from the others by the shape of its (transposed) matrix.
            into_mlp = operator is torch.ops.aten.addmm.default and tuple(inputs[2].shape) == (columns, rows)
            saved = into_mlp or operator in ATTENTION
            return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

        return keep

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """One line for each range of blocks."""
        lines, first = [], 0
        for policy, blocks in groupby(self.policies):
            last = first + len(list(blocks)) - 1
            if policy in KEPT:
                lines.append(f"blocks {first} to {last}: {policy}; {KEPT[policy]}")
            first = last + 1
        return lines


@dataclass(frozen=True, eq=False, kw_only=True)
class TiledExecutor(CheckpointedExecutor):
    """Runs the ranges of `passes` by waves, and the blocks between them as modules.

    Blocks of waves have policy tile in `policies`.
    """

    def __call__(self, backbone: VideoBackbone, frames: Tensor, keys: Tensor | None = None) -> Tensor:
        batch, clips = len(frames), frames.shape[2] // backbone.clip_frames
        drops = backbone.draw_drops(keys, clips, self.halo_exchange.first_clip)
        waves = {wave_pass.settings.first: wave_pass for wave_pass in self.passes}
        tokens, index = None, 0
        while index < len(backbone.blocks):
            if index in waves:
                # The first range reads frames itself, tile by tile; tokens of whole windows are never made for it.
                tokens = waves[index](frames if tokens is None else tokens, batch, clips, drops)
                index = waves[index].settings.last + 1
                continue
            tokens = backbone.embed(backbone.cut_clips(frames)) if tokens is None else tokens
            tokens = self.run_block(backbone, index, tokens, batch, drops)
            index += 1
        # A wave through the last block has averaged its tiles itself.
        return tokens if self.policies[-1] == "tile" else backbone.join(tokens, batch)

    def lines(self) -> list[str]:
        return [*super().lines(), *map(str, self.passes)]
