"""The experiment file as typed sections: every key, its default, its unit and its meaning.

Paths are strings, relative to the directory a command is started in; loading fills in `~`, `$NAME` and `${NAME}` (`$$`
is a dollar sign). Sections are frozen pydantic models that refuse unknown keys; `adatad.spec.load` reads them from
YAML.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _no_flag(value: Any) -> Any:
    """Refuse true and false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "expected a number")
    return value


Float = Annotated[float, BeforeValidator(_no_flag)]
Int = Annotated[int, BeforeValidator(_no_flag)]
Fraction = Annotated[Float, Field(ge=0.0, le=1.0)]
Rate = Annotated[Float, Field(ge=0.0, lt=1.0)]
# Upper bounds are far above what is of use; what is computed from values below them is finite.
MAX_COUNT, MAX_LENGTH = 10**9, 10**6
Count = Annotated[Int, Field(ge=0, le=MAX_COUNT)]
Size = Annotated[Int, Field(ge=1, le=MAX_COUNT)]
Length = Annotated[Int, Field(ge=1, le=MAX_LENGTH)]
"""One side of a tensor."""
AttentionWindow = Annotated[Int, Field(ge=-1, le=10**6)]
Layers = Annotated[Int, Field(ge=0, le=1_000)]
Positive = Annotated[Float, Field(gt=0.0, le=1e12)]
NonNegative = Annotated[Float, Field(ge=0.0, le=1e12)]
Ratio = Annotated[Float, Field(gt=0.0, le=1e3)]
Seconds = Annotated[Float, Field(gt=0.0, le=1e9)]
"""Up to what threads take for a time limit."""


RANDOM = "random"
"""What `model.backbone.weights` says where no pretrained weights are wanted."""


class Section(BaseModel):
    """Base of all sections: frozen, and without unknown keys, infinities or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class WindowSpec(Section):
    """How a video becomes windows, each a grid of positions: `stride_frames` video frames apart, or the whole video in
    equal parts."""

    kind: Literal["sliding", "resize"] = "sliding"
    """sliding: parts of a video, at random in training, one after another at evaluation; resize: each video whole,
    `size_grid` positions long (ActivityNet), where only the first two sizes below count."""
    size_grid: Length = 768
    """Positions of a window; the detector's time axis."""
    frames_per_position: Length = 1
    """Frames decoded for one position (OpenTAD's scale_factor)."""
    stride_frames: Length = 4
    """Video frames from one position to the next (OpenTAD's snippet stride)."""
    overlap: Rate = 0.5
    """Share of a window that the next one repeats, at evaluation."""
    min_visible: Fraction = 0.5
    """In training, an instance cut by the window stays if at least this share of it is inside."""
    crop_ratio: tuple[Fraction, Fraction] | None = None
    """In training, videos shorter than a window are cut to a random share of their length between these two."""
    offset_frames: Count = 0
    """Video frames by which position 0 of a video lies later in time than its first frame (features of other
    projects); it moves labels and detections, not the frames that are decoded."""


class ColorJitterSpec(Section):
    """Largest changes of a frame's colors; 0 leaves that one alone."""

    brightness: NonNegative = 0.5
    """Factors are drawn from 1 - this to 1 + this; so with contrast and saturation."""
    contrast: NonNegative = 0.5
    saturation: NonNegative = 0.5
    hue: Annotated[Float, Field(ge=0.0, le=0.5)] = 0.1
    """Turns of the color circle to either side, as a share of 255 steps of two degrees: 0.1 is 50 degrees."""


class AugmentSpec(Section):
    """How training frames are changed at random: all frames of a sample alike, and otherwise in each epoch."""

    crop_short_side_pixels: Length | None = None
    """Resize the short side to this, cut a random part out and resize that to `size_pixels`; null: the centre."""
    flip: Fraction = 0.0
    """Probability of left and right being exchanged; 0 where that would make another action of one."""
    rand_augment: bool = False
    """Two of fifteen operations on colors and shape, as in the reference."""
    color_jitter: ColorJitterSpec | None = None
    """Brightness, contrast, saturation and hue, in random order; {} takes the reference's strengths."""


