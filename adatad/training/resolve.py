"""The resolved run: every fact that a spec leaves to its data, its device and its ranks, settled once at the start.

`train`, `test` and the tools build a `ResolvedRun` from a spec. What is below them takes it, and asks neither what
`auto` or `compat` mean nor how long an epoch is. `adatad.training.choice` comes before: it replaces `engine: auto` and
`policy: auto`, for which it asks the planner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from adatad.data.annotation_file import read_names
from adatad.data.annotations import Annotations, ground_truth, read_annotations
from adatad.data.balance import windows_of_epoch
from adatad.errors import UserError
from adatad.memory.arithmetic import autocast_dtype
from adatad.memory.policy import DTYPES
from adatad.parallel.layout import Mesh, mesh_of
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.spec.quirks import Quirks
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS
from adatad.spec.sizes import end_epoch, steps_per_epoch
from adatad.training.model_facts import AGNOSTIC_OUTPUTS
from adatad.training.run_directory import RunDirectory, run_directory

EngineName = Literal["ddp", "fsdp", "zero1", "zero2", "zero3", "fairscale"]
Precision = Literal["bf16", "fp16", "fp32"]


class SetupError(UserError):
    """A spec that can't run on these processes or these data; the message names the key and what to do."""


@dataclass(frozen=True)
class ResolvedRun:
    """A run of a spec on the processes that there are."""

    spec: Spec
    """The spec without any `auto`: engine, precision, and a memory section in which the planner's plan has its
    place."""
    saved_spec: Spec
    """The spec that the run's files keep: as it was given, with the planner's plan. On another machine its `auto` may
    mean something else."""
    quirks: Quirks
    mesh: Mesh
    """This rank's place among those that share windows and those that have windows of their own."""
    outputs: tuple[str, ...]
    """Names of the model's outputs."""
    steps_per_epoch: int
    """Optimizer steps."""
    annotations: Annotations | None = None
    """Annotations of the spec's videos; None where a model is run without data, as in a benchmark."""
    ground_truth: dict[str, Any] | None = None
    """Annotations that detections are scored against, as the content of a file."""
    unscored_videos: frozenset[str] = frozenset()
    """Videos that are detected, but don't count (`evaluate.blocked_videos`)."""

    @property
    def num_classes(self) -> int:
        """Number of the model's outputs; 1 if it doesn't tell classes apart."""
        return len(self.outputs)

    @property
    def arithmetic(self) -> torch.dtype:
        """Dtype of autocast; float32 means none."""
        return DTYPES[self.spec.train.precision]

    @property
    def end_epoch(self) -> int:
        """Epochs that are trained."""
        return end_epoch(self.spec)

    @property
    def directory(self) -> RunDirectory:
        """Directory of the run, which may not exist yet."""
        return run_directory(self.spec)

    def in_order(self, classes: Sequence[str]) -> ResolvedRun:
        """Return the run with its classes, and so its outputs, numbered in this order: that of a checkpoint."""
        # A detector without classes has one output, whatever the order.
        if self.spec.model.detector.class_agnostic:
            return self
        return replace(self, annotations=self.annotations.in_order(tuple(classes)), outputs=tuple(classes))


def resolve_run(
    spec: Spec,
    processes: Processes,
    annotations: Annotations | None = None,
    outputs: Sequence[str] | None = None,
    saved_spec: Spec | None = None,
) -> ResolvedRun:
    """Resolve a spec whose engine and memory plan have been chosen (`adatad.training.choice`).

    annotations: the spec's, if they have been read already. outputs: names of a trained model's outputs; None: those
    of the data set. saved_spec: what files keep; None: the spec. Raises UserError for annotations that can't be read
    or scored.
    """
    # Handed in by callers that have needed them before, for counts of classes or a log: large files take seconds.
    annotations = annotations or annotations_for(spec)
    quirks = Quirks.of(spec.compat)
    return replace(
        # Saved weights name their outputs themselves; the data set's list may have another order by now.
        resolve_model(spec, processes, outputs or outputs_of(spec, annotations)),
        saved_spec=saved_spec or spec,
        steps_per_epoch=steps_per_epoch(spec, windows_of_epoch(spec.train.class_balance, annotations.train)),
        annotations=annotations,
        ground_truth=annotations.ground_truth or ground_truth(spec.data, quirks.keep_ambiguous),
        unscored_videos=frozenset(read_names(spec.evaluate.blocked_videos)),
    )


