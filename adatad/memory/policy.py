"""Memory policies: how the spec's `memory.policy` becomes a backbone's executor.

none: everything autograd wants. selective: of every block its input, the attention's output and the MLP's value before
its activation; the rest is computed again in backward. block: of every block its input. tile: the wave
(`adatad.memory.wave`). No policy changes what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from adatad.memory.coded import encode_frozen_
from adatad.memory.offload import GIB
from adatad.memory.scopes import RECOMPUTATION, timed_part
from adatad.memory.side import side_executor
from adatad.memory.tiles import default_segment_blocks, default_tile_clips
from adatad.memory.wave_pass import WavePass
from adatad.memory.wave_state import WaveSettings
from adatad.memory.weights import ResidentWeights, StreamedBlocks, TrainedWeights, WeightProvider, read_from_block
from adatad.models.adapter import Recompute
from adatad.models.backbone import PlainExecutor, VideoBackbone
from adatad.models.vit import is_norm, is_token
from adatad.spec.data_sections import DataSpec
from adatad.spec.schema import MemorySpec
from adatad.spec.sizes import clips_of_window

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}

SAVED = {
    "none": "autograd keeps what it wants",
    "selective": "kept are each block's input, its attention and what goes into the MLP's activation",
    "block": "kept is each block's input",
}
"""What is saved for backward under each policy but tile, in words for the log."""

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
    """The policy of each block."""
    fc1_shape: tuple[int, int]
    """[out, in] of the MLP's first matrix. Taken before any engine shards it."""

    def recompute(self, index: int, part: str = "blocks") -> Recompute | None:
        """Return torch's checkpoint for the block's policy; None where autograd keeps everything."""
        if self.policies[index] == "none" or not torch.is_grad_enabled():
            return None
        # Nothing in the model draws from a generator, so there is no random state to put back.
        # The variant without re-entry: it works where no input needs a gradient, as with the first trained block.
        selective = self.policies[index] == "selective"
        contexts = partial(_contexts, self.selective_rule() if selective else None, part)
        return partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    def selective_rule(self) -> Callable[..., CheckpointPolicy]:
        """Return selective checkpointing's rule: which operators' results stay."""
        rows, columns = self.fc1_shape

        def rule(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
            """Save the attention's output and the MLP's value before its activation."""
            # The MLP's first product is told from the others by the shape of its (transposed) matrix.
            into_mlp = operator is torch.ops.aten.addmm.default and tuple(inputs[2].shape) == (columns, rows)
            saved = into_mlp or operator in ATTENTION
            return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

        return rule

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return a line for each range of blocks."""
        lines, first = [], 0
        for policy, blocks in groupby(self.policies):
            last = first + len(list(blocks)) - 1
            if policy in SAVED:
                lines.append(f"blocks {first} to {last}: {policy}; {SAVED[policy]}")
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
        tables = backbone.clip_tables(*frames.shape[-2:], frames.device)
        waves = {wave_pass.settings.first: wave_pass for wave_pass in self.passes}
        tokens, index = None, 0
        while index < len(backbone.blocks):
            if index in waves:
                # The first range reads frames itself, tile by tile; tokens of whole windows are never made for it.
                tokens = waves[index](frames if tokens is None else tokens, batch, clips, drops, tables)
                index = waves[index].settings.last + 1
                continue
            tokens = backbone.embed(backbone.cut_clips(frames)) if tokens is None else tokens
            tokens = self.run_block(backbone, index, tokens, batch, drops, tables)
            index += 1
        # A wave through the last block has averaged its tiles itself.
        return tokens if self.policies[-1] == "tile" else backbone.join(backbone.normalize_output(tokens), batch)

    def lines(self) -> list[str]:
        """Return a line for each range of blocks, waves last."""
        return [*super().lines(), *map(str, self.passes)]


def _contexts(
    rule: Callable[..., CheckpointPolicy] | None, part: str
) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return the contexts of a checkpoint's forward and of its recomputation, which a profile shows as that part."""
    forward, again = (nullcontext(), nullcontext()) if rule is None else create_selective_checkpoint_contexts(rule)
    return forward, _shown(part, again)


@contextmanager
def _shown(part: str, again: AbstractContextManager) -> Iterator[None]:
    # Ranges are opened when backward comes here, not when the checkpoint is made.
    with timed_part(RECOMPUTATION), timed_part(part), again:
        yield


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
        # Weights that come one block at a time should come once for all tiles, and not once a tile.
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
            # These blocks run under autocast.
            cast_for_autocast_(backbone, first, last, memory, arithmetic)
            continue
        settings = wave_settings(backbone, memory, data, arithmetic, clip_ranks, first, last)
        # Tiles run outside of autocast: their weights have the dtype of arithmetic once and for all.
        cast_frozen_(backbone, first, last, settings.dtype)
        if memory.frozen_dtype != "auto":
            encode_frozen_(backbone.blocks[first : last + 1], memory.frozen_dtype)
        tiled.append(settings)
    host_limit_bytes = None
    if memory.host_limit_gib is not None and tiled:
        # Every range has host memory of its own; the bound is on all of them together.
        host_limit_bytes = int(memory.host_limit_gib * GIB / len(tiled))
    # By block, whatever the ranges are: a mixed plan is as simple as a uniform one.
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
    # The patch embedding belongs to the first range, which reads frames.
    prefixes = tuple(f"blocks.{index}." for index in range(settings.first, settings.last + 1))
    if settings.first == 0:
        prefixes += ("patch_embed.",)
    if settings.last == len(backbone.blocks) - 1:
        prefixes += ("final_norm.",)
    # Adapters come through TrainedWeights also where `model.freeze` keeps some from learning.
    learning = [n for n, p in backbone.named_parameters() if p.requires_grad or ".adapter." in n]
    names = [name for name in learning if name.startswith(prefixes)]
    trained = TrainedWeights(backbone, names, only_parts=frozenset(name for name in names if read_from_block(name)))
    # The last range averages each tile as it comes out.
    pooled = settings.last == len(backbone.blocks) - 1
    return WavePass(backbone, settings, trained, pooled, provider, host_limit_bytes=host_limit_bytes)


def policy_ranges(memory: MemorySpec, depth: int) -> list[tuple[int, int, str]]:
    """Return (first block, last block, policy) of consecutive ranges that cover the backbone."""
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
    """Return the settings of a wave: the spec's; where it leaves tile and segment open, the best for this window."""
    positions = (data.size_pixels // backbone.patch) ** 2
    # Where clips are shared unevenly, those of the rank with most.
    clips = -(-clips_of_window(data, backbone.clip_frames) // clip_ranks)
    clip_tokens = backbone.class_tokens + backbone.clip_tubelets * positions
    tile_clips = memory.tile_clips or default_tile_clips(clip_tokens, backbone.width, clips)
    hold = memory.recompute == "once"
    trained = [i for i in range(first, last + 1) if any(p.requires_grad for p in backbone.blocks[i].parameters())]
    # Inputs are saved from the first trained block on; what is before it runs forward only.
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
        saved_on_host=memory.saved_inputs == "host",
        saved_in_8_bits=memory.saved_input_dtype == "fp8",
        halos_on_host=memory.halos == "host",
        compiled=memory.compile,
    )


def cast_frozen_(backbone: VideoBackbone, first: int, last: int, dtype: torch.dtype, norms: bool = True) -> None:
    """Cast frozen weights of a range of blocks, and of the patch embedding before the first; trained ones keep their
    dtype."""
    modules: list[nn.Module] = list(backbone.blocks[first : last + 1])
    if first == 0:
        modules.append(backbone.patch_embed)
    for name, parameter in (named for module in modules for named in module.named_parameters()):
        if parameter.requires_grad or name.startswith("adapter.") or is_token(name):
            continue
        if norms or not is_norm(name):
            parameter.data = parameter.data.to(dtype)


def cast_for_autocast_(
    backbone: VideoBackbone, first: int, last: int, memory: MemorySpec, arithmetic: torch.dtype
) -> None:
    """Cast once what autocast would cast at every use, to the same bits. Norms stay: autocast computes them in fp32."""
    asked = DTYPES.get(memory.weight_dtype, arithmetic)
    if asked == arithmetic and arithmetic in (torch.bfloat16, torch.float16):
        cast_frozen_(backbone, first, last, arithmetic, norms=False)
