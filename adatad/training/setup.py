"""From a spec to the parts that training and testing are made of, in the one order that is right.

Model, pretrained weights, the list of what is trained, optimizer groups, engine, moving average: the list is fixed
before any optimizer or engine sees the model.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

import torch
from torch import nn

from adatad.convert.backbone import initial_weights
from adatad.data import loader_watch
from adatad.data.annotations import Annotations
from adatad.data.dataset import TrainingWindows, ValidationWindows
from adatad.data.loader import PREFETCH, EpochBatches, Loader, Share
from adatad.data.windows import evaluation_windows
from adatad.errors import UserError
from adatad.memory.ahead import FramesAhead
from adatad.memory.arithmetic import autocast_dtype
from adatad.memory.compiled import compile_report
from adatad.memory.inputs import InputCopies
from adatad.memory.policy import apply_policy, wave_passes
from adatad.memory.results import ResultCopies
from adatad.models.detector import TemporalActionDetector, build_model
from adatad.models.losses import RunningNormalizer
from adatad.models.trained import freeze
from adatad.parallel.base import Engine
from adatad.parallel.build import build_engine
from adatad.parallel.clip import ClipGroup, clip_group, share_clips
from adatad.parallel.layout import Mesh, mesh_of
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.spec.clip_share import clip_share, clips_of_window
from adatad.spec.published_weights import RANDOM
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS
from adatad.training.checkpoint import fingerprint
from adatad.training.ema import Ema
from adatad.training.optimizer import parameter_groups
from adatad.training.targets import TargetMaker

SLACK_SECONDS = 10.0
"""For what a loader process does besides decoding."""


class SetupError(UserError):
    """A spec that can't run on these processes or these data; the message names the key and what to do."""


@dataclass
class Parts:
    """What a training step works with. steps_per_epoch: optimizer steps."""

    spec: Spec
    processes: Processes
    model: nn.Module
    trained: list[str]
    shapes: dict[str, torch.Size]
    """`shapes_of` the model before the engine took it: engines shard parameters and rename what holds them."""
    engine: Engine
    ema: Ema
    normalizer: RunningNormalizer
    num_classes: int
    steps_per_epoch: int
    frozen_fingerprint: str = ""
    """Of the frozen weights as they were loaded, before any policy casts them; "" where nothing will be saved."""
    clip_group: ClipGroup | None = None
    """The ranks that this rank shares windows with."""
    classes: tuple[str, ...] = ()
    """Names of the data set's classes in the order of the outputs: a run that goes on keeps its checkpoint's."""
    constant_sums: dict[str, int] | None = None
    """Of frozen weights, as `recheck` found them at its first step; None before."""
    weights_report: list[str] = field(default_factory=list)
    """What was taken from the file of pretrained weights, and what wasn't, in lines."""
    compile_report: list[str] = field(default_factory=list)
    """What `memory.compile` compiles, in lines."""

    def __post_init__(self) -> None:
        self.inputs = InputCopies(self.processes.device)
        self.frames = FramesAhead(self.spec, self.processes.device)
        self.results = ResultCopies(self.processes.device)


def number_of_classes(spec: Spec, annotations: Annotations) -> int:
    return 1 if spec.model.detector.class_agnostic else len(annotations.classes)


def build_parts(spec: Spec, annotations: Annotations, processes: Processes) -> Parts:
    """Everything of a fresh run. Raises SetupError or WeightsError before anything is written."""
    check_batch(spec, processes, annotations)
    model, weights_report = build_initial_model(spec, number_of_classes(spec, annotations))
    freeze(model, spec.model.backbone)
    # Before a policy casts them.
    frozen_fingerprint = fingerprint_of_all(model, processes)
    steps_per_epoch = len(annotations.train) // spec.train.global_batch
    parts = assemble(spec, processes, model, number_of_classes(spec, annotations), steps_per_epoch)
    parts.weights_report, parts.classes = weights_report, annotations.classes
    parts.compile_report = compile_report(wave_passes(model.backbone))
    parts.frozen_fingerprint = frozen_fingerprint
    parts.clip_group = share_windows(model, spec, processes)
    return parts


def fingerprint_of_all(model: nn.Module, processes: Processes) -> str:
    """The frozen weights' fingerprint, which takes seconds: one rank of each machine computes it. Raises SetupError, on
    all ranks, if machines have different weights."""
    hosts = processes.gather(socket.gethostname())
    own = fingerprint(model) if hosts.index(hosts[processes.rank]) == processes.rank else None
    found = {host: value for host, value in zip(hosts, processes.gather(own), strict=True) if value is not None}
    if len(set(found.values())) > 1:
        raise SetupError(
            f"model.backbone.weights: {', '.join(found)} have read different frozen weights; expected one file on all "
            "machines: copy it anew"
        )
    return found[hosts[0]]


def assemble(spec: Spec, processes: Processes, model: nn.Module, num_classes: int, steps_per_epoch: int) -> Parts:
    """Freeze, group, apply the memory policy, prepare and average a model, in that order."""
    trained = freeze(model, spec.model.backbone)
    groups = parameter_groups(model, spec.optimizer)
    shapes = shapes_of(model)
    if hasattr(model, "backbone"):
        arithmetic = autocast_dtype(spec.train.precision, processes.device)
        sharded = spec.parallel.engine in SHARDS_FROZEN_WEIGHTS
        apply_policy(model.backbone, spec.memory, spec.data, arithmetic, sharded, spec.parallel.clip)
    engine = build_engine(model, groups, spec, processes)
    detector = spec.model.detector
    normalizer = RunningNormalizer(detector.normalizer_start, detector.normalizer_momentum)
    ema = Ema(engine.master_parameters(), spec.ema.decay, on_host=spec.memory.moving_average == "host")
    return Parts(spec, processes, model, trained, shapes, engine, ema, normalizer, num_classes, steps_per_epoch)


