"""What a training step keeps of the backbone's activations, applied to a model from outside.

none: everything autograd wants. selective: of every block its input, the attention's output and the MLP's value before
its activation; the rest is computed again in backward. block: of every block its input. tile: the wave
(`adatad.memory.wave`). No policy changes what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from adatad.memory.coded import encode_frozen_
from adatad.memory.offload import GIB
from adatad.memory.side import SideTimeline
from adatad.memory.streamed import StreamedBlocks
from adatad.memory.tiled import BlockRange, TiledTimeline, WavePass
from adatad.memory.tiles import default_segment_blocks, default_tile_clips
from adatad.memory.wave import WaveSettings
from adatad.models.backbone import VideoBackbone
from adatad.spec.clip_share import clips_of_window
from adatad.spec.schema import DataSpec, MemorySpec

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}

ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def apply_policy(
    backbone: VideoBackbone,
    memory: MemorySpec,
    data: DataSpec,
    arithmetic: torch.dtype,
    sharded: bool = False,
    clip_ranks: int = 1,
) -> None:
    """Make `backbone` run under the spec's policy. What is trained must be fixed; before any engine wraps the model.

    arithmetic: dtype of the run (autocast's), which is that of tiles unless the spec says otherwise. sharded: whether
    the engine will shard frozen weights. clip_ranks: ranks that share a window.
    """
    if memory.order == "auto":
        one_at_a_time = sharded or memory.frozen_weights == "stream" or memory.frozen_dtype != "auto"
        memory = memory.model_copy(update={"order": "blocks" if one_at_a_time else "tiles"})
    ranges = policy_ranges(memory, len(backbone.blocks))
    if backbone.mode == "side":
        _apply_to_side(backbone, memory, data, arithmetic, clip_ranks)
        _place(backbone, memory)
        return
    tiled = [BlockRange(first, last, None) for first, last, _ in ranges]
    for blocks, (first, last, policy) in zip(tiled, ranges, strict=True):
        if policy == "tile":
            blocks.wave = wave_settings(backbone, memory, data, arithmetic, clip_ranks, first, last)
            cast_frozen_(backbone, first, last, blocks.wave.dtype)
            if memory.frozen_dtype != "auto":
                encode_frozen_(backbone.blocks[first : last + 1], memory.frozen_dtype)
            continue
        cast_for_autocast_(backbone, first, last, memory, arithmetic)
        if policy != "none":
            for block in backbone.blocks[first : last + 1]:
                _recompute(block, _keeps_of(block) if policy == "selective" else None)
    if any(blocks.wave for blocks in tiled):
        backbone.timeline = TiledTimeline(backbone, tiled)
        _place(backbone, memory)


def _place(backbone: VideoBackbone, memory: MemorySpec) -> None:
    """Frozen weights out of the device, and how much host memory each pass may take."""
    passes = wave_passes(backbone)
    for wave_pass in passes:
        if memory.host_limit_gib is not None:
            wave_pass.host_limit_bytes = int(memory.host_limit_gib * GIB / len(passes))
        if memory.frozen_weights == "stream":
            first, last = wave_pass.settings.first, wave_pass.settings.last
            blocks = StreamedBlocks(backbone.blocks[first : last + 1], first, backbone.patch_embed.weight)
            wave_pass.residency = blocks


def wave_passes(backbone: VideoBackbone) -> list[WavePass]:
    """Those that run ranges of the backbone after `apply_policy`; engines that shard set their residency."""
    match backbone.timeline:
        case TiledTimeline(passes=passes):
            return [wave_pass for wave_pass in passes if wave_pass is not None]
        case SideTimeline(stream=stream):
            return [stream]
        case _:
            return []


def policy_ranges(memory: MemorySpec, depth: int) -> list[tuple[int, int, str]]:
    """(first block, last block, policy) of consecutive ranges that cover the backbone."""
    if memory.policy == "auto":
        raise ValueError("memory.policy auto: the planner's choice must take its place first")
    if isinstance(memory.policy, str):
        return [(0, depth - 1, memory.policy)]
    return [(blocks.first, blocks.last, blocks.policy) for blocks in memory.policy]


def wave_settings(
    backbone: VideoBackbone,
    memory: MemorySpec,
    data: DataSpec,
    arithmetic: torch.dtype,
    clip_ranks: int,
    first: int,
    last: int,
) -> WaveSettings:
    """The spec's settings, with the best tile and segment for this backbone and window where it leaves them open."""
    positions = (data.size_pixels // backbone.patch) ** 2
    clips = -(-clips_of_window(data, backbone.clip_frames) // clip_ranks)
    tile_clips = memory.tile_clips or default_tile_clips(backbone.clip_tubelets * positions, backbone.width, clips)
    hold = memory.recompute == "once"
    trained = [i for i in range(first, last + 1) if any(p.requires_grad for p in backbone.blocks[i].parameters())]
    span = last + 1 - min(trained, default=first)
    mlp_ratio = backbone.blocks[0].mlp.fc1.out_features / backbone.width
    dtype = DTYPES.get(memory.weight_dtype, arithmetic)
    return WaveSettings(
        first=first,
        last=last,
        tile_clips=min(tile_clips, clips),
        segment_blocks=memory.segment_blocks or default_segment_blocks(span, clips, tile_clips, mlp_ratio, hold),
        hold=hold,
        block_by_block=memory.order == "blocks",
        dtype=dtype,
        residual=DTYPES.get(memory.residual_dtype, dtype),
        rows_on_host=memory.saved_inputs == "host",
        rows_coded=memory.saved_input_dtype == "fp8",
        halos_on_host=memory.halos == "host",
        compiled=memory.compile,
    )


def cast_frozen_(backbone: VideoBackbone, first: int, last: int, dtype: torch.dtype, norms: bool = True) -> None:
    """Frozen weights of a range of blocks, and of the patch embedding before the first, to `dtype`; trained ones keep
    theirs."""
    modules: list[nn.Module] = list(backbone.blocks[first : last + 1])
    if first == 0:
        modules.append(backbone.patch_embed)
    for name, parameter in (named for module in modules for named in module.named_parameters()):
        if not parameter.requires_grad and (norms or not name.startswith("norm")):
            parameter.data = parameter.data.to(dtype)


def cast_for_autocast_(
    backbone: VideoBackbone, first: int, last: int, memory: MemorySpec, arithmetic: torch.dtype
) -> None:
    """Cast once what autocast would cast at every use, to the same bits. Norms stay: autocast computes them in fp32."""
    if memory.weight_dtype == "auto" and arithmetic in (torch.bfloat16, torch.float16):
        cast_frozen_(backbone, first, last, arithmetic, norms=False)


def _apply_to_side(
    backbone: VideoBackbone, memory: MemorySpec, data: DataSpec, arithmetic: torch.dtype, clip_ranks: int
) -> None:
    """The backbone runs without a graph; what can be computed again is the adapters beside it."""
    if memory.policy == "tile":
        settings = wave_settings(backbone, memory, data, arithmetic, clip_ranks, 0, max(backbone.adapter_blocks))
        cast_frozen_(backbone, settings.first, settings.last, settings.dtype)
        if memory.frozen_dtype != "auto":
            encode_frozen_(backbone.blocks[settings.first : settings.last + 1], memory.frozen_dtype)
        backbone.timeline = SideTimeline(backbone, settings)
        return
    cast_for_autocast_(backbone, 0, len(backbone.blocks) - 1, memory, arithmetic)
    if memory.policy != "none":
        for adapter in backbone.side_adapters:
            _recompute(adapter, None)


def _recompute(module: nn.Module, keep: Callable | None) -> None:
    """Keep the module's inputs, and what `keep` says; compute the rest again in backward."""
    run = module.forward
    # Nothing in the model draws from a generator, so there is no random state to put back.
    again = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    if keep is not None:
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, keep))

    def forward(*inputs: Any) -> Tensor:
        return again(*inputs) if torch.is_grad_enabled() else run(*inputs)

    module.forward = forward


def _keeps_of(block: nn.Module) -> Callable:
    """Selective checkpointing's rule for a block: which operators' results stay."""
    mlp_shape = block.mlp.fc1.weight.shape

    def keep(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
        into_mlp = operator is torch.ops.aten.addmm.default and tuple(inputs[2].shape) == (mlp_shape[1], mlp_shape[0])
        return CheckpointPolicy.MUST_SAVE if into_mlp or operator in ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE

    return keep
