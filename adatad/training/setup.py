"""Setup: a model that is ready to train or to be scored, of a resolved run, in the one order that is right."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from adatad.convert.backbone_weights import initial_weights
from adatad.memory.compiled import compile_report
from adatad.memory.inputs import FramesAhead, InputCopies
from adatad.memory.policy import apply_policy
from adatad.memory.results import ResultCopies
from adatad.models.detector import TemporalActionDetector, build_model, freeze
from adatad.models.losses import RunningNormalizer
from adatad.parallel.base import Engine
from adatad.parallel.build import build_engine
from adatad.parallel.clip import ClipGroup, FakeClipGroup, clip_group, share_clips
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.spec.model_sections import RANDOM
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS
from adatad.spec.sizes import clips_of_window
from adatad.training.checkpoint import fingerprint
from adatad.training.ema import Ema
from adatad.training.optimizer import parameter_groups
from adatad.training.resolve import ResolvedRun, SetupError


@dataclass
class PreparedModel:
    """A model under its memory policy, with what is trained of it."""

    model: nn.Module
    trained: list[str]
    """Names of the parameters that learn."""
    shapes: dict[str, torch.Size]
    """Shapes of all parameters before the engine took the model: engines shard them and rename what holds them."""
    engine: Engine | None
    """The engine that updates the model; None where nothing learns, as in a test."""
    frozen_fingerprint: str
    """Hash of the frozen weights as they were loaded, before any policy casts them; "" where nothing will be saved."""
    compile_report: list[str]
    """Lines on what `memory.compile` compiles."""


@dataclass
class TrainState:
    """Everything that a training step works with."""

    run: ResolvedRun
    processes: Processes
    model: nn.Module
    trained: list[str]
    shapes: dict[str, torch.Size]
    engine: Engine
    ema: Ema
    normalizer: RunningNormalizer
    frozen_fingerprint: str = ""
    clip_group: ClipGroup | FakeClipGroup | None = None
    """The ranks that this rank shares windows with."""
    constant_sums: dict[str, int] | None = None
    """Checksums of frozen weights, as `recheck` found them at its first step; None before."""
    weights_report: list[str] = field(default_factory=list)
    """Lines on what was taken from the files that the weights begin from, and what wasn't."""
    compile_report: list[str] = field(default_factory=list)
    head_is_new: bool = True
    """Whether the detector's head began from its prior, not from trained weights."""

    def __post_init__(self) -> None:
        # Streams and buffers of the copies between host and device, for the whole run.
        self.spec: Spec = self.run.spec
        self.inputs = InputCopies(self.processes.device)
        self.frames = FramesAhead(self.spec, self.processes.device)
        self.results = ResultCopies(self.processes.device)


def prepare_model(
    run: ResolvedRun,
    processes: Processes,
    model: nn.Module,
    learns: bool,
    load: Callable[[list[str]], None] | None = None,
    group: ClipGroup | FakeClipGroup | None = None,
    will_be_saved: bool = False,
) -> PreparedModel:
    """Freeze a model, load its trained parameters, apply the memory policy, hand it to the engine, and spread its
    windows over a group of ranks.

    learns: whether an engine trains it. load: called with the trained names, to fill them from a file. group: the ranks
    that share windows. All ranks call it.
    """
    spec = run.spec
    # 1. What is trained, before any optimizer, policy or engine sees the model.
    trained = freeze(model, spec.model.backbone, spec.model.freeze)
    shapes = shapes_of(model)
    if load is not None:
        load(trained)
    # 2. The fingerprint, before a policy casts frozen weights; groups, before an engine renames parameters.
    frozen_fingerprint = fingerprint_of_all(model, processes) if will_be_saved else ""
    groups = parameter_groups(model, spec.optimizer) if learns else []
    # 3. The policy, which casts and moves frozen weights and makes the executor. The engine takes them as they are
    # then, and tells the executor where to get them.
    compiled = []
    if model.backbone is not None:
        sharded = learns and spec.parallel.engine in SHARDS_FROZEN_WEIGHTS
        apply_policy(model.backbone, spec.memory, spec.data, run.arithmetic, sharded, spec.parallel.clip)
        compiled = compile_report(model.backbone.executor.passes)
    # 4. The engine. Without one, the model goes to its device only now: frozen weights that are streamed, or cast, may
    # not fit there as they come from their file.
    engine = build_engine(model, groups, spec, processes) if learns else None
    if engine is None:
        model.to(processes.device)
    # 5. Clip parallelism, around that executor.
    if group is not None:
        share_clips(model.backbone, group)
    return PreparedModel(model, trained, shapes, engine, frozen_fingerprint, compiled)


