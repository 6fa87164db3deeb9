"""The experiment file as typed sections: every key, its default, its unit and its meaning.

Paths are strings, relative to the directory a command is started in; loading fills in `~`, `$NAME` and `${NAME}` (`$$`
is a dollar sign). Sections are frozen pydantic models that refuse unknown keys; `adatad.spec.load` reads them from
YAML.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adatad.spec.data_sections import DataSpec
from adatad.spec.model_sections import ModelSpec
from adatad.spec.numbers import Count, Float, Fraction, Int, NonNegative, Positive, Rate, Seconds, Size
from adatad.spec.section import Section


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
    # A tuple, as all lists of a spec: frozen models must hold nothing that can be changed.
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
    # Not 0: a parameter whose gradients were all 0 would become NaN.
    eps: Positive = 1e-8


class ScheduleSpec(Section):
    """Linear warm-up and cosine, stepped after every optimizer step."""

    warmup_epochs: Count = 5
    epochs: Size = 100
    """Epoch at which the cosine ends."""
    end_epoch: Size | None = None
    """Epoch at which training ends; null: with the cosine."""
    # Also of groups whose own rate is lower; the reference's schedule has it so.
    eta_min: NonNegative = 1e-8
    """Rate at the end of the cosine, of every group."""


class EmaSpec(Section):
    """Moving average of the trained parameters."""

    # Below 1: at 1 the averages would stay at their start.
    decay: Rate = 0.999
    """Share of the old average that a step keeps; evaluation uses the averages."""


Select = Literal["best", "last"]


class TrainSpec(Section):
    """The training loop: batches, precision, evaluations, checkpoints, and what ends a run."""

    # Of all ranks together, so that a run means the same on any number of them.
    global_batch: Size = 2
    """Windows of one optimizer step, over all ranks."""
    accumulation: Size = 1
    """Micro-batches that a rank splits its share of the global batch into."""
    class_balance: Literal["none", "repeat"] = "none"
    """repeat: videos with a class that few training videos have come more than once in an epoch, which has more steps
    then: by the square root of how much rarer than the median class it is (docs/training.md)."""
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
    stop_after: Size | None = None
    """Evaluations in a row without a better average mAP than the best before them, after which training ends; null: it
    goes on to its last epoch (docs/training.md)."""
    select: Select = "best"
    """Which evaluation stands for the run: the best on the validation videos, or the last. Export, test, detect, fuse
    and `model.init_from` take that one's checkpoint or detections; training is the same (docs/training.md)."""
    evaluate_untrained: bool = False
    """Evaluate once before the first step, to have something to compare with."""
    checkpoint_every_steps: Size | None = None
    """Optimizer steps between checkpoints; null: one after each epoch."""
    keep_checkpoints: Size = 2
    """Newest checkpoints that are kept beside the best one."""
    stop_after_bad_steps: Size = 10
    """Steps in a row with a loss or gradients that aren't finite, after which training stops; each is skipped."""
    keep_batch_above: Annotated[Float, Field(gt=1.0, le=1e12)] | None = None
    """Factor above the median gradient norm of the last 200 steps, from the 21st step of a start on, above which a step
    leaves its batch in `<run>/bad_batches/` for `adatad replay`; the step is trained as usual. null: only steps that
    were skipped for NaN or Inf do."""
    recheck_every: Count | None = None
    """Steps between two that are computed twice, with all bits compared: a difference is silent data corruption of a
    GPU or of memory, and ends the run before the step is applied. The first step after a start is one of them. Each
    costs a forward and a backward pass more; null or 0: none (docs/training.md)."""
    # Steps take seconds; the rest is room for file systems that stall and for kernels that are compiled.
    hang_seconds: Seconds = 600.0
    """With several ranks: a step or a wait for the others that takes longer ends the run, with every rank's stacks in
    `<run>/stacks/`."""
    # As torch.manual_seed takes it, but for negative ones.
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

    # none, not auto: a spec without this section trains as the reference does, with every activation kept.
    policy: Literal["auto", Policy] | tuple[PolicyRange, ...] = "none"
    """none: all activations; selective: attention and MLP values of each block; block: the input of each block; tile:
    the wave. Or a list of ranges that cover all blocks in order. auto: the planner takes the fastest that fits the
    device, and what else is said here as given (docs/memory.md)."""
    tile_clips: Size | None = None
    """tile: clips that are worked on at a time; null: about three million numbers, more of narrow models."""
    segment_blocks: Size | None = None
    """tile: blocks between two saved inputs; null: where saved inputs and a segment's graphs together are least."""
    # This and what follows change nothing but memory and time, until a docstring says otherwise.
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
    """Place of AdamW's moments between steps; the steps are computed on the device, some parameters at a time."""
    moment_dtype: Literal["fp32", "bf16"] = "fp32"
    """Dtype of AdamW's moments between steps. bf16, rounded up or down at random, takes half the memory and changes the
    result a little (engine ddp)."""
    moving_average: Place = "device"
    """Place of the averages of the trained parameters."""
    frozen_weights: Literal["device", "stream"] = "device"
    """tile: stream keeps frozen blocks in host memory and has those on the device that are worked on, and the next."""
    # Of each rank: machines with several ranks share one memory, which Linux shows to each as its own.
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

    # Only names here: which engine `auto` becomes depends on the card, and is resolved when a run starts.
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
    # Soft NMS never removes a segment by itself: this ends the search.
    min_score: NonNegative = 0.001
    max_segments: Count = 2000
    """Segments that are kept of each class, and of all."""
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

    # THUMOS-14's thresholds; other data sets' stand in their specs.
    tious: tuple[Annotated[Float, Field(gt=0.0, le=1.0)], ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    top_k: tuple[Size, ...] = ()
    """Also report recall@kx for each k: how many instances the k x n best detections of a class find in a video with n
    instances of it (Ego4D: 1 and 5)."""
    blocked_videos: str | None = None
    """JSON file, a list of videos that aren't scored; they are still detected (ActivityNet's evaluator has such a list
    of its own)."""
    groups_by: str | None = None
    """Key of the annotations that divides the instances into groups, which are also scored one at a time."""
    stream: bool = False
    """Run every frame of a video through the backbone once, for all windows that it is in (docs/detect.md); false: each
    window by itself, as published experiments do."""


class RunSpec(Section):
    """Folder of the run."""

    root: str = "runs"
    id: Count = 0
    """A run lives in `<root>/<spec name>/id<id>/`."""


class LoggingSpec(Section):
    """Services that get a run's figures beside its own files and TensorBoard. Changes no result."""

    wandb: str | None = None
    """Project of Weights & Biases that gets the run's figures, pictures and spec, over the network unless
    WANDB_MODE=offline; null: nothing leaves the machine (docs/training.md)."""


# In percent as papers print them, unlike all shares of this file.
Figures = dict[str, Annotated[Float, Field(ge=0.0, le=100.0)]]


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
    # After `run`: a resumed run is compared with its checkpoint's spec up to there, and this changes no result.
    logging: LoggingSpec = LoggingSpec()
    reference: str | None = None
    """Name of the same experiment in OpenTAD, below its configs/adatad and without ".py"."""
    published: Figures | None = None
    """Figures that the paper or the reference reports for this experiment, in percent: mAP by tIoU, and average_mAP."""
    published_select: Select | None = None
    """Which evaluation `published` is of; null: nobody has said."""
    published_last: Figures | None = None
    """Figures of the last epoch of the published training, in percent, where they are known beside `published`."""

    @model_validator(mode="after")
    def _decide_time(self) -> Spec:
        """Write the meaning of null in the place of `data.time`: what reads videos sees the data section alone."""
        if self.data.time is None:
            # Past the frozen model's own setattr.
            time = "count" if self.compat == "reference" else "presentation"
            self.__dict__["data"] = self.data.model_copy(update={"time": time})
        return self


INIT_FROM: tuple[str, ...] = ("model", "init_from")
"""The one path that is read by a fresh run alone."""
PATHS: tuple[tuple[str, ...], ...] = (
    ("data", "root"),
    ("data", "annotations"),
    ("data", "classes"),
    ("data", "blocked_videos"),
    ("data", "videos"),
    ("data", "features"),
    ("model", "backbone", "weights"),
    INIT_FROM,
    ("parallel", "deepspeed"),
    ("postprocess", "classifier", "file"),
    ("evaluate", "blocked_videos"),
    ("run", "root"),
)
"""Keys that are paths: loading fills in `~` and variables."""
STAGE_TO: tuple[str, ...] = ("data", "stage_to")
"""The one path that is filled in later, on the machine whose disk it names."""
