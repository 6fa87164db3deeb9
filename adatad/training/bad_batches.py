"""Batches that a training leaves in its directory: of steps that were skipped for NaN or Inf and, if the spec wants it,
of steps whose gradient norm is far above the usual one. `adatad replay` computes them again.

Nothing here may end a training, change a number of it, or let a rank wait for one that doesn't come: every rank makes
the same exchanges, whatever its disk says.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections import deque
from collections.abc import Sequence
from logging import Logger
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatad import __version__
from adatad.data.augment import augment
from adatad.data.dataset import Batch
from adatad.files import reason
from adatad.parallel.base import all_finite
from adatad.spec import to_yaml
from adatad.training.bad_batch_file import (
    LARGE_NORM,
    NOT_FINITE,
    WEIGHTS,
    BatchFacts,
    file_name,
    tensors_of,
    window_facts,
    write_bad_batch,
)
from adatad.training.model_facts import facts_of
from adatad.training.monitor import BestEffort
from adatad.training.run_directory import RunDirectory
from adatad.training.setup import TrainState
from adatad.training.step import LOSSES, batch_targets

FOLDER = "bad_batches"
MAX_STEPS = 3
"""Steps of each kind whose batches a run leaves: the first ones."""
MAX_RUN_BYTES = 16 << 30
MAX_WEIGHT_BYTES = 1 << 30
"""Bytes of all batches of a run together, and of trained parameters beside a batch; larger ones aren't left."""
MAX_FREE_FRACTION = 0.1
"""Share of the disk's free bytes that a step may take: checkpoints come first."""
MAX_SEARCH_STEPS = 3
"""Skipped steps in a row that fp16's loss scale may take to find its size; gradients of a further one are bad
themselves."""
MEDIAN_STEPS, MIN_STEPS = 200, 20
"""Steps that the usual gradient norm is the median of: the last ones, and at least so many."""
STEP_FILE = re.compile(r"((?:large_norm_)?step\d+)_rank\d+\.safetensors")


class KeptStep(NamedTuple):
    """A step whose batch is left. values: of `train_step`; usual: median gradient norm, None where it isn't asked for;
    with_weights: whether the trained parameters are left too."""

    values: dict[str, Any]
    step: int
    why: str
    usual: float | None
    with_weights: bool


