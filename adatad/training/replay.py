"""A batch that a training left, computed again to find what in it isn't finite.

Its windows are computed one by one, by the model's own modules and not in tiles, whatever the run's memory policy was:
so every module can be watched. The same numbers in another order: results differ from the run's by rounding.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adatad.convert.weight_file import WeightsError
from adatad.errors import UserError
from adatad.memory.arithmetic import autocast
from adatad.memory.policy import DTYPES, apply_policy
from adatad.models.actionformer import level_masks
from adatad.models.detector import TemporalActionDetector, freeze
from adatad.models.keyed_dropout import HostKeys
from adatad.models.losses import Targets, detection_losses
from adatad.parallel.processes import start_processes
from adatad.spec import Spec
from adatad.spec.schema import MemorySpec
from adatad.training.bad_batch_file import BadBatch, BatchFacts, ReplayError, WindowFacts, file_name, read_bad_batch
from adatad.training.checkpoint import all_checkpoints, fingerprint, read_checkpoint
from adatad.training.checkpoint_check import why_broken
from adatad.training.determinism import full_float32
from adatad.training.export import own_spec
from adatad.training.module_watch import BadModule, Largest, ModuleWatch, is_finite
from adatad.training.out_of_memory import OutOfMemoryError, is_out_of_memory
from adatad.training.setup import build_initial_model

LOSSES = BadModule("the losses", "detection_losses", fed_finite=True)
"""What went bad where every module was finite, and the loss isn't."""


class ReplayedWindow(NamedTuple):
    """A window of the batch, as a micro-batch of one: tensors as in `MicroBatch`."""

    facts: WindowFacts
    frames: Tensor
    mask: Tensor
    keys: Tensor
    segments: Tensor
    targets: Targets


class PassResult(NamedTuple):
    """Results of a forward and backward pass of all windows in one precision.

    loss, gradient_norm: of this file's windows alone. forward: the first module whose output isn't finite; backward:
    the first whose gradient isn't, where all outputs are; window: in which that was. operator: autograd's name of the
    operation that gave the first NaN of a backward pass, and its place in the code.
    """

    precision: str
    loss: float
    gradient_norm: float
    largest: Largest
    forward: BadModule | None = None
    backward: BadModule | None = None
    window: WindowFacts | None = None
    operator: str | None = None

    @property
    def is_finite(self) -> bool:
        """True if nothing went bad."""
        return self.forward is None and self.backward is None


class Replayed(NamedTuple):
    """Result of a replay. bad_weights: names of parameters that hold NaN or Inf; bad_labels: windows whose targets or
    segments do; notes: lines on how it was computed."""

    facts: BatchFacts
    passes: list[PassResult]
    bad_weights: list[str]
    bad_labels: list[WindowFacts]
    notes: list[str]


def replay(path: Path, overrides: Sequence[str] = ()) -> Replayed:
    """Compute a batch again in fp32, in bf16, and in fp16 if that was the run's precision.

    overrides: of the spec in the file, such as `model.backbone.weights=FILE`. Raises UserError for a file that is
    damaged, of another version, or whose weights aren't there.
    """
    batch = read_whole_batch(path)
    spec = own_spec(path, overrides, check_files=False)
    check_fits(batch, spec)
    with start_processes() as processes:
        if processes.world > 1:
            raise UserError("adatad replay computes on one process; start it without torchrun")
        model, notes = build_model_of(batch, spec)
        model.to(processes.device).train()
        windows = list(windows_of(batch))
        precisions = ["fp32", "bf16", *(["fp16"] if batch.facts.precision == "fp16" else [])]
        with full_float32(), warnings.catch_warnings():
            # torch says of some modules that their hooks see outputs alone, which is known here.
            warnings.simplefilter("ignore", UserWarning)
            again = StepAgain(model, windows, batch.facts, spec, processes.device)
            passes, more = again.all_passes(precisions)
    bad_weights = [name for name, parameter in model.named_parameters() if not is_finite(parameter)]
    bad_labels = [window.facts for window in windows if not is_finite([window.segments, window.targets])]
    return Replayed(batch.facts, passes, bad_weights, bad_labels, [*notes, *more])


