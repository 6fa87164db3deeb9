"""The video backbone: clips of a window through a ViT, with or without temporal adapters, to features over time.

What all families of backbones have in common; each has a file of its own beside this one, with what it decides, and
`adatad.models.families` says which preset is whose.

Shapes: b windows, n clips of all windows (clips of one window next to each other), l tokens of a clip (class tokens, if
the family has any, before those of patches), c width; t tubelets of a window or, in planes, of a clip, p positions of a
tubelet.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatad.models.adapter import Adapter, Recompute, pad_with_zeros
from adatad.models.initial import DrawsAside
from adatad.models.keyed_dropout import Drops
from adatad.models.vit import Block, ClipTables, outside_autocast
from adatad.spec.model_sections import BackboneSpec
from adatad.spec.presets import Family
from adatad.spec.sizes import BackboneSizes, resolve_backbone

# ImageNet's statistics, of pixels from 0 to 255, RGB, with which all families here were pretrained.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class WindowPart(Protocol):
    """The clips that this process has of each window: where they begin, and what lies beside them.

    A whole window, or one rank's share of it: `adatad.memory.tiles.HaloExchange` is this and more.
    """

    first_clip: int
    """The number, in its window, of the first clip that this process has."""

    def pad(self, window: Tensor, reach: int) -> Tensor:
        """Return a window's planes [b, tubelets, positions, hidden] between `reach` planes of what lies beside them."""


class WholeWindows:
    """A process that has all clips of its windows: nothing lies beside them."""

    first_clip = 0

    def pad(self, window: Tensor, reach: int) -> Tensor:
        """Return a window between planes of zeros."""
        return pad_with_zeros(window, reach)


WHOLE_WINDOWS = WholeWindows()