def resolve_model(spec: Spec, processes: Processes, outputs: Sequence[str] | int, steps: int = 100) -> ResolvedRun:
    """Resolve what a model needs to be run without data, for measurements. outputs: names, or how many there are;
    steps: of an epoch."""
    # Measurements have no classes, and only their number has an effect on memory.
    names = tuple(map(str, range(outputs))) if isinstance(outputs, int) else tuple(outputs)
    # Still "auto" only in tools that measure a model: training has been through `adatad.training.choice`.
    engine = "ddp" if spec.parallel.engine == "auto" else spec.parallel.engine
    return ResolvedRun(
        spec=without_auto(spec, engine, precision_on(processes.device, spec.train.precision)),
        saved_spec=spec,
        quirks=Quirks.of(spec.compat),
        mesh=mesh_of(processes.rank, processes.world, spec.parallel.clip),
        outputs=names,
        steps_per_epoch=steps,
    )


def without_auto(spec: Spec, engine: EngineName, precision: Precision) -> Spec:
    """Return the spec with the engine and the precision that were chosen, and with all that follows from the two in
    place of the `auto` of its memory section.

    Three keys keep theirs: `frozen_dtype` and `saved_input_dtype`, where `auto` asks for no other dtype, and `policy`,
    which is the planner's to replace before a model is run.
    """
    memory = spec.memory
    # Weights that come to the device one block at a time need all tiles of a block before those of the next.
    one_at_a_time = (
        engine in SHARDS_FROZEN_WEIGHTS or memory.frozen_weights == "stream" or memory.frozen_dtype != "auto"
    )
    # The order matters: the residual stream follows the weights' dtype, not the run's precision.
    weight_dtype = precision if memory.weight_dtype == "auto" else memory.weight_dtype
    chosen = {
        "order": memory.order if memory.order != "auto" else "blocks" if one_at_a_time else "tiles",
        "weight_dtype": weight_dtype,
        "residual_dtype": weight_dtype if memory.residual_dtype == "auto" else memory.residual_dtype,
    }
    return spec.model_copy(
        update={
            "memory": memory.model_copy(update=chosen),
            "parallel": spec.parallel.model_copy(update={"engine": engine}),
            "train": spec.train.model_copy(update={"precision": precision}),
        }
    )


def precision_on(device: torch.device, precision: str) -> Precision:
    """Return what `train.precision` comes to on a device."""
    # The rule is autocast's own; here its answer gets its name back.
    dtype = autocast_dtype(precision, device)
    return next(name for name in ("bf16", "fp16", "fp32") if DTYPES[name] == dtype)


def annotations_for(spec: Spec, training: bool = True) -> Annotations:
    """Read the spec's annotation file as its model and its `compat` want it. training=False: for a test, which needs no
    training videos."""
    return read_annotations(spec.data, Quirks.of(spec.compat), spec.model.detector.class_agnostic, training)


def outputs_of(spec: Spec, annotations: Annotations) -> tuple[str, ...]:
    """Return the names of the model's outputs: one if it doesn't tell classes apart."""
    return AGNOSTIC_OUTPUTS if spec.model.detector.class_agnostic else annotations.classes


def check_batch(spec: Spec, ranks: int, annotations: Annotations) -> None:
    """Raise SetupError for a global batch that so many ranks, or these videos, can't make."""
    check_division(spec, ranks)
    # An epoch leaves out videos that fill no batch: it would have no step at all.
    if len(annotations.train) < spec.train.global_batch:
        raise SetupError(
            f"{spec.data.annotations}: {len(annotations.train)} training videos are fewer than train.global_batch "
            f"{spec.train.global_batch}"
        )
    # 0 stands for a weight that is computed from the losses themselves, and ranks don't exchange these.
    if spec.model.detector.regression_weight == 0 and ranks > 1:
        raise SetupError("model.detector.regression_weight 0 follows the losses of one rank: run it on one process")


def check_stop(spec: Spec, annotations: Annotations) -> None:
    """Raise SetupError where no evaluation can be better than another, and training would end by that."""
    if spec.train.stop_after is not None and not any(len(video.labels) for video in annotations.validation):
        raise SetupError(
            f"{spec.data.annotations}: the validation videos have no instance, so that no evaluation can be better "
            "than another; --set train.stop_after=null"
        )


def check_division(spec: Spec, ranks: int) -> None:
    """Raise SetupError unless the global batch can be divided among so many ranks and their micro-batches."""
    train, clip = spec.train, spec.parallel.clip
    # First: the division below is by the groups of ranks that share windows.
    check_mesh(spec, ranks)
    if train.global_batch % (ranks // clip * train.accumulation):
        shared = f" / parallel.clip {clip}" if clip > 1 else ""
        raise SetupError(
            f"train.global_batch {train.global_batch} can't be divided by {ranks} ranks{shared} x train.accumulation "
            f"{train.accumulation}"
        )


def check_mesh(spec: Spec, ranks: int) -> None:
    """Raise SetupError unless the ranks can be cut into groups that share windows."""
    clip = spec.parallel.clip
    if ranks % clip:
        raise SetupError(
            f"parallel.clip {clip}, ranks that share a window, doesn't divide the {ranks} ranks of this run; "
            f"set parallel.clip to a divisor of {ranks}"
        )
