"""From the spec's memory policy to a backbone's executor.

none: everything autograd wants. selective: of every block its input, the attention's output and the MLP's value before
its activation; the rest is computed again in backward. block: of every block its input. tile: the wave
(`adatad.memory.wave`). No policy changes what is computed.
"""

from __future__ import annotations

import torch
from torch import nn

from adatad.memory.coded import encode_frozen_
from adatad.memory.executors import CheckpointedExecutor, TiledExecutor
from adatad.memory.offload import GIB
from adatad.memory.side import side_executor
from adatad.memory.streamed import StreamedBlocks
from adatad.memory.tiles import default_segment_blocks, default_tile_clips
from adatad.memory.wave import WaveSettings
from adatad.memory.wave_pass import WavePass
from adatad.memory.weights import ResidentWeights, TrainedWeights, WeightProvider, read_from_block
from adatad.models.backbone import PlainExecutor, VideoBackbone
from adatad.spec.clip_share import clips_of_window
from adatad.spec.schema import DataSpec, MemorySpec

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def apply_policy(
    backbone: VideoBackbone,
    memory: MemorySpec,
    data: DataSpec,
    arithmetic: torch.dtype,
    sharded: bool = False,
    clip_ranks: int = 1,
) -> None:
    """Give a backbone the executor of the spec's policy, and its frozen weights their dtype and place.

    What is trained must be fixed; comes before any engine wraps the model, which then asks the executor for
    `with_weights`. arithmetic: dtype of the run (autocast's), which is that of tiles unless the spec says otherwise.
    sharded: whether the engine will shard frozen weights. clip_ranks: ranks that share a window.
    """
    if memory.order == "auto":
        one_at_a_time = sharded or memory.frozen_weights == "stream" or memory.frozen_dtype != "auto"
        memory = memory.model_copy(update={"order": "blocks" if one_at_a_time else "tiles"})
    if backbone.mode == "side":
        # Blocks run without a graph, and those behind the last adapter not at all.
        policy = "tile" if memory.policy == "tile" else "none" if memory.policy == "none" else "block"
        ranges = [(0, max(backbone.adapter_blocks) if policy == "tile" else len(backbone.blocks) - 1, policy)]
    else:
        ranges = policy_ranges(memory, len(backbone.blocks))
    tiled = []
    for first, last, policy in ranges:
        if policy != "tile":
            cast_for_autocast_(backbone, first, last, memory, arithmetic)
            continue
        settings = wave_settings(backbone, memory, data, arithmetic, clip_ranks, first, last)
        cast_frozen_(backbone, first, last, settings.dtype)
        if memory.frozen_dtype != "auto":
            encode_frozen_(backbone.blocks[first : last + 1], memory.frozen_dtype)
        tiled.append(settings)
    host_limit_bytes = None
    if memory.host_limit_gib is not None and tiled:
        host_limit_bytes = int(memory.host_limit_gib * GIB / len(tiled))
    policies = tuple(policy for first, last, policy in ranges for _ in range(first, last + 1))
    fc1 = backbone.blocks[0].mlp.fc1
    fc1_shape = fc1.out_features, fc1.in_features
    if not tiled:
        plain = set(policies) == {"none"}
        backbone.executor = PlainExecutor() if plain else CheckpointedExecutor(policies=policies, fc1_shape=fc1_shape)
    elif backbone.mode == "side":
        (settings,) = tiled
        backbone.executor = side_executor(backbone, settings, _provider(backbone, memory, settings), host_limit_bytes)
    else:
        passes = [_wave_pass(backbone, settings, _provider(backbone, memory, settings), host_limit_bytes)
                  for settings in tiled]  # fmt: skip
        backbone.executor = TiledExecutor(policies=policies, fc1_shape=fc1_shape, passes=passes)


def _provider(backbone: VideoBackbone, memory: MemorySpec, settings: WaveSettings) -> WeightProvider:
    if memory.frozen_weights != "stream":
        return ResidentWeights()
    blocks = backbone.blocks[settings.first : settings.last + 1]
    return StreamedBlocks(blocks, settings.first, home=backbone.patch_embed.weight)


def _wave_pass(
    backbone: VideoBackbone, settings: WaveSettings, provider: WeightProvider, host_limit_bytes: int | None
) -> WavePass:
    prefixes = tuple(f"blocks.{index}." for index in range(settings.first, settings.last + 1))
    if settings.first == 0:
        prefixes += ("patch_embed.",)
    names = [n for n, p in backbone.named_parameters() if p.requires_grad and n.startswith(prefixes)]
    trained = TrainedWeights(backbone, names, only_parts=frozenset(name for name in names if read_from_block(name)))
    pooled = settings.last == len(backbone.blocks) - 1
    return WavePass(backbone, settings, trained, pooled, provider, host_limit_bytes=host_limit_bytes)


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
    asked = DTYPES.get(memory.weight_dtype, arithmetic)
    if asked == arithmetic and arithmetic in (torch.bfloat16, torch.float16):
        cast_frozen_(backbone, first, last, arithmetic, norms=False)