@dataclass(frozen=True, eq=False, kw_only=True)
class PlainExecutor:
    """Runs every block as a module; autograd keeps what it wants. The base of the executors in `adatad.memory`.

    Executors don't change: `with_weights` and `with_exchange` return others, to be put in `VideoBackbone.executor`.
    """

    halo_exchange: WindowPart = WHOLE_WINDOWS
    passes: Sequence[Any] = ()
    """Waves (`adatad.memory.wave_pass`), which run ranges of blocks without calling them as modules."""

    def __call__(self, backbone: VideoBackbone, frames: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return what `VideoBackbone.timeline` is documented to return."""
        batch, clips = len(frames), backbone.cut_clips(frames)
        if backbone.mode == "side":
            return backbone.join(self.run_side_adapters(backbone, clips, batch), batch)
        # Mode frozen: no graph, although the detector behind is trained.
        with torch.set_grad_enabled(torch.is_grad_enabled() and backbone.mode != "frozen"):
            tokens, tables = backbone.embed(clips), backbone.clip_tables(*clips.shape[-2:], clips.device)
            drops = backbone.draw_drops(keys, len(clips) // batch, self.halo_exchange.first_clip)
            for index in range(len(backbone.blocks)):
                tokens = self.run_block(backbone, index, tokens, batch, drops, tables)
            tokens = backbone.normalize_output(tokens)
        return backbone.join(tokens, batch)

    def run_side_adapters(self, backbone: VideoBackbone, clips: Tensor, batch: int) -> Tensor:
        """Return the tokens of mode side: the last listed block's, plus each adapter's part of its own block's.

        A norm behind the last block is the frozen backbone's, and so comes before the adapters' parts.
        """
        listed = []
        with torch.no_grad():
            tokens, tables = backbone.embed(clips), backbone.clip_tables(*clips.shape[-2:], clips.device)
            # No side adapter reads a later block.
            for index, block in enumerate(backbone.blocks[: max(backbone.adapter_blocks) + 1]):
                tokens = block(tokens, batch, tables=tables)
                if index in backbone.adapter_blocks:
                    listed.append(tokens)
            tokens = backbone.normalize_output(tokens)
        for adapter, output in zip(backbone.side_adapters, listed, strict=True):
            tokens = tokens + adapter(
                output, batch, pad=self.halo_exchange.pad, recompute=self.recompute(0, "adapters")
            )
        return tokens

    def run_block(
        self,
        backbone: VideoBackbone,
        index: int,
        tokens: Tensor,
        batch: int,
        drops: Drops | None,
        tables: ClipTables,
    ) -> Tensor:
        """Call one block. drops: of all clips; tables: the backbone's `clip_tables`."""
        of_block = drops and drops.block(index, 0, len(tokens))
        # By keyword: hooks of engines look through positional inputs for tensors.
        pad, recompute = self.halo_exchange.pad, self.recompute(index)
        return backbone.blocks[index](tokens, batch, of_block, tables=tables, pad=pad, recompute=recompute)

    def recompute(self, index: int, part: str = "blocks") -> Recompute | None:
        """Return how a block is computed again in backward, or None; in mode side how the adapters are. part: what a
        profile calls it."""
        return None

    def with_weights(self, provider: Any) -> Self:
        """Return an executor whose waves ask `provider` (`adatad.memory.weights.WeightProvider`) for weights of blocks.

        Blocks that are called as modules get theirs from the engine's hooks.
        """
        return replace(self, passes=[replace(wave_pass, provider=provider) for wave_pass in self.passes])

    def with_exchange(self, halo_exchange: WindowPart) -> Self:
        """Return an executor for those clips of a window that one of several ranks has."""
        passes = [replace(wave_pass, halo_exchange=halo_exchange) for wave_pass in self.passes]
        return replace(self, halo_exchange=halo_exchange, passes=passes)

    def weight_modules(self) -> list[nn.Module]:
        """Return the modules that waves call once in a forward pass, for their trained weights."""
        return [wave_pass.trained_weights for wave_pass in self.passes if wave_pass.trained_weights.names]

    def __str__(self) -> str:
        return "all blocks: none; autograd keeps what it wants"


class VideoBackbone(nn.Module):
    """A video transformer over every clip of a window, averaged over space and joined in time.

    The base of all families, which say what a block is (`build_block`) and how tokens know their places
    (`add_positions`, `clip_tables`); `adatad.models.families.build_backbone` makes the one of a preset. Executors need
    no more of a family than this class has.

    `mode` says what is trained in it: see `adatad.spec.model_sections.BackboneSpec` and `adatad.models.detector`.
    """

    family: ClassVar[Family]
    """The architecture, as presets name it."""
    has_final_norm: ClassVar[bool] = False
    """Whether features pass a norm behind the last block."""
    class_tokens: ClassVar[int] = 0
    """Tokens of each clip before those of its patches. Attention and MLP see them. Adapters, which need places in time,
    don't, and neither do features, which are means over space."""

    def __init__(self, spec: BackboneSpec, drawn: bool = True):
        """drawn: initialise the encoder at random; False: leave that to a file. All else is drawn as with it."""
        super().__init__()
        sizes = resolve_backbone(spec)
        self.mode = spec.mode
        self.width, self.patch = sizes.width, sizes.patch
        self.tubelet, self.clip_frames = spec.tubelet, spec.clip_frames
        self.register_buffer("position_table", None, persistent=False)
        """Positions that are added to the tokens, float32 [1, n, c]; None in families that add none."""
        self.final_norm: nn.LayerNorm | None = None
        """The norm behind the last block, in families whose features pass one."""
        self.clip_tubelets = spec.clip_frames // spec.tubelet
        self.position_grid = sizes.position_grid
        # An object and no method: one policy is put in place of another without touching the model.
        self.executor = PlainExecutor()
        """How the blocks are run; `adatad.memory.policy` and `adatad.parallel` put others here."""
        self.adapter_blocks = adapter_blocks(spec, sizes.depth)
        # What a file will fill isn't drawn, but every later draw comes out as if it had been.
        self._encoder_context = nullcontext if drawn else DrawsAside
        with self._encoder_context():
            self.patch_embed = self.build_embedding(spec, sizes)
        self.drops_type: type[Drops] = Drops
        """Class that draws stochastic depth."""
        # Rising linearly from 0 at the first block, as in VideoMAE's own fine-tuning.
        self.drop_rates = [spec.drop_path * index / max(sizes.depth - 1, 1) for index in range(sizes.depth)]
        self.blocks = nn.ModuleList(self._build_block(spec, sizes, index) for index in range(sizes.depth))
        if spec.mode == "side":
            self.side_adapters = nn.ModuleList(self._build_adapter(spec) for _ in self.adapter_blocks)
        # Constants, and so no part of a checkpoint.
        for name, value in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1, 1), persistent=False)

    def _build_adapter(self, spec: BackboneSpec) -> Adapter:
        adapter = spec.adapter
        hidden = int(self.width * adapter.ratio)
        temporal = spec.mode != "plain"
        shape = adapter.kernel, adapter.dilation, temporal
        return Adapter(self.width, hidden, self.clip_tubelets, *shape, class_tokens=self.class_tokens)

    def _build_block(self, spec: BackboneSpec, sizes: BackboneSizes, index: int) -> Block:
        inside = spec.mode in ("adapter", "plain") and index in self.adapter_blocks
        adapter = self._build_adapter(spec) if inside else None
        with self._encoder_context():
            return self.build_block(sizes, adapter)

    def build_embedding(self, spec: BackboneSpec, sizes: BackboneSizes) -> nn.Conv3d:
        """Return the patch embedding, with all else that is learned of the tokens that enter the blocks."""
        return nn.Conv3d(3, sizes.width, (spec.tubelet, sizes.patch, sizes.patch))

    def build_block(self, sizes: BackboneSizes, adapter: Adapter | None) -> Block:
        """Return a new block of the family around an adapter; None: it carries none."""
        raise NotImplementedError

    def add_positions(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Return the tokens of patches with what the family adds to them for their places, behind its class tokens:
        nothing of both here."""
        return tokens

    def clip_tables(self, height: int, width: int, device: torch.device) -> ClipTables:
        """Return the constants of attention for clips of so many pixels: none here."""
        return ()

    def normalize_output(self, tokens: Tensor) -> Tensor:
        """Return the last block's tokens [n, l, c] as features take them: through the family's norm, if it has one."""
        return tokens if self.final_norm is None else self.final_norm(tokens)

    def forward(self, frames: Tensor, window_grid: int, keys: Tensor | None = None) -> Tensor:
        """Return features of windows, resized along time to the window's positions.

        frames: uint8 [b, 3, frames, height, width], frames a multiple of `clip_frames`; window_grid: positions of the
        window; keys: int64 [b] in host memory for stochastic depth, None for none. Returns float32 [b, c, window_grid].
        """
        timeline = self.timeline(frames, keys).transpose(1, 2)
        return resize_timeline(timeline, window_grid)

    def timeline(self, frames: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return means over space at every tubelet, clips joined in time: float32 [b, tubelets, c]."""
        return self.executor(self, frames, keys)

    def draw_drops(self, keys: Tensor | None, clips: int, first_clip: int = 0) -> Drops | None:
        """Draw stochastic depth of all clips; None where nothing can be dropped.

        clips: in each window; first_clip: the number, in its window, of the first of them.
        """
        if keys is None or not any(self.drop_rates):
            return None
        names = [f"backbone/{index}/{branch}" for index in range(len(self.blocks)) for branch in ("attention", "mlp")]
        rates = [rate for rate in self.drop_rates for _ in range(2)]
        return self.drops_type(names, rates, keys, range(first_clip, first_clip + clips))

    def cut_clips(self, frames: Tensor) -> Tensor:
        """Cut windows, uint8 [b, 3, frames, height, width], into clips [n, 3, clip_frames, height, width]."""
        batch, channels, length, height, width = frames.shape
        if length % self.clip_frames:
            raise ValueError(f"a window of {length} frames isn't whole clips of {self.clip_frames} frames")
        clips = frames.reshape(batch, channels, -1, self.clip_frames, height, width)
        return clips.transpose(1, 2).flatten(0, 1)

    def embed(self, clips: Tensor) -> Tensor:
        """Return tokens with their positions: uint8 [n, 3, clip_frames, height, width] -> [n, l, c].

        The patch convolution (stride = kernel) as one matrix product; rows and columns that don't fill a patch are
        dropped.
        """
        # With patch 14 and 180 pixels 12 are left over; the convolution would leave them out too.
        n, patch, tubelet = len(clips), self.patch, self.tubelet
        rows, columns = clips.shape[-2] // patch, clips.shape[-1] // patch
        pixels = self.normalize(clips[..., : rows * patch, : columns * patch])
        # Axes: clip, color, tubelet, frame in it, row, pixel row in it, column, pixel column in it. What is inside a
        # patch goes last, in the order of the convolution's weights: color, frame, pixel row, pixel column.
        patches = pixels.reshape(n, 3, self.clip_tubelets, tubelet, rows, patch, columns, patch)
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(n, self.clip_tubelets * rows * columns, -1)
        return self.add_positions(self.project_patches(patches), rows, columns)

    def project_patches(self, patches: Tensor) -> Tensor:
        """Return a token of each patch: [n, l, pixels of a patch in all colors and frames] -> [n, l, c]."""
        weight = self.patch_embed.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight, self.patch_embed.bias)

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """Return a view of the tokens of patches, without the class tokens: [n, tubelets x positions, c]."""
        return tokens[:, self.class_tokens :] if self.class_tokens else tokens

    def normalize(self, clips: Tensor) -> Tensor:
        """Normalize pixels: uint8 [n, 3, frames, height, width] -> float32, of mean 0 and spread 1 in pretraining."""
        return (clips.float() - self.pixel_mean) / self.pixel_std

    def pool(self, tokens: Tensor) -> Tensor:
        """Average over space: tokens of patches [n, l, c] -> float32 [n, clip tubelets, c] (float64 of float64)."""
        planes_ntpc = tokens.unflatten(1, (self.clip_tubelets, -1))
        # In fp32 also of 16-bit tokens: a mean of hundreds of positions would lose digits.
        return planes_ntpc.mean(2, dtype=torch.promote_types(tokens.dtype, torch.float32))

    def join(self, tokens: Tensor, batch: int) -> Tensor:
        """Return the timeline of tokens that features take: [n, l, c] -> [b, tubelets, c]."""
        return self.pool(self.patch_tokens(tokens)).unflatten(0, (batch, -1)).flatten(1, 2)