class DataSpec(Section):
    """Videos and labels, and how they become batches."""

    root: str | None = None
    """Folder that relative paths of `annotations`, `classes`, `blocked_videos` and `videos` start from. Loading puts it
    into them and leaves null here."""
    annotations: str
    """JSON file in the ActivityNet / OpenTAD form, or that file gzip'd."""
    classes: str | tuple[str, ...] | None = None
    """Text file with one label a line (or `id<TAB>label`, where annotations hold ids), or the list itself; null: sorted
    labels of the annotation file."""
    class_count: Size | None = None
    """Classes that there must be, so that another list of them isn't taken unseen; null: as many as there are."""
    label_key: str = "label"
    """Key of an annotation that holds its label (EPIC-KITCHENS: verb or noun)."""
    blocked_videos: str | tuple[str, ...] | None = None
    """Videos that are left out everywhere: a text file with one name a line, a JSON list, or the list itself."""
    filter_short: bool | None = None
    """Don't train on instances that are shorter than a frame (resize: no longer than 1 % of their video); null: so it
    is, but under `compat: reference` with resize alone."""
    videos: str
    """Folder of the video files."""
    pattern: str = "{name}.mp4"
    """File name of a video in that folder; {name}, which stands in it once, is its name in the annotation file."""
    train_subset: str | tuple[str, ...] = "training"
    """Subset of the annotation file, or several, that is trained on."""
    validation_subset: str | tuple[str, ...] = "validation"
    """Subset of the annotation file, or several, that is evaluated."""
    fps: Annotated[Float, Field(ge=1e-6, le=1e6)] | None = None
    """Frames per second of every video; null: `frame` / `duration` of the annotation file, or its `fps`."""
    time: Literal["presentation", "count"] | None = None
    """presentation: the frames of a second are those that the file shows then, whatever its rate; count: frames are
    counted as if they came evenly, which is wrong where they don't; null: presentation, but under `compat: reference`
    count."""
    window: WindowSpec = WindowSpec()
    size_pixels: Length = 160
    """Height and width of a frame: the short side is resized to it and the centre cut out."""
    augment: AugmentSpec | None = None
    """Random changes of training frames; null: none."""
    decoder: Literal["decord", "pyav", "torchcodec"] = "decord"
    """Library that decodes the videos; PyAV takes its place where it isn't installed or is known to be wrong."""
    decode_timeout_seconds: Seconds = 120.0
    """Longest wait for a video to open, or for one more frame of it; after it a second try is made, then it is an
    error."""
    workers: Annotated[Count, Field(le=1_000)] = 2
    """Loader processes of each rank; 0 decodes in the training process."""
    stage_to: str | None = None
    """Folder on each machine's own disk that videos are copied to before training, such as $TMPDIR/videos, filled in on
    that machine; null: they are read where they are."""
    on_error: Literal["raise", "skip"] = "raise"
    """A video that can't be read: raise ends the run; skip trains on the next one instead, and finds nothing in it at
    evaluation. Each is logged once."""
    skip_limit: Count = 10
    """on_error skip: videos that may be left out before the run ends all the same."""


class AdapterSpec(Section):
    """Temporal-informative adapters (TIA), or plain ones without the temporal convolution."""

    blocks: Literal["all"] | tuple[Count, ...] = "all"
    """Blocks, counted from 0, that carry an adapter."""
    ratio: Ratio = 0.25
    """Width of the bottleneck as a share of the backbone's width."""
    kernel: Length = 3
    """Tubelets that the temporal convolution sees; odd."""
    dilation: Length = 1
    """Distance of those tubelets."""


