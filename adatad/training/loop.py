"""The training loop: steps, checkpoints, evaluations, and leaving in good order when asked to stop.

A run is a pure function of its spec: every draw follows from (seed, epoch, sample, purpose), so that a run resumed from
any checkpoint ends with the same weights, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from logging import Logger
from typing import Any

from rich.console import Console

from adatad.data.dataset import Batch, SkippedVideos
from adatad.data.loader import LoaderError
from adatad.data.time_check import TimeLog
from adatad.data.windows import MAX_TRIES
from adatad.errors import UserError
from adatad.files import read_bytes, write_bytes
from adatad.memory.scopes import WAIT, timed_part
from adatad.parallel.watchdog import HangWatchdog
from adatad.report.run_files import with_loss_names
from adatad.spec import Spec, to_yaml
from adatad.training.bad_batches import BadBatches
from adatad.training.checkpoint import CheckpointWriter, checkpoint_path, mark_best
from adatad.training.checkpoint_check import Progress
from adatad.training.first_step import check_first_step
from adatad.training.loaders import sync_skipped_videos, training_loader, validation_loader
from adatad.training.markers import STOPPED, write_marker
from adatad.training.metrics import MetricsWriter, memory_values, track_evaluation, trackers_of
from adatad.training.monitor import BestEffort, DataWait, ProgressBar
from adatad.training.ownership import resume_arguments
from adatad.training.resolve import ResolvedRun
from adatad.training.run_directory import RunDirectory
from adatad.training.setup import TrainState
from adatad.training.signals import EXIT_CODE_RESUME, NOTHING_SAVED, Stopped, StopRequest
from adatad.training.state_io import full_tensor_bytes, submit_checkpoint
from adatad.training.step import train_step
from adatad.training.step_profile import StepProfiler
from adatad.training.streamed_validation import detect_streams
from adatad.training.throughput import throughput_of
from adatad.training.trackers import adapter_gammas, figure_names, final_figures, hyperparameters
from adatad.training.validation import Detections, detect, score_summary, warnings_of


class TrainingError(UserError):
    """Training that makes no sense to go on with; the message says why and what to do."""


@dataclass
class Training:
    """The training of one run: its state, its position, its directory, and who has to be told of its events."""

    state: TrainState
    directory: RunDirectory
    progress: Progress
    logger: Logger
    console: Console
    stop: StopRequest
    after_evaluation: Any = None
    """Function of (metrics, detections, step) that is called on the first rank after each evaluation, to draw
    timelines."""
    after_first_step: Any = None
    """Function of (metrics, micro-batch) that is called on the first rank after a fresh run's first step, to draw its
    windows."""
    profiler: StepProfiler | None = None
    """Of a run that only profiles a few steps: no checkpoint, no evaluation, no result."""

    def __post_init__(self) -> None:
        self.run: ResolvedRun = self.state.run
        self.spec: Spec = self.run.spec
        self.processes = self.state.processes
        keep, owner = self.spec.train.keep_checkpoints, self.directory.owner
        self.writer = CheckpointWriter(self.directory.checkpoints, keep, owner)
        if self.processes.is_main and self.processes.device.type == "cuda":
            # Now and not at the first save: pinning waits for the device, and takes long.
            self.writer.reserve(full_tensor_bytes(self.state), self.processes.device)
        stacks, seconds = self.directory.path / "stacks", self.spec.train.hang_seconds
        # One process alone has nobody to wait for, and can't hang in a collective.
        several = self.processes.world > 1
        rank, monitor = self.processes.rank, self.processes.monitor
        self.watchdog = HangWatchdog(stacks, rank, monitor, seconds, self.writer.wait) if several else None
        self.best_effort = BestEffort(self.logger.warning)
        self.metrics = None
        if self.processes.is_main:
            trackers = trackers_of(self.run, self.directory.path, self.progress.step, self.best_effort, self.logger)
            self.metrics = MetricsWriter(self.directory.path, self.best_effort, trackers)
            settings = hyperparameters(self.spec, self.run.saved_spec)
            self.metrics.start(settings, figure_names(self.spec), to_yaml(self.run.saved_spec))
        # On a CPU rates say little: there is no peak to hold them against.
        counted = self.metrics is not None and self.processes.device.type == "cuda"
        self.throughput = throughput_of(self.run, self.processes) if counted else None
        self.saved_step = self.progress.step
        self.skipped = SkippedVideos(self.spec.data.skip_limit, self.logger.warning)
        self.times = TimeLog(self.logger.warning)
        self.data_wait = DataWait()
        self.bad_batches = BadBatches(self.state, self.directory, self.logger)
        self.named_without_instances: set[str] = set()
        self.warned: set[str] = set()
        # A resumed run counts on from the seconds that it had trained.
        self.started = time.monotonic() - self.progress.seconds
        self.result: dict[str, Any] | None = None

    def train(self) -> dict[str, Any]:
        """Train to the end; return what result.json holds, or profile.json of a profile. Raises Stopped when asked to
        stop, TrainingError."""
        self.stop.what_is_saved = self.what_is_saved
        self.stop.training_begins()
        try:
            return self.train_epochs()
        except LoaderError as error:
            self.save_and_leave(error)
            raise
        finally:
            try:
                self.writer.close()
            finally:
                if self.profiler:
                    self.profiler.close()
                if self.metrics:
                    self.metrics.close()

    def train_epochs(self) -> dict[str, Any]:
        """Train and evaluate from the present position to the last epoch; return the last evaluation's result."""
        state, progress = self.state, self.progress
        untrained = progress.step == 0 and progress.untrained_mAP is None and not self.profiler
        if untrained and self.spec.train.evaluate_untrained:
            progress.untrained_mAP = self.evaluate()["average_mAP"]
        start = (progress.epoch, progress.step_in_epoch)
        if start > (self.run.end_epoch, 0):
            self.logger.warning(
                "nothing to train: the run stands at epoch %d, step %d, past its end, epoch %d",
                *start,
                self.run.end_epoch,
            )
        loader = training_loader(self.run, start)
        # Ranks that share a window must leave out the same videos, also those that only one of them couldn't read.
        may_differ = state.clip_group is not None and self.spec.data.on_error == "skip"
        found = sync_skipped_videos(loader, state.clip_group) if may_differ else iter(loader)
        batches = state.frames.wrap_batches(found)
        bar = ProgressBar(self.console, self.run.steps_per_epoch, self.run.end_epoch, progress.step)
        with self.watchdog or nullcontext(), bar:
            # An epoch that ended but wasn't evaluated yet is evaluated before the next begins, if there is to be one.
            self.evaluate_if_due()
            # A profile looks at the steps of a run that has stopped early, too.
            while progress.epoch < self.run.end_epoch and (self.profiler or not self.has_stopped_early):
                self.train_epoch(batches, bar)
                if self.profiler and self.profiler.is_complete:
                    return self.profiler.write(self.throughput)
                self.evaluate_if_due()
        # Not done yet where the run was resumed at its very end, after its last evaluation had been interrupted.
        self.evaluate_if_due()
        # A run past its end trains nothing, and may have no evaluation due.
        if self.result is None:
            self.evaluate()
        if self.has_stopped_early and progress.epoch < self.run.end_epoch:
            self.note_early_stop()
        self.writer.wait()
        if self.metrics:
            self.metrics.final(final_figures(self.result))
        return self.result

    def train_epoch(self, batches: Iterator[Batch], bar: ProgressBar) -> None:
        """Train from the present position to the end of the epoch. Raises Stopped when asked to stop."""
        state, progress, every = self.state, self.progress, self.spec.train.checkpoint_every_steps
        state.model.train()
        epoch = progress.epoch
        while progress.epoch == epoch and not (self.profiler and self.profiler.is_complete):
            if self.watchdog:
                self.watchdog.ping()
            if self.profiler:
                self.profiler.begin_step()
            # All micro-batches first: positives are counted over the global batch before anything is computed.
            waiting = time.monotonic()
            with timed_part(WAIT):
                micro_batches = [next(batches) for _ in range(self.spec.train.accumulation)]
            waited = time.monotonic() - waiting
            self.note_skipped(micro_batches)
            self.times.add(note for batch in micro_batches for note in batch.times)
            state.frames.waited_seconds = 0.0
            values = train_step(state, micro_batches, progress.step)
            # The next step's frames may be asked for within this one: time that was lost to data all the same.
            waited += state.frames.waited_seconds
            times = {"data_wait_seconds": waited, "step_seconds": time.monotonic() - waiting}
            if self.profiler:
                self.profiler.end_step(times["step_seconds"], waited)
            self.data_wait.add(*times.values())
            if progress.step == 0:
                self.look_at_first_step(values, micro_batches)
            self.bad_batches.look_at(values, micro_batches, progress.step)
            self.note_bad_step(values, micro_batches)
            self.note_without_instances(values, micro_batches)
            self.advance()
            self.write_metrics(epoch, {**values, **times}, bar)
            # A collective, once a step: all ranks leave after the same step, or none.
            stopping = self.asked_to_stop()
            due = progress.epoch > epoch or (every and progress.step % every == 0)
            if stopping or (due and not self.profiler):
                self.save()
            if stopping:
                self.leave()
        self.times.share(self.processes.gather)
        # Evaluations and checkpoints may take longer than the longest step.
        if self.watchdog:
            self.watchdog.pause()
        if slow := self.data_wait.end_epoch():
            self.logger.warning(slow)

    def look_at_first_step(self, values: dict[str, Any], micro_batches: list[Batch]) -> None:
        """Say what loss the run begins with, and draw what it was computed from; outside of the step's time."""
        check_first_step(self.state, micro_batches, values, self.logger)
        if self.metrics and self.after_first_step:
            self.after_first_step(self.metrics, micro_batches[0])

    def asked_to_stop(self) -> bool:
        """Return whether any rank was asked to stop. All ranks call it at the same point."""
        return self.processes.any(self.stop.signal_name is not None)

    def leave(self) -> None:
        """Leave after all ranks have agreed to stop and have saved. Raises Stopped."""
        self.writer.wait()
        # None leaves before the last one's part is on the disk: launchers may end all ranks when the first has left.
        self.processes.barrier()
        self.stop.ignore_signals()
        code = EXIT_CODE_RESUME
        if self.progress.step:
            self.logger.info(
                "asked to stop: saved after step %d; %s continues",
                self.progress.step,
                resume_arguments(self.directory.path),
            )
        else:
            line, code = self.stop.nothing_saved()
            self.logger.info(line)
        if self.processes.is_main:
            write_marker(STOPPED, f"{self.stop.signal_name or 'a signal to another rank'} at step {self.progress.step}")
        self.processes.barrier()
        raise Stopped(code)

    def what_is_saved(self) -> str:
        """Return what a run has saved that is stopped within a step, in words; the first rank knows."""
        if not self.writer.has_saved:
            return f"{NOTHING_SAVED} of {self.directory.path}"
        return f"what was saved before is whole, {resume_arguments(self.directory.path)} goes on from it"

    def save_and_leave(self, error: LoaderError) -> None:
        """Save between two steps, and leave as if asked to stop; do nothing if several ranks train. Raises Stopped."""
        # Of several ranks the others are in the next step already, and can't take part in saving.
        if self.processes.world > 1 or not self.progress.step:
            return
        if self.saved_step != self.progress.step:
            self.save()
        self.writer.wait()
        self.stop.ignore_signals()
        self.logger.error("%s", error)
        self.logger.info("saved after step %d; %s continues", self.progress.step, resume_arguments(self.directory.path))
        write_marker(STOPPED, f"a loader process failed at step {self.progress.step}")
        raise Stopped from error

    def leave_if_asked(self) -> None:
        """Leave an evaluation if any rank was asked to stop. All ranks call it after each window."""
        # Nothing has changed since the last save: the resumed run evaluates anew.
        if self.asked_to_stop():
            self.leave()

    def note_skipped(self, micro_batches: list[Batch]) -> None:
        """Count the videos of a batch that couldn't be read, on all ranks alike."""
        mine = [item for batch in micro_batches for item in batch.skipped]
        # Ranks have no need to talk where none may skip.
        if self.spec.data.on_error == "skip" and self.processes.any(bool(mine)):
            self.skipped.add(item for items in self.processes.gather(mine) for item in items)

    def note_bad_step(self, values: dict[str, Any], micro_batches: list[Batch]) -> None:
        """Count steps in a row that changed nothing, name their videos, and stop the run when there are too many."""
        progress, most = self.progress, self.spec.train.stop_after_bad_steps
        progress.bad_steps_in_a_row = 0 if values["applied"] else progress.bad_steps_in_a_row + 1
        if values["applied"]:
            return
        progress.bad_steps += 1
        # Every rank has the same values, so all come here or none: gathering is safe.
        mine = [window.video.name for batch in micro_batches for window in batch.windows]
        videos = ", ".join(dict.fromkeys(name for names in self.processes.gather(mine) for name in names))
        facts = f"loss {values['cost']:g}, gradient norm {values['gradient_norm']:g}"
        self.logger.warning("step %d skipped on all ranks: %s; its videos: %s", progress.step, facts, videos)
        if progress.bad_steps_in_a_row >= most:
            raise TrainingError(
                f"{most} steps in a row had a loss or gradients that aren't finite, the last with {facts} on {videos}; "
                f"lower the rates, set train.precision to fp32, or look at these videos (train.stop_after_bad_steps)"
            )

    def note_without_instances(self, values: dict[str, Any], micro_batches: list[Batch]) -> None:
        """Name videos, each once, of which no window that was tried held an instance; metrics have the count."""
        if not values["windows_without_instances"]:
            return
        pairs = [pair for batch in micro_batches for pair in zip(batch.windows, batch.labels, strict=True)]
        mine = [window.video.name for window, own in pairs if not len(own)]
        # `windows_without_instances` is summed over all ranks: all gather here, or none.
        names = {name for part in self.processes.gather(mine) for name in part} - self.named_without_instances
        self.named_without_instances |= names
        if names:
            self.logger.warning(
                "step %d: trained on background alone, since none of %d random windows held enough of an instance "
                "(data.window.min_visible): %s", self.progress.step, MAX_TRIES, ", ".join(sorted(names)),
            )  # fmt: skip

    def advance(self) -> None:
        """Count a step, and the epoch if it was its last."""
        progress = self.progress
        progress.step += 1
        progress.step_in_epoch += 1
        if progress.step_in_epoch == self.run.steps_per_epoch:
            progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0

    def write_metrics(self, epoch: int, values: dict[str, Any], bar: ProgressBar) -> None:
        """Write a step's values to the metrics and the progress bar, on the first rank."""
        if self.metrics:
            # Of two processes on one run only the one that opened it last writes its lines.
            self.directory.owner.check()
            memory = self.state.engine.memory_bytes()
            rates = self.throughput.values(values["step_seconds"]) if self.throughput else {}
            values = with_loss_names({**values, **rates, **memory_values(memory, self.processes.device)})
            self.metrics.write("train", self.progress.step, epoch, values)
            bar.show(self.progress.step, epoch, values["loss"], max(values["lr"].values()), memory, rates)

    def save(self) -> None:
        """Save a checkpoint of this moment; it is written in the background. All ranks call it."""
        self.saved_step = self.progress.step
        self.progress.seconds = time.monotonic() - self.started
        submit_checkpoint(self.state, self.progress, self.writer)

    def evaluate_if_due(self) -> None:
        """Evaluate a just completed epoch if the spec wants it and it wasn't done before."""
        train, done = self.spec.train, self.progress.epoch
        last = done == self.run.end_epoch
        due = last or (done > train.evaluate_from_epoch and done % train.evaluate_every_epochs == 0)
        if self.progress.step_in_epoch or not due or done <= self.progress.evaluated_epochs or self.profiler:
            return
        values = self.evaluate()
        self.progress.evaluated_epochs = done
        if values["average_mAP"] > self.progress.best_mAP and self.processes.is_main:
            # The link must not point to a checkpoint that is still being written.
            self.writer.wait()
            self.directory.owner.check()
            with self.best_effort.writing("checkpoints/best"):
                mark_best(self.directory.checkpoints, checkpoint_path(self.directory.checkpoints, self.progress.step))
            # The next evaluation replaces its detections; thresholds of an exported model are chosen on the best's. If
            # they couldn't be written, that has been said.
            if self.directory.detections.exists():
                with self.best_effort.writing("best_detections.json"):
                    write_bytes(self.directory.best_detections, read_bytes(self.directory.detections))
        # On every rank, as all have the same detections: the position must be equal everywhere.
        progress = self.progress
        progress.evaluations_without_better += 1
        if values["average_mAP"] > progress.best_mAP:
            progress.best_mAP, progress.evaluations_without_better = values["average_mAP"], 0
            progress.best_epoch, progress.best_by_tiou = done, values.get("mAP", {})

    @property
    def has_stopped_early(self) -> bool:
        """Return whether as many evaluations as `train.stop_after` says have found nothing better; the same on all
        ranks."""
        most = self.spec.train.stop_after
        return most is not None and self.progress.evaluations_without_better >= most

    def note_early_stop(self) -> None:
        """Log that training has ended before its last epoch, and say so in result.json."""
        count, best = self.progress.evaluations_without_better, 100 * self.progress.best_mAP
        self.logger.info(
            "stopped after epoch %d of %d: %d evaluations without a better average mAP than %.2f %% (train.stop_after)",
            self.progress.epoch, self.run.end_epoch, count, best,
        )  # fmt: skip
        self.result = {**self.result, "stopped_early": True}
        if self.metrics:
            with self.best_effort.writing("result.json"):
                self.directory.write_json("result.json", self.result)

    def evaluate(self) -> dict[str, Any]:
        """Detect and score with the averaged weights, write detections, result and metrics, return the scores."""
        state, progress = self.state, self.progress
        shared = self.run, self.processes, self.skipped, self.leave_if_asked, self.times
        videos = len(self.run.annotations.validation)
        self.logger.info("epoch %d: evaluating %d validation video%s", progress.epoch, videos, "s" * (videos != 1))
        # The averages take the parameters' place for a while: no second model is held.
        with state.engine.swapped_parameters(state.ema.averages):
            if self.spec.evaluate.stream:
                detections = detect_streams(state.model, *shared)
            else:
                detections = detect(state.engine.model, validation_loader(self.run), *shared, state.results)
        values = score_summary(detections, self.run)
        groups = "".join(f", {name} {100 * g['average_mAP']:.2f} %" for name, g in values.get("groups", {}).items())
        if any(len(video.labels) for video in self.run.annotations.validation):
            self.logger.info("epoch %d: average mAP %.2f %%%s", progress.epoch, 100 * values["average_mAP"], groups)
        else:
            self.logger.info("epoch %d: nothing to score: no instance in validation", progress.epoch)
        is_best = values["average_mAP"] > progress.best_mAP
        self.result = {
            **values,
            "untrained_average_mAP": progress.untrained_mAP,
            "best_average_mAP": max(progress.best_mAP, values["average_mAP"]),
            "best_epoch": progress.epoch if is_best else progress.best_epoch,
            "best_mAP": values["mAP"] if is_best else progress.best_by_tiou,
            "epochs": progress.epoch,
            "seconds": time.monotonic() - self.started,
        }
        gammas = adapter_gammas(state)
        # The first rank alone has metrics. A run that can't write its result goes on training.
        if self.metrics:
            self.warn_about_scores(detections)
            self.metrics.write("evaluation", progress.step, progress.epoch, values)
            track_evaluation(self.metrics, self.result, gammas, progress.step)
            for name, content in (("detections.json", {"results": detections}), ("result.json", self.result)):
                with self.best_effort.writing(name):
                    self.directory.write_json(name, content)
            if self.after_evaluation:
                self.after_evaluation(self.metrics, detections, progress.step)
        return values

    def warn_about_scores(self, detections: Detections) -> None:
        """Log what is suspicious about the detections' score, each kind of warning once a run."""
        for line in warnings_of(detections, self.run):
            # Counts differ from one evaluation to the next: without its numbers it is the same warning.
            kind = re.sub(r"\d+", "", line)
            if kind not in self.warned:
                self.warned.add(kind)
                self.logger.warning("%s", line)