class BadBatches:
    """Writer of a run's bad steps; it remembers the gradient norms that the run calls usual."""

    def __init__(self, state: TrainState, directory: RunDirectory, logger: Logger):
        self.state, self.directory, self.logger = state, directory, logger
        self.folder = directory.path / FOLDER
        self._best_effort = BestEffort(logger.warning)
        # Of this process alone: a resumed run takes the usual norm anew.
        self._norms: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self._skipped_in_a_row = 0
        self._refused: set[tuple[str, str]] = set()
        self._full: set[str] = set()
        """Kinds of steps of which as many as may be are left: nothing is asked about a further one."""
        self._full_text = f"{self.folder} holds those of {MAX_STEPS} steps already"

    def look_at(self, values: dict[str, Any], micro_batches: list[Batch], step: int) -> None:
        """Leave the batch of a step if it is a bad one. values: of `train_step`, the same on all ranks, which all call
        it."""
        why, usual = self._why_kept(values)
        if why is None or why in self._full:
            return
        processes = self.state.processes
        weight_bytes = 4 * sum(self.state.shapes[name].numel() for name in self.state.trained)
        with_weights = weight_bytes <= MAX_WEIGHT_BYTES
        own_bytes = sum(batch.frames.nbytes for batch in micro_batches)
        needed = sum(processes.gather(own_bytes)) + (weight_bytes if with_weights else 0)
        refusal = processes.on_main(lambda: self._refusal(why, step, needed))
        if refusal is not None:
            # The first rank's answer, so that all ranks know or none does.
            self._full |= {why} if refusal == self._full_text else set()
            self._say_once(why, refusal, step)
            return
        # A collective of the same kind as a checkpoint's: a step's outcome, and so this, is the same on all ranks.
        weights = self._weights() if with_weights else {}
        kept = KeptStep(values, step, why, usual, with_weights)
        problems = [text for text in processes.gather(self._write(kept, micro_batches, weights)) if text is not None]
        # Within its context, as any write that training can do without: said at the first failure.
        with self._best_effort.writing(FOLDER):
            if problems:
                raise OSError(problems[0])
        if not problems:
            self._say_where(kept)

    def _why_kept(self, values: dict[str, Any]) -> tuple[str | None, float | None]:
        """Return why a step's batch is left, None if it isn't; and the usual norm that its own was compared with."""
        if self.state.spec.data.features is not None:
            # A file holds frames, for which `adatad replay` runs the backbone.
            return None, None
        self._skipped_in_a_row = 0 if values["applied"] else self._skipped_in_a_row + 1
        if not values["applied"]:
            return (None if self._searches_scale(values) else NOT_FINITE), None
        factor = self.state.spec.train.keep_batch_above
        if factor is None:
            return None, None
        usual = median(self._norms) if len(self._norms) >= MIN_STEPS else None
        # After the comparison: a step isn't measured by itself.
        self._norms.append(values["gradient_norm"])
        is_large = usual is not None and values["gradient_norm"] > factor * usual
        return (LARGE_NORM if is_large else None), usual

    def _searches_scale(self, values: dict[str, Any]) -> bool:
        """Return whether fp16's loss scale was merely too large, as in a run's first steps: gradients overflow, losses
        don't, and the scale can still come down."""
        # The last step before the run is stopped is never a search.
        if self._skipped_in_a_row > min(MAX_SEARCH_STEPS, self.state.spec.train.stop_after_bad_steps - 1):
            return False
        scale = self.state.engine.scaler_state().get("scale", 0.0)
        return all_finite(*(values[name] for name in LOSSES)) and scale >= 1

    def _refusal(self, why: str, step: int, needed_bytes: int) -> str | None:
        """Return why a step's batch can't be left; None if it can."""
        own = file_name(why, step, 0).partition("_rank")[0]
        try:
            files = [path for path in self.folder.glob("*") if STEP_FILE.fullmatch(path.name)]
            # A resumed run that comes to the same step again writes over its files.
            others = [path for path in files if STEP_FILE.fullmatch(path.name)[1] != own]
            steps = {STEP_FILE.fullmatch(path.name)[1] for path in others}
            kind = {name for name in steps if name.startswith("large") == (why == LARGE_NORM)}
            if len(kind) >= MAX_STEPS:
                return self._full_text
            if needed_bytes + sum(path.stat().st_size for path in others) > MAX_RUN_BYTES:
                return f"those of a run may take {MAX_RUN_BYTES / 2**30:g} GiB in all"
            if needed_bytes > MAX_FREE_FRACTION * shutil.disk_usage(self.directory.path).free:
                return f"it takes {needed_bytes / 2**30:.2f} GiB, more than {MAX_FREE_FRACTION:.0%} of what is free"
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            return f"{self.folder} can't be written ({reason(error)})"
        return None

    def _say_once(self, why: str, refusal: str, step: int) -> None:
        # By the first words: numbers differ from step to step.
        if (why, refusal[:20]) not in self._refused:
            self._refused.add((why, refusal[:20]))
            self.logger.warning("step %d: its batch isn't left for adatad replay: %s", step, refusal)

    def _say_where(self, kept: KeptStep) -> None:
        ranks = self.state.processes.world
        path = self.folder / file_name(kept.why, kept.step, 0)
        what = "its batch is left"
        if kept.usual is not None:
            what = f"gradient norm {kept.values['gradient_norm']:g}, usually {kept.usual:g}: {what}"
        others = f", in a file for each of {ranks} ranks" if ranks > 1 else ""
        without = "" if kept.with_weights else ", without weights: replay takes the nearest checkpoint"
        command = f"adatad replay {shlex.quote(str(path))}"
        self.logger.warning("step %d: %s%s%s; look for the cause with: %s", kept.step, what, others, without, command)

    def _weights(self) -> dict[str, Tensor]:
        """Return the trained parameters in full, on the first rank; {} on the others. All ranks call it."""
        engine = self.state.engine
        return engine.gather_full(engine.master_parameters())

    def _facts(self, kept: KeptStep, micro_batches: Sequence[Batch]) -> BatchFacts:
        state, spec, values = self.state, self.state.spec, kept.values
        # A step that was skipped changed nothing; any other has had its update by now.
        moment = "before the step" if kept.why == NOT_FINITE else "after the step"
        return BatchFacts(
            adatad_version=__version__,
            torch_version=torch.__version__,
            step=kept.step,
            rank=state.processes.rank,
            ranks=state.processes.world,
            clip=state.run.mesh.clip,
            clip_rank=state.run.mesh.clip_rank,
            global_batch=spec.train.global_batch,
            engine=spec.parallel.engine,
            precision=spec.train.precision,
            reason=kept.why,
            loss=f"{values['cost']:g}",
            gradient_norm=f"{values['gradient_norm']:g}",
            median_norm=kept.usual,
            normalizer=values["normalizer"],
            loss_factor=self._loss_factor(values),
            weights=moment if kept.with_weights else None,
            frozen_fingerprint=state.frozen_fingerprint,
            windows=tuple(window_facts(batch) for batch in micro_batches),
            # Of the tensors, which are made where they are written.
            fingerprint="0" * 64,
        )

    def _loss_factor(self, values: dict[str, Any]) -> float:
        """Return what the engine multiplied this step's loss by."""
        state = self.state.engine.scaler_state()
        scale = state.get("scale", 1.0)
        # The scale has come down since, if gradients overflowed.
        if state and not all_finite(values["gradient_norm"]):
            scale /= state["backoff_factor"]
        # DDP takes the mean over ranks of what is to be summed.
        return scale * (self.state.processes.world if self.state.spec.parallel.engine == "ddp" else 1)

    def _write(self, kept: KeptStep, micro_batches: Sequence[Batch], weights: dict[str, Tensor]) -> str | None:
        """Write this rank's file; return why it couldn't be, None if it was. Raises nothing: other ranks go on."""
        state, processes = self.state, self.state.processes
        path = self.folder / file_name(kept.why, kept.step, processes.rank)
        try:
            facts = self._facts(kept, micro_batches)
            tensors = {f"{WEIGHTS}{n}": t.detach().to("cpu", copy=True).contiguous() for n, t in weights.items()}
            for number, batch in enumerate(micro_batches):
                frames = frames_as_seen(batch, state)
                tensors |= tensors_of(number, batch, frames, batch_targets(state, batch))
            header = facts_of(state.spec, state.run.annotations.classes).header(to_yaml(state.run.saved_spec))
            write_bad_batch(path, facts, header, tensors)
        except Exception as error:
            # Whatever it is (a full disk, no memory for a copy): the run is worth more than this file.
            why = reason(error.__cause__ or error)
            return why if processes.world == 1 else f"rank {processes.rank}: {why}"
        return None


def frames_as_seen(batch: Batch, state: TrainState) -> Tensor:
    """Return a micro-batch's frames as the model saw them, augmented: uint8 [b, 3, frames, height, width], in host
    memory."""
    device = state.processes.device
    # Where frames stay in host memory, the step has augmented them there, in place.
    if device.type == "cpu" or state.spec.memory.frames == "host" or not any(batch.augmentations):
        return batch.frames
    frames = augment(batch.frames.clone(), batch.augmentations, device)
    # Augmentation copies to and fro without a wait.
    torch.cuda.synchronize(device)
    return frames