class BackboneSpec(Section):
    """The video transformer (VideoMAE) and what is trained in it. Null sizes are the preset's."""

    preset: Literal["tiny", "small", "base", "large", "huge", "giant"] = "small"
    """tiny is the demo's; small to huge are VideoMAE-S to H; giant is VideoMAEv2-g."""
    width: Length | None = None
    depth: Annotated[Layers, Field(ge=1)] | None = None
    heads: Length | None = None
    patch: Length | None = None
    """Height and width of a patch in pixels."""
    mlp_ratio: Ratio | None = None
    position_grid: Length | None = None
    """Rows and columns of the fixed position table; null: those of a 224 pixel frame (64 for tiny)."""
    tubelet: Length = 2
    """Frames of one token."""
    clip_frames: Length = 16
    """Frames that attend to one another; attention never leaves a clip."""
    mode: Literal["adapter", "plain", "side", "frozen", "full"] = "adapter"
    """adapter: TIA in the blocks; plain: adapters without temporal convolution; side: TIA beside a frozen backbone
    (the paper marks it with a dagger); frozen: only the detector is trained; full: everything is trained."""
    adapter: AdapterSpec = AdapterSpec()
    drop_path: Rate = 0.1
    """Stochastic depth of the last block; earlier ones rise to it linearly. Drawn for each clip; off in mode side."""
    weights: str | None = None
    """File of pretrained backbone weights: safetensors or torch's, in any form of docs/weights.md. random: none, random
    weights from `train.seed`; null isn't enough to ask for that."""


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
    """Of single numbers, after the attention and both layers of the MLP in those blocks (proj_pdrop of the reference;
    Ego4D's row has it)."""
    layer_scale: bool = True
    """Learned scale of each residual branch, 1e-4 at the start."""
    neck: Literal["identity", "fpn"] = "identity"
    neck_norm: bool = False
    """Layer norms inside the FPN (the identity neck always has them)."""
    head_convs: Layers = 2
    regression_ranges: tuple[tuple[NonNegative, NonNegative], ...] = (
        (0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000),
    )  # fmt: skip
    """Distances, in grid positions, that each level's offsets are responsible for."""
    point_offset: bool = False
    """Put points half a stride to the right."""
    center_sampling: Literal["radius", "none"] = "radius"
    center_radius: Positive = 1.5
    """In strides of the level."""
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
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names, such as backbone.blocks.0.adapter.* or detector.neck.*, that don't learn; * stands
    for any text. They are named with `backbone.` or `detector.` in front, as trained.txt of a run lists them."""


class ParameterGroup(Section):
    """Backbone parameters whose name contains `name`."""

    name: str
    lr: NonNegative
    weight_decay: NonNegative = 0.05


class BackboneOptimizerSpec(Section):
    """Rates and weight decay of the backbone's trained parameters."""

    lr: NonNegative = 0.0
    """Rate of the trained backbone parameters that no `custom` entry takes."""
    weight_decay: NonNegative = 0.05
    custom: tuple[ParameterGroup, ...] = ()
    """Groups of their own; a parameter belongs to the first entry whose name its own name contains."""