def share_windows(model: nn.Module, spec: Spec, processes: Processes) -> ClipGroup | None:
    """Spread windows over the ranks of this rank's clip group, if the spec wants that. The engine has the model."""
    if spec.parallel.clip == 1:
        return None
    clips = clips_of_window(spec.data, spec.model.backbone.clip_frames)
    group = clip_group(processes, mesh_of_ranks(spec, processes), clips, spec.train.hang_seconds)
    share_clips(model.backbone, group)
    return group


def mesh_of_ranks(spec: Spec, processes: Processes) -> Mesh:
    return mesh_of(processes.rank, processes.world, spec.parallel.clip)


def frames_here(spec: Spec, mesh: Mesh) -> slice:
    """The frames of a window that this rank reads."""
    length = spec.model.backbone.clip_frames
    share = clip_share(clips_of_window(spec.data, length), mesh.clip, mesh.clip_rank)
    return slice(share.start * length, share.stop * length)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Of all parameters, by name, of a model that no engine has taken yet."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def build_initial_model(spec: Spec, num_classes: int) -> tuple[TemporalActionDetector, list[str]]:
    """The model at step 0: random from `train.seed`, the backbone from its file; and lines on what was read."""
    torch.manual_seed(spec.train.seed)
    # What the file fills needn't be drawn before: of g that is most of the time that building takes.
    model = build_model(spec.model, num_classes, drawn=spec.model.backbone.weights in (None, RANDOM))
    return model, initial_weights(model.backbone, spec.model.backbone.weights)


def check_batch(spec: Spec, processes: Processes, annotations: Annotations) -> None:
    """Refuse a global batch that these ranks, or these videos, can't make."""
    train, world, clip = spec.train, processes.world, spec.parallel.clip
    check_mesh(spec, processes)
    if train.global_batch % (world // clip * train.accumulation):
        shared = f" / parallel.clip {clip}" if clip > 1 else ""
        raise SetupError(
            f"train.global_batch {train.global_batch} can't be divided by {world} ranks{shared} x train.accumulation "
            f"{train.accumulation}"
        )
    if len(annotations.train) < train.global_batch:
        raise SetupError(
            f"{spec.data.annotations}: {len(annotations.train)} training videos are fewer than train.global_batch "
            f"{train.global_batch}"
        )
    if spec.model.detector.regression_weight == 0 and world > 1:
        raise SetupError("model.detector.regression_weight 0 follows the losses of one rank: run it on one process")


def check_mesh(spec: Spec, processes: Processes) -> None:
    """Refuse a number of ranks that can't be cut into groups that share windows."""
    world, clip = processes.world, spec.parallel.clip
    if world % clip:
        raise SetupError(
            f"parallel.clip {clip}, ranks that share a window, doesn't divide the {world} ranks of this run; "
            f"set parallel.clip to a divisor of {world}"
        )


def check_shared_memory(spec: Spec, processes: Processes) -> None:
    """Raises LoaderError if loader processes can't hand their windows over: those of training, and beside them those of
    an evaluation."""
    data, train = spec.data, spec.train
    if not data.workers:
        return
    frames = frames_here(spec, mesh_of_ranks(spec, processes)).indices(
        data.window.size_grid * data.window.frames_per_position
    )
    window_bytes = 3 * len(range(*frames)) * data.size_pixels**2
    micro_batch = max(1, train.global_batch * spec.parallel.clip // (processes.world * train.accumulation))
    ahead = PREFETCH * data.workers
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes.world))
    # In batches of one window.
    loader_watch.check_shared_memory(window_bytes, (ahead + train.accumulation) * micro_batch + ahead + 1, local)


def idle_seconds(spec: Spec) -> float:
    """How long a loader process may do nothing: less than a step may take, but two tries to decode a frame."""
    return min(spec.train.hang_seconds, 2 * spec.data.decode_timeout_seconds + SLACK_SECONDS)


def training_loader(spec: Spec, annotations: Annotations, processes: Processes, start: tuple[int, int]) -> Loader:
    """This rank's micro-batches from (epoch, step) to the end of training, with their targets."""
    train, mesh = spec.train, mesh_of_ranks(spec, processes)
    share = Share(mesh.data_rank, mesh.data, train.accumulation, train.global_batch)
    reference, here = spec.compat == "reference", frames_here(spec, mesh)
    dataset = TrainingWindows(annotations.train, spec.data, train.seed, reference, here)
    batches = EpochBatches(len(annotations.train), share, train.seed, end_epoch(spec), start)
    targets = TargetMaker(spec.model.detector, number_of_classes(spec, annotations))
    return Loader(dataset, batches, spec.data.workers, idle_seconds(spec), complete=targets)


def end_epoch(spec: Spec) -> int:
    """Epochs that are trained."""
    return spec.schedule.end_epoch or spec.schedule.epochs


def validation_loader(
    spec: Spec, annotations: Annotations, processes: Processes, shuffle_clips: bool = False
) -> Loader:
    """This rank's windows of the validation videos: every n-th of n ranks (or clip groups), none twice.

    One at a time: in batches of another size the last digits would differ, and so with the number of ranks.
    """
    repeat_last = spec.compat == "reference"
    places = [
        place for video in annotations.validation for place in evaluation_windows(video, spec.data.window, repeat_last)
    ]
    mesh = mesh_of_ranks(spec, processes)
    shuffled = spec.model.backbone.clip_frames if shuffle_clips else 0
    dataset = ValidationWindows(places, spec.data, shuffled, frames_here(spec, mesh))
    mine = range(mesh.data_rank, len(places), mesh.data)
    return Loader(dataset, [[number] for number in mine], spec.data.workers, idle_seconds(spec))