def read_whole_batch(path: Path) -> BadBatch:
    """Read a batch; where ranks shared its windows, with the frames of all of them. Raises ReplayError."""
    batch = read_bad_batch(path)
    facts = batch.facts
    if facts.clip == 1:
        return batch
    first = facts.rank - facts.clip_rank
    parts = [
        batch if rank == facts.rank else _beside(batch, rank, "holds other frames of the same windows")
        for rank in range(first, first + facts.clip)
    ]
    joined = [
        own._replace(frames=torch.cat([part.micro_batches[number].frames for part in parts], dim=2))
        for number, own in enumerate(batch.micro_batches)
    ]
    return batch._replace(micro_batches=joined, weights=next((p.weights for p in parts if p.weights), {}))


def _beside(batch: BadBatch, rank: int, why: str) -> BadBatch:
    """Read another rank's file of the same step. Raises ReplayError if it isn't there, or of another run."""
    path = batch.path.with_name(file_name(batch.facts.reason, batch.facts.step, rank))
    if not path.is_file():
        raise ReplayError(f"{path}: isn't there, and {why} as {batch.path.name}: put it beside that")
    other = read_bad_batch(path)
    same = ("step", "ranks", "clip", "normalizer", "frozen_fingerprint")
    shapes = [[m.mask.shape for m in one.micro_batches] for one in (batch, other)]
    if any(getattr(other.facts, name) != getattr(batch.facts, name) for name in same) or shapes[0] != shapes[1]:
        raise ReplayError(f"{path}: isn't of the same step of the same run as {batch.path.name}; copy both again")
    return other


def check_fits(batch: BadBatch, spec: Spec) -> None:
    """Raise ReplayError unless the batch's tensors are what the spec's model takes."""
    window, outputs = spec.data.window, len(batch.model.outputs)
    wanted_frames = [3, window.size_grid * window.frames_per_position, spec.data.size_pixels, spec.data.size_pixels]
    for micro_batch in batch.micro_batches:
        frames, classes = list(micro_batch.frames.shape[1:]), micro_batch.targets.classes.shape[1:]
        grid = micro_batch.mask.shape[1]
        points = sum(mask.shape[1] for mask in level_masks(micro_batch.mask[:1], spec.model.detector))
        if frames != wanted_frames or grid != window.size_grid or classes != (points, outputs):
            raise ReplayError(
                f"{batch.path}: its windows (frames {frames}, {grid} positions, targets {list(classes)}) aren't those "
                f"of its spec (frames {wanted_frames}, {window.size_grid} positions, targets {[points, outputs]}); "
                "leave data.* and model.detector.* as they are in the file"
            )


def build_model_of(batch: BadBatch, spec: Spec) -> tuple[TemporalActionDetector, list[str]]:
    """Return the model with the weights of the step, on the CPU, and lines on them. Raises ReplayError or
    WeightsError."""
    try:
        model, _ = build_initial_model(spec, len(batch.model.outputs))
    except WeightsError as error:
        raise WeightsError(f"{error}; say where it is with --set model.backbone.weights=FILE") from error
    trained = freeze(model, spec.model.backbone, spec.model.freeze)
    frozen = batch.facts.frozen_fingerprint
    if frozen and fingerprint(model) != frozen:
        raise ReplayError(
            f"{batch.path}: was computed with other frozen weights than model.backbone.weights "
            f"({spec.model.backbone.weights}) gives; name those of the run with --set model.backbone.weights=FILE"
        )
    weights, notes = _weights_of(batch)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters() if name in set(trained)}
    got = {name: tensor.shape for name, tensor in weights.items()}
    if different := sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name)):
        raise ReplayError(
            f"{batch.path}: its weights aren't those of its spec ({len(different)} differ, such as {different[0]}); "
            "leave model.* as it is in the file"
        )
    model.load_state_dict(weights, strict=False)
    return model, notes


def _weights_of(batch: BadBatch) -> tuple[dict[str, Tensor], list[str]]:
    """Return the trained parameters of the step, or of the checkpoint that is nearest to it, and lines on them."""
    facts, weights = batch.facts, batch.weights
    if not weights and facts.weights is not None and facts.rank:
        first = batch.path.with_name(file_name(facts.reason, facts.step, 0))
        weights = _beside(batch, 0, "").weights if first.is_file() else {}
    if weights:
        late = "the weights are those after the step: its update came before its norm was known"
        return weights, [late] if facts.weights == "after the step" else []
    folder = batch.path.absolute().parent.parent / "checkpoints"
    found = {int(path.name.removeprefix("step-")): path for path in all_checkpoints(folder) if why_broken(path) is None}
    if not found:
        raise ReplayError(
            f"{batch.path}: holds no weights, and there is no checkpoint in {folder}; put the file of rank 0 "
            "beside it, or leave it in its run"
        )
    # Before the step if there is one: a later one may have learned what the step lacked.
    near = max((step for step in found if step <= facts.step), default=min(found))
    parameters = read_checkpoint(found[near]).parameters
    return parameters, [
        f"the weights are those of {found[near]}, of step {near}: the file has none of step {facts.step}"
    ]