class OptimizerSpec(Section):
    """AdamW. `lr` and `weight_decay` are the detector's."""

    lr: Positive = 1e-4
    weight_decay: NonNegative = 0.05
    backbone: BackboneOptimizerSpec | None = None
    """Must be given if anything in the backbone is trained."""
    layer_decay: Annotated[Float, Field(gt=0.0, le=1.0)] | None = None
    """Backbone rates fall by this factor for each block below the top (mode full)."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: Positive = 1e-8


class ScheduleSpec(Section):
    """Linear warm-up and cosine, stepped after every optimizer step."""

    warmup_epochs: Count = 5
    epochs: Size = 100
    """Where the cosine ends."""
    end_epoch: Size | None = None
    """Where training ends; null: with the cosine."""
    eta_min: NonNegative = 1e-8
    """Rate at the end of the cosine, of every group."""


class EmaSpec(Section):
    """Moving average of the trained parameters."""

    decay: Rate = 0.999
    """Share of the old average that a step keeps; evaluation uses the averages."""


class TrainSpec(Section):
    """The training loop: batches, precision, evaluations, checkpoints, and what ends a run."""

    global_batch: Size = 2
    """Windows of one optimizer step, over all ranks."""
    accumulation: Size = 1
    """Micro-batches that a rank splits its share of the global batch into."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp16 on one that hasn't, fp32 on a CPU. bf16 is refused on a GPU that
    only emulates it (before compute capability 8.0)."""
    deterministic: bool | None = None
    """Only kernels that sum in one order: on a GPU a repeated or resumed run then ends with the same bits, at some cost
    in time. null: on CPUs, where it costs nothing, and not on GPUs (docs/training.md)."""
    clip_norm: Positive | None = 1.0
    """Largest joint L2 norm of all gradients; null: not clipped."""
    evaluate_every_epochs: Size = 2
    evaluate_from_epoch: Count = 0
    """First epoch, counted from 0, after which an evaluation may run; the last epoch always has one."""
    evaluate_untrained: bool = False
    """Evaluate once before the first step, to have something to compare with."""
    checkpoint_every_steps: Size | None = None
    """Optimizer steps between checkpoints; null: one after each epoch."""
    keep_checkpoints: Size = 2
    """Newest checkpoints that are kept beside the best one."""
    stop_after_bad_steps: Size = 10
    """Steps in a row with a loss or gradients that aren't finite, after which training stops; each is skipped."""
    recheck_every: Count | None = None
    """Steps between two that are computed twice, with all bits compared: a difference is silent data corruption of a
    GPU or of memory, and ends the run before the step is applied. The first step after a start is one of them. Each
    costs a forward and a backward pass more; null or 0: none (docs/training.md)."""
    hang_seconds: Seconds = 600.0
    """With several ranks: a step or a wait for the others that takes longer ends the run, with every rank's stacks in
    `<run>/stacks/`."""
    seed: Annotated[Int, Field(ge=0, lt=2**63)] = 42


Policy = Literal["none", "selective", "block", "tile"]
TileDtype = Literal["auto", "bf16", "fp16", "fp32", "fp64"]
Place = Literal["device", "host"]


class PolicyRange(Section):
    """Blocks `first` to `last`, counted from 0, the last included, under one policy."""

    first: Count
    last: Count
    policy: Policy