def build_train_state(
    run: ResolvedRun,
    processes: Processes,
    model: nn.Module,
    group: ClipGroup | FakeClipGroup | None = None,
    will_be_saved: bool = False,
) -> TrainState:
    """Prepare a model to be trained, with its moving average and the normalizer of its losses."""
    ready = prepare_model(run, processes, model, learns=True, group=group, will_be_saved=will_be_saved)
    detector = run.spec.model.detector
    return TrainState(
        run,
        processes,
        model,
        ready.trained,
        ready.shapes,
        ready.engine,
        Ema(ready.engine.master_parameters(), run.spec.ema.decay, on_host=run.spec.memory.moving_average == "host"),
        RunningNormalizer(detector.normalizer_start, detector.normalizer_momentum),
        ready.frozen_fingerprint,
        group,
        compile_report=ready.compile_report,
    )


def initial_state(
    run: ResolvedRun, processes: Processes, fill: Callable[[nn.Module], list[str]] | None = None
) -> TrainState:
    """Build everything of a fresh run. fill: gives the model the weights that it begins with, and returns lines on
    them. Raises SetupError, WeightsError or what `fill` raises, before anything is written."""
    model, weights_report = build_initial_model(run.spec, run.num_classes)
    if fill is not None:
        # Before the engine and the averages, which begin with the weights that the model has then.
        weights_report += fill(model)
    # Before the engine, which may shard it.
    head_is_new = model.detector.head.is_new
    state = build_train_state(run, processes, model, own_clip_group(run, processes), will_be_saved=True)
    state.weights_report, state.head_is_new = weights_report, head_is_new
    return state


def build_initial_model(spec: Spec, num_classes: int) -> tuple[TemporalActionDetector, list[str]]:
    """Build the model at step 0: random from `train.seed`, the backbone from its file; and lines on what was read."""
    # The same on every rank: weights depend on no engine and no number of ranks.
    torch.manual_seed(spec.train.seed)
    # What the file fills needn't be drawn before: of g that is most of the time that building takes.
    model = build_model(spec.model, num_classes, drawn=spec.model.backbone.weights in (None, RANDOM))
    if model.backbone is None:
        return model, [f"no backbone: features of {spec.data.features}"]
    return model, initial_weights(model.backbone, spec.model.backbone.weights)


def own_clip_group(run: ResolvedRun, processes: Processes) -> ClipGroup | None:
    """Return the ranks that this rank shares windows with; None if each has windows of its own. All ranks call it."""
    if run.mesh.clip == 1:
        return None
    clips = clips_of_window(run.spec.data, run.spec.model.backbone.clip_frames)
    return clip_group(processes, run.mesh, clips, run.spec.train.hang_seconds)


def fingerprint_of_all(model: nn.Module, processes: Processes) -> str:
    """Return the frozen weights' fingerprint, which takes seconds: one rank of each machine computes it. Raises
    SetupError, on all ranks, if machines have different weights."""
    hosts = processes.gather(socket.gethostname())
    own = fingerprint(model) if hosts.index(hosts[processes.rank]) == processes.rank else None
    found = {host: value for host, value in zip(hosts, processes.gather(own), strict=True) if value is not None}
    if len(set(found.values())) > 1:
        raise SetupError(
            f"model.backbone.weights: {', '.join(found)} have read different frozen weights; expected one file on all "
            "machines: copy it anew"
        )
    return found[hosts[0]]


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of all parameters, by name, of a model that no engine has taken yet."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}
