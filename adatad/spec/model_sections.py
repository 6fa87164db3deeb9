"""The model section of a spec: backbone, adapters, detector."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from adatad.spec.numbers import AttentionWindow, Count, Fraction, Layers, Length, NonNegative, Positive, Rate, Ratio
from adatad.spec.presets import PRESETS, PresetName
from adatad.spec.section import Section

RANDOM = "random"
"""The value of `model.backbone.weights` where no pretrained weights are wanted."""


class AdapterSpec(Section):
    """Temporal-informative adapters (TIA), or plain ones without the temporal convolution."""

    blocks: Literal["all"] | tuple[Count, ...] = "all"
    """Blocks, counted from 0, that carry an adapter."""
    # Kernel and ratio are the paper's.
    ratio: Ratio = 0.25
    """Width of the bottleneck as a share of the backbone's width."""
    kernel: Length = 3
    """Tubelets that the temporal convolution sees; odd."""
    dilation: Length = 1
    """Distance of those tubelets."""


class BackboneSpec(Section):
    """The video transformer and what is trained in it. Null sizes are the preset's."""

    preset: PresetName = "small"
    """tiny is the demo's; small to huge are VideoMAE-S to H; giant is VideoMAEv2-g; vjepa2-large, -huge and -giant are
    V-JEPA 2's ViT-L, H and g; vjepa2.1-base, -large, -giant and -gigantic V-JEPA 2.1's ViT-B, L, g and G;
    internvideo2-1b is InternVideo2-1B; internvideo-next-base and -large are InternVideo-Next's."""
    width: Length | None = None
    depth: Annotated[Layers, Field(ge=1)] | None = None
    heads: Length | None = None
    patch: Length | None = None
    """Height and width of a patch in pixels."""
    mlp_ratio: Ratio | None = None
    position_grid: Length | None = None
    """Rows and columns of VideoMAE's fixed position table, or of InternVideo's learned one; null: those of a 224 pixel
    frame (64 for tiny)."""
    tubelet: Length | None = None
    """Frames of one token; null: the preset's."""
    clip_frames: Length | None = None
    """Frames that attend to one another; attention never leaves a clip. null: the preset's, 8 for InternVideo2 and 16
    for the others (V-JEPA 2 was trained with 64, too)."""
    mode: Literal["adapter", "plain", "side", "frozen", "full", "features"] = "adapter"
    """adapter: TIA in the blocks; plain: adapters without temporal convolution; side: TIA beside a frozen backbone
    (the paper marks it with a dagger); frozen: only the detector is trained; full: everything is trained;
    features: no backbone at all, the detector takes the files of `data.features`, whose channels are `width`
    (null: read from them); the other keys of this section say nothing then."""
    adapter: AdapterSpec = AdapterSpec()
    drop_path: Rate = 0.1
    """Stochastic depth of the last block; earlier ones rise to it linearly. Drawn for each clip; off in mode side."""
    # Null isn't random: a path that was forgotten would train from nothing, at the same cost as a right run.
    weights: str | None = None
    """File of pretrained backbone weights: safetensors or torch's, in any form of docs/weights.md. random: none, random
    weights from `train.seed`; null isn't enough to ask for that, and names the file of `init_from` if that holds a
    whole model."""

    @model_validator(mode="after")
    def _take_clips_of_preset(self) -> Self:
        """Fill in what is left to the preset. Whoever reads the section finds numbers, as files of all ages have."""
        for name in ("tubelet", "clip_frames"):
            if getattr(self, name) is None:
                # Past pydantic's setter, which refuses changes of a frozen section.
                self.__dict__[name] = getattr(PRESETS[self.preset], name)
        return self


class DetectorSpec(Section):
    """ActionFormer: projection, neck, head and losses."""

    width: Length = 512
    heads: Length = 4
    embed_convs: Annotated[Layers, Field(ge=1)] = 2
    """Convolutions before the transformer."""
    embed_kernel: Length = 3
    split_width: tuple[Length, ...] | None = None
    """Width of each 1x1-projected stream if the input holds several; null: one stream, not projected."""
    stem_blocks: Layers = 2
    """Transformer blocks at full length."""
    branch_blocks: Layers = 5
    """Transformer blocks that each halve the length; levels = 1 + branch_blocks."""
    attention_window: AttentionWindow | tuple[AttentionWindow, ...] = -1
    """-1: global; n: a position sees n // 2 to each side; a list gives level 0, 1, ..."""
    absolute_positions: bool = False
    """Add the sine position table after the embedding convolutions."""
    max_length: Length = 2304
    """Features are padded to this length; with absolute positions also the table's length."""
    input_dropout: Rate = 0.0
    """Whole feature channels dropped for a sample."""
    drop_path: Rate = 0.1
    """Stochastic depth of the detector's blocks, drawn for each sample."""
    dropout: Rate = 0.0
    """Dropout of single numbers, after the attention and both layers of the MLP in those blocks (proj_pdrop of the
    reference; Ego4D's row has it)."""
    layer_scale: bool = True
    """Learned scale of each residual branch, 1e-4 at the start."""
    neck: Literal["identity", "fpn"] = "identity"
    neck_norm: bool = False
    """Layer norms inside the FPN (the identity neck always has them)."""
    head_convs: Layers = 2
    # As many as levels: the last one takes whatever is longer.
    regression_ranges: tuple[tuple[NonNegative, NonNegative], ...] = (
        (0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000),
    )  # fmt: skip
    """Distances, in grid positions, that each level's offsets are responsible for."""
    point_offset: bool = False
    """Put points half a stride to the right."""
    center_sampling: Literal["radius", "none"] = "radius"
    center_radius: Positive = 1.5
    """Radius in strides of the level."""
    similar_segments_only: bool = True
    """A point takes the labels of the shortest segment around it and of its copies; false: of all."""
    class_agnostic: bool = False
    """Find segments without telling classes apart."""
    label_smoothing: Fraction = 0.0
    focal_alpha: Fraction = 0.25
    focal_gamma: NonNegative = 2.0
    regression_loss: Literal["diou", "giou"] = "diou"
    regression_weight: NonNegative = 1.0
    """Weight of the regression loss; 0: the ratio of the two losses."""
    normalizer_start: Positive = 100.0
    """Start of the running count of positive points that both losses are divided by."""
    normalizer_momentum: Rate = 0.9


class ModelSpec(Section):
    """Backbone and detector, and what of them doesn't learn."""

    backbone: BackboneSpec = BackboneSpec()
    detector: DetectorSpec = DetectorSpec()
    init_from: str | None = None
    """Trained detector that a fresh run starts from, at a step 0 of its own: a run (the checkpoint that its
    `train.select` says), a checkpoint, a file of `adatad export`, or OpenTAD's checkpoint. What agrees in name and
    shape is taken, rows of the class head by the classes' names; a resumed run doesn't read it (docs/training.md)."""
    # In addition to what `backbone.mode` freezes.
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names, such as backbone.blocks.0.adapter.* or detector.neck.*, that don't learn; * stands
    for any text. They are named with `backbone.` or `detector.` in front, as trained.txt of a run lists them."""