def resize_timeline(timeline: Tensor, positions: int) -> Tensor:
    """Interpolate linearly along time: [b, c, t] -> [b, c, positions]."""
    if not timeline.is_cpu and torch.are_deterministic_algorithms_enabled():
        # On GPUs the backward kernel of interpolation adds in any order.
        return resize_by_product(timeline, positions)
    return F.interpolate(timeline, size=positions, mode="linear", align_corners=False)


def resize_by_product(timeline: Tensor, positions: int) -> Tensor:
    """Interpolate as one matrix product: equal but for rounding, and its backward is a product too."""
    weights = interpolation_matrix(timeline.shape[-1], positions, timeline.dtype, timeline.device)
    # Autocast would make a 16-bit product of it.
    with outside_autocast(timeline.device):
        return timeline @ weights


@lru_cache(maxsize=4)
def interpolation_matrix(tubelets: int, positions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weights of linear interpolation: [tubelets, positions], two numbers in each column. Made once."""
    # A matrix made in an evaluation serves training too.
    with torch.inference_mode(False):
        identity = torch.eye(tubelets, dtype=dtype, device=device)
        return F.interpolate(identity[None], size=positions, mode="linear", align_corners=False)[0]


def adapter_blocks(spec: BackboneSpec, depth: int) -> tuple[int, ...]:
    """Return the numbers of the blocks that carry (or, in mode side, feed) an adapter, ascending."""
    if spec.mode in ("frozen", "full"):
        return ()
    return tuple(range(depth)) if spec.adapter.blocks == "all" else tuple(sorted(spec.adapter.blocks))