class MemorySpec(Section):
    """Values that a training step keeps: which, in what dtype and where. Changes memory and time, not results, but for
    keys that say so (docs/memory.md)."""

    policy: Literal["auto", Policy] | tuple[PolicyRange, ...] = "none"
    """none: all activations; selective: attention and MLP values of each block; block: the input of each block; tile:
    the wave. Or a list of ranges that cover all blocks in order. auto: the planner takes the fastest that fits the
    device, and what else is said here as given (docs/memory.md)."""
    tile_clips: Size | None = None
    """tile: clips that are worked on at a time; null: about three million numbers, more of narrow models."""
    segment_blocks: Size | None = None
    """tile: blocks between two saved inputs; null: where saved inputs and a segment's graphs together are least."""
    recompute: Literal["once", "twice"] = "once"
    """tile: how often backward computes a block again. once: a segment's graphs are kept until their turn; twice: the
    inputs of its blocks are kept, which takes less memory and about a fifth more time."""
    order: Literal["auto", "tiles", "blocks"] = "auto"
    """tile: forward as one stream of tiles, or block by block (for weights that come one block at a time); auto: blocks
    where `parallel.engine` shards the frozen weights."""
    weight_dtype: TileDtype = "auto"
    """Dtype of frozen weights, and of a tile's arithmetic; auto: that of `train.precision` (norms outside of tiles stay
    fp32). Without tiles only fp32 can be asked for instead."""
    residual_dtype: TileDtype = "auto"
    """tile: dtype of the tokens between blocks; auto: `weight_dtype`."""
    frozen_dtype: Literal["auto", "fp8", "int8"] = "auto"
    """tile: of the matrices of frozen blocks while no tile is at them; auto: `weight_dtype`. fp8 and int8, with a scale
    for each row, take half the memory of bf16 and change the result; arithmetic stays as it is."""
    saved_input_dtype: Literal["auto", "fp8"] = "auto"
    """tile: dtype of saved inputs, and of the gradients that take their place; auto: `residual_dtype`. fp8, with a
    scale for each token, takes half the memory of bf16 and changes the result."""
    saved_inputs: Place = "device"
    """tile: where saved inputs (the tokens at the start of each segment), and the gradients that take their place,
    wait."""
    halos: Place = "device"
    """tile: where planes at the borders of tiles wait."""
    frames: Place = "device"
    """tile: where uint8 frames are while they aren't worked on."""
    optimizer_state: Place = "device"
    """Where AdamW's moments are between steps; the steps are computed on the device, some parameters at a time."""
    moment_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of AdamW's moments between steps. bf16, rounded up or down at random, takes half the memory and changes the
    result a little (engine ddp)."""
    moving_average: Place = "device"
    """Where the averages of the trained parameters are."""
    frozen_weights: Literal["device", "stream"] = "device"
    """tile: stream keeps frozen blocks in host memory and has those on the device that are worked on, and the next."""
    host_limit_gib: Positive | None = None
    """Host memory that saved inputs and halos may take on each rank; null: what there is."""
    compile: bool = False
    """tile: attention and MLP of the blocks are compiled by torch.compile, once for all blocks, at their first use. It
    needs a C++ compiler (and Triton on a GPU), and rounds otherwise than without (docs/decisions/compile.md)."""


EngineKind = Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "fairscale"]
SHARDS_FROZEN_WEIGHTS = ("fsdp", "zero3", "fairscale")
"""Engines that keep only a part of the frozen weights on each rank, and gather them block by block."""


class ParallelSpec(Section):
    """How ranks share the work (docs/engines.md). Changes memory and time, not results."""

    engine: EngineKind = "auto"
    """ddp: every rank holds all; zero1, zero2: AdamW's state (and gradients) of trained parameters are sharded; fsdp,
    zero3, fairscale: all weights are sharded. auto: ddp where weights, gradients and AdamW's state fit the card beside
    the memory plan, fsdp where they don't; the log says which, with the figures. On one process or CPUs: ddp."""
    deepspeed: str | None = None
    """zero1 to zero3: DeepSpeed's JSON file; null: ds_configs/<engine>.json."""
    clip: Size = 1
    """Ranks that share a window, each with some of its clips (docs/clip-parallel.md); divides the number of ranks."""
    cpu_offload: bool = False
    """fsdp: keep parameters and AdamW's state in host memory between uses."""
    checkpoint_offload: bool = False
    """fairscale: keep the inputs of blocks that policy block saves in host memory."""


class NmsSpec(Section):
    """Non-maximum suppression of detections that overlap."""

    kind: Literal["soft", "hard"] = "soft"
    method: Literal["vanilla", "linear", "gaussian", "improved_gaussian"] = "gaussian"
    """Soft NMS: how scores fall with the overlap o. vanilla: to 0 from `iou_threshold`; linear: times 1 - o from
    `iou_threshold`; gaussian: times exp(-o^2 / sigma); improved_gaussian: the same where o >= t1 + t2 x length."""
    sigma: Positive = 0.7
    """Soft NMS, gaussian: width of the Gaussian."""
    t1: NonNegative = 0.0
    """Soft NMS, improved_gaussian: overlap from which a score falls, for a chosen segment without length."""
    t2: NonNegative = 0.0
    """Soft NMS, improved_gaussian: what a second (resize: a grid position) of the chosen segment adds to it."""
    iou_threshold: Fraction = 0.1
    """Hard NMS: overlap from which a segment is removed; soft NMS, vanilla and linear: from which its score falls."""
    min_score: NonNegative = 0.001
    max_segments: Count = 2000
    """Kept for each class, and of all."""
    multiclass: bool = True
    """Each class alone; false: all together."""
    voting_threshold: Fraction | None = None
    """Overlap from which segments vote on a kept one's borders; only with `multiclass: false`."""