def windows_of(batch: BadBatch) -> Iterator[ReplayedWindow]:
    """Yield the windows of all micro-batches."""
    for facts, part in zip(batch.facts.windows, batch.micro_batches, strict=True):
        for place, window in enumerate(facts):
            one = slice(place, place + 1)
            targets = Targets(*(tensor[one] for tensor in part.targets))
            yield ReplayedWindow(
                window, part.frames[one], part.mask[one], part.keys[one], part.segments[place], targets
            )


@dataclass(frozen=True)
class StepAgain:
    """A batch's windows and the model that computes them."""

    model: TemporalActionDetector
    windows: list[ReplayedWindow]
    facts: BatchFacts
    spec: Spec
    device: torch.device

    def all_passes(self, precisions: Sequence[str]) -> tuple[list[PassResult], list[str]]:
        """Return the results in each precision, and lines on how they were computed. Raises OutOfMemoryError."""
        notes = ["blocks are computed as modules, not in tiles, and windows one by one: results differ by rounding"]
        for policy in ("none", "block"):
            # As for fp32, so that no weight is cast before autocast does it.
            apply_policy(self.model.backbone, MemorySpec(policy=policy), self.spec.data, torch.float32)
            try:
                return [self.one_pass(precision) for precision in precisions], notes
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self.model.zero_grad(set_to_none=True)
            notes = [*notes, "one window's activations don't fit: blocks are computed again in backward"]
        raise OutOfMemoryError("one window doesn't fit this GPU without tiles; --device cpu computes it in host memory")

    def one_pass(self, precision: str) -> PassResult:
        """Return what forward and backward passes of all windows give in a precision."""
        # fp16 alone has a loss scale: in the others gradients are as they would be in a run of theirs.
        factor = self.facts.loss_factor if precision == "fp16" else 1.0
        total, largest, bad = 0.0, Largest(0.0, ""), None
        for window in self.windows:
            with ModuleWatch(self.model) as watch:
                loss = self.loss(window, precision)
                own = float(loss.detach())
                (loss * factor).backward()
            total += own
            largest = max(largest, watch.largest)
            forward = watch.forward or (None if is_finite(loss) else LOSSES)
            if bad is None and (forward or watch.backward):
                bad = window, forward, None if forward else watch.backward
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients)) / factor
        self.model.zero_grad(set_to_none=True)
        result = PassResult(precision, total, norm, largest)
        if bad is None:
            return result
        window, forward, backward = bad
        operator = None if backward is None else self.bad_operator(window, precision, factor)
        return result._replace(forward=forward, backward=backward, window=window.facts, operator=operator)

    def loss(self, window: ReplayedWindow, precision: str) -> Tensor:
        """Return a window's part of the step's loss, with its graph."""
        with autocast(self.device, DTYPES[precision]):
            frames, mask = window.frames.to(self.device), window.mask.to(self.device)
            predictions = self.model(frames, mask, HostKeys(window.keys))
            targets = Targets(*(tensor.to(self.device) for tensor in window.targets))
            return detection_losses(predictions, targets, self.facts.normalizer, self.spec.model.detector)["cost"]

    def bad_operator(self, window: ReplayedWindow, precision: str, factor: float) -> str | None:
        """Return autograd's name of what gave the first NaN of a backward pass, and where the forward pass called it;
        None for an infinite number, which autograd doesn't look for."""
        name = None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                # In a pass of its own, and not around those above: it ends at the first NaN.
                with torch.autograd.detect_anomaly():
                    (self.loss(window, precision) * factor).backward()
            except RuntimeError as error:
                found = re.search(r"Function '(\w+)' returned nan", str(error))
                if found is None:
                    raise
                name = found[1]
        self.model.zero_grad(set_to_none=True)
        if name is None:
            return None
        # torch says in a warning, and nowhere else, where the forward pass came from.
        calls = re.findall(r'File ".*?(adatad/[^"]+)", line (\d+), in (\w+)', "\n".join(str(w.message) for w in said))
        calls = [call for call in calls if not call[0].endswith("training/replay.py")]
        return f"{name}, of {calls[-1][2]} ({calls[-1][0]}:{calls[-1][1]})" if calls else name