class ClassifierSpec(Section):
    """Labels from a video-level classifier, for a detector that doesn't tell classes apart: every segment is repeated
    for each of the video's best classes."""

    kind: Literal["cuhk", "standard", "tcanet_hacs", "untrimmednet_thumos", "pseudo"]
    """Form of the file, and how its scores meet those of segments. cuhk: product; standard (InternVideo, UMT): square
    root of the product; tcanet_hacs: product with twice the softmax; untrimmednet_thumos: product, for THUMOS-14's 20
    classes; pseudo: no file, one label for all."""
    file: str | None = None
    """JSON file {"results": {video: [scores]}, "class": [names]}; untrimmednet_thumos: .npy array [videos, 101]."""
    topk: Size = 1
    """Classes of a video that each segment is repeated for."""
    apply_softmax: bool = False
    """standard: the file holds logits."""
    pseudo_label: str | None = None
    """pseudo: the label."""


class PostprocessSpec(Section):
    """Steps from the candidates of windows to the detections of videos."""

    pre_nms_threshold: NonNegative = 0.001
    pre_nms_topk: Size = 2000
    """Best candidates of a window that enter NMS."""
    nms: NmsSpec | None = NmsSpec()
    """null: nothing is suppressed."""
    classifier: ClassifierSpec | None = None
    """null: the detector's own classes."""


class EvaluateSpec(Section):
    """Scores of the detections."""

    tious: tuple[Annotated[Float, Field(gt=0.0, le=1.0)], ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    top_k: tuple[Size, ...] = ()
    """Also report recall@kx for each k: how many instances the k x n best detections of a class find in a video with n
    instances of it (Ego4D: 1 and 5)."""
    blocked_videos: str | None = None
    """JSON file, a list of videos that aren't scored; they are still detected (ActivityNet's evaluator has such a list
    of its own)."""
    groups_by: str | None = None
    """Key of the annotations that divides the instances into groups, which are also scored one at a time."""


class RunSpec(Section):
    """Folder of the run."""

    root: str = "runs"
    id: Count = 0
    """A run lives in `<root>/<spec name>/id<id>/`."""


class Spec(Section):
    """One experiment."""

    name: str
    """Taken from the file's path if the file doesn't say: configs/demo/tia.yaml is demo/tia."""
    data: DataSpec
    model: ModelSpec = ModelSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    ema: EmaSpec = EmaSpec()
    train: TrainSpec = TrainSpec()
    memory: MemorySpec = MemorySpec()
    parallel: ParallelSpec = ParallelSpec()
    postprocess: PostprocessSpec = PostprocessSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    compat: Literal["fixed", "reference"] = "fixed"
    """reference: repeat the reference implementation's quirks too (docs/compat.md)."""
    run: RunSpec = RunSpec()
    reference: str | None = None
    """Name of the same experiment in OpenTAD, below its configs/adatad and without ".py"."""
    published: dict[str, Annotated[Float, Field(ge=0.0, le=100.0)]] | None = None
    """Figures that the paper or the reference reports for this experiment, in percent: mAP by tIoU, and average_mAP."""

    @model_validator(mode="after")
    def _decide_time(self) -> Spec:
        """Put the meaning of null in the place of `data.time`: what reads videos sees the data section alone."""
        if self.data.time is None:
            # Past the frozen model's own setattr.
            time = "count" if self.compat == "reference" else "presentation"
            self.__dict__["data"] = self.data.model_copy(update={"time": time})
        return self


PATHS: tuple[tuple[str, ...], ...] = (
    ("data", "root"),
    ("data", "annotations"),
    ("data", "classes"),
    ("data", "blocked_videos"),
    ("data", "videos"),
    ("model", "backbone", "weights"),
    ("parallel", "deepspeed"),
    ("postprocess", "classifier", "file"),
    ("evaluate", "blocked_videos"),
    ("run", "root"),
)
"""Keys that are paths: loading fills in `~` and variables."""
STAGE_TO: tuple[str, ...] = ("data", "stage_to")
"""The one path that is filled in later, on the machine whose disk it names."""
