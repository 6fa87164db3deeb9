"""Scores and thresholds of a model file: from the evaluations that a run wrote down, and from detections that are
shown to be the exported checkpoint's own."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from adatad.data.annotation_file import read_names
from adatad.data.annotations import EVALUATED, ground_truth
from adatad.errors import UserError
from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.evaluation.score_files import read_detections
from adatad.evaluation.thresholds import ClassThresholds, best_thresholds, score_curves
from adatad.files import FileError, reason
from adatad.report.last_and_best import WORDS, LastAndBest, of_run
from adatad.report.run_files import Record, is_number, read_metrics
from adatad.spec import Spec
from adatad.spec.quirks import Quirks
from adatad.training.checkpoint_check import read_state
from adatad.training.model_facts import ModelFacts
from adatad.training.model_record import ModelScores, StoredThreshold, StoredThresholds
from adatad.training.resolve import annotations_for
from adatad.training.run_directory import RunDirectory

SAME_SCORE = 1e-6
"""Largest difference of two AP of the same detections."""
NOTEWORTHY = 0.005
"""Difference of average mAP from which named detections may be another model's; rounding on a GPU changes less."""


class Measured(NamedTuple):
    """Scores and thresholds, None where nothing is known. thresholds_from: what they were chosen on, or why there are
    none; nothing_right: the detections were there, and none was right; note: what the user should know, "" if
    nothing."""

    scores: ModelScores | None
    thresholds: StoredThresholds | None
    thresholds_from: str
    nothing_right: bool = False
    note: str = ""


class NotUsableError(UserError):
    """Detections or annotations that give no thresholds; the message says why."""


class NothingRightError(NotUsableError):
    """Detections of which none is right."""


def run_of(checkpoint: Path) -> RunDirectory | None:
    """Return the run that a checkpoint lies in, None for one that was copied elsewhere."""
    run = RunDirectory(checkpoint.absolute().parent.parent)
    return run if checkpoint.absolute().parent == run.checkpoints and run.metrics.exists() else None


def measure(
    spec: Spec, facts: ModelFacts, checkpoint: Path, step: int | None, averages: bool = True, named: Path | None = None
) -> Measured:
    """Return scores and thresholds of a checkpoint of `step` steps.

    Evaluations of a run are of its averages: for other parameters (averages=False), and for weights without a run, only
    `named` detections count. Raises UserError if these, or the annotations for them, can't be used.
    """
    run = run_of(checkpoint) if averages and step is not None else None
    evaluations, problem = _evaluations(run)
    recorded = _of_step(evaluations, step)
    scores = _scores(recorded) if recorded else None
    # What the user names goes before what the run left.
    if named is not None:
        return _with_named(spec, facts, named, scores)
    if run is None:
        return Measured(scores, None, "no detections of these weights are known")
    if problem:
        return Measured(None, None, problem)
    try:
        if recorded is None:
            raise NotUsableError("the run has no evaluation of this checkpoint")
        # Either file may be of another evaluation, or older than the line if the disk was full.
        file = run.detections if evaluations[-1] is recorded else run.best_detections
        scored = _score(spec, file)
        if not _is_same(scored.result.summary(), recorded):
            raise NotUsableError(f"{file.name} of the run doesn't score what it wrote down for this checkpoint")
        return Measured(scores, _thresholds(scored, facts), f"{file.name} of the run, step {step}")
    except UserError as error:
        # The run's own files are a convenience: without them the weights are written all the same.
        return Measured(scores, None, reason(error), isinstance(error, NothingRightError))


class InTraining(NamedTuple):
    """Evaluations of the run that a checkpoint lies in. epoch: complete epochs of the checkpoint, None for a step
    within one."""

    both: LastAndBest
    epoch: int | None

    def describe(self) -> str:
        """Return the averages of the run, and which of the two this checkpoint has, in words."""
        pairs = (("best", self.both.best), ("last", self.both.last))
        this = [WORDS[select] for select, one in pairs if one and self.epoch is not None and one.epoch == self.epoch]
        return f"in training: {self.both.describe()}; this checkpoint: {' and '.join(this) or 'neither of the two'}"

    def content(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        best = self.both.best
        return {"last": self.both.last.content(), "best": best.content() if best else None, "checkpoint": self.epoch}


def in_training(checkpoint: Path) -> InTraining | None:
    """Return the evaluations of a checkpoint's run; None for a file, a checkpoint that was copied elsewhere, and a run
    whose result can't be read."""
    run = run_of(checkpoint) if checkpoint.is_dir() else None
    if run is None:
        return None
    with suppress(UserError):
        progress = read_state(checkpoint)[0]["progress"]
        return InTraining(of_run(run.path), None if progress["step_in_epoch"] else progress["epoch"])
    return None


def recorded_scores(checkpoint: Path, step: int) -> ModelScores | None:
    """Return the scores that a run wrote down for the averages of its checkpoint of `step` steps, None if it didn't."""
    recorded = _of_step(_evaluations(run_of(checkpoint))[0], step)
    return _scores(recorded) if recorded else None


def _evaluations(run: RunDirectory | None) -> tuple[list[Record], str]:
    """Return the evaluations that a run wrote down, in the order of its file; none, and why, if it can't be read."""
    if run is None:
        return [], ""
    try:
        return read_metrics(run.metrics, (), ("average_mAP", "mAP")).evaluations, ""
    except FileError as error:
        return [], reason(error)


def _of_step(evaluations: list[Record], step: int | None) -> Record | None:
    """Return the latest evaluation of a step, which a resumed run may have repeated."""
    return next((line for line in reversed(evaluations) if line["step"] == step), None)


def _with_named(spec: Spec, facts: ModelFacts, named: Path, recorded: ModelScores | None) -> Measured:
    scored, note = _score(spec, named), ""
    average = scored.result.average_mAP
    if recorded and abs(recorded.average_mAP - average) > NOTEWORTHY:
        note = (
            f"{named}: average mAP {100 * average:.2f} %, and the run wrote {100 * recorded.average_mAP:.2f} % for "
            "this checkpoint: are these its detections?"
        )
    scores = recorded or _scores(scored.result.summary())
    try:
        return Measured(scores, _thresholds(scored, facts), f"detections {named.name}", note=note)
    except NothingRightError as error:
        return Measured(scores, None, f"{named.name}: {error}", True, note)


class _Scored(NamedTuple):
    """Contents of an annotation file and a detections file, options of their evaluation, and its result."""

    truth: dict[str, Any]
    found: dict[str, Any]
    options: dict[str, Any]
    result: MapResult


def _score(spec: Spec, file: Path) -> _Scored:
    """Score a file of detections on the validation videos of a spec. Raises UserError if they can't be read, or if
    nothing is annotated."""
    truth = ground_truth(spec.data, Quirks.of(spec.compat).keep_ambiguous)
    if not any(entry["annotations"] for entry in truth["database"].values()):
        raise NotUsableError(f"{spec.data.annotations}: the validation videos have no annotated instance")
    # All detections: of those above a threshold no better one could be chosen.
    found = {"results": read_detections(file)}
    if not found["results"].keys() & truth["database"].keys():
        raise NotUsableError(
            f"{file}: has detections of none of the validation videos of {spec.data.annotations}; adatad test "
            "--detections writes such a file"
        )
    # As a run scores its own.
    options = {"blocked_videos": frozenset(read_names(spec.evaluate.blocked_videos)), "keep_ambiguous": True}
    return _Scored(truth, found, options, evaluate(truth, found, EVALUATED, spec.evaluate.tious, **options))


def _thresholds(scored: _Scored, facts: ModelFacts) -> StoredThresholds:
    """Return the thresholds of the model's classes. Raises NothingRightError if no detection is right."""
    curves = score_curves(scored.truth, scored.found, EVALUATED, **scored.options)
    found = best_thresholds(curves, facts.classes)
    if found is None:
        raise NothingRightError(f"no detection is right at tIoU {curves.tiou:g}, so that no threshold is the best")
    return _stored(found)


def _stored(found: ClassThresholds) -> StoredThresholds:
    overall, *own = (
        StoredThreshold(threshold=one.threshold, precision=one.precision, recall=one.recall, f1=one.f1)
        for one in (found.overall, *found.by_class.values())
    )
    # The first was that of all classes together.
    by_class = dict(zip(found.by_class, own, strict=True))
    return StoredThresholds(tiou=found.tiou, overall=overall, by_class=by_class, from_overall=found.from_overall)


def _scores(values: dict[str, Any]) -> ModelScores | None:
    """Return the scores of an evaluation; None if they can't be such, as in a file that was edited."""
    try:
        return ModelScores(average_mAP=values["average_mAP"], by_tiou=values["mAP"])
    except ValueError:
        return None


def _is_same(result: dict[str, Any], recorded: Record) -> bool:
    """Return whether two evaluations have the same AP by class and tIoU."""
    # By class: two models may agree in the average alone.
    theirs = recorded.get("ap_per_class")
    if not isinstance(theirs, dict) or theirs.keys() != result["ap_per_class"].keys():
        return False
    for name, values in result["ap_per_class"].items():
        other = theirs[name]
        # Lines of a file that may have been edited.
        if not isinstance(other, list) or len(other) != len(values) or not all(map(is_number, other)):
            return False
        if any(abs(a - b) > SAME_SCORE for a, b in zip(values, other, strict=True)):
            return False
    return True


def usual_fps(spec: Spec) -> float | None:
    """Return the median rate of the annotated videos, where the spec leaves the rate to the annotations; None if it
    doesn't, or if the annotations can't be read here."""
    if spec.data.fps is not None:
        return None
    try:
        annotations = annotations_for(spec)
    except UserError:
        return None
    rates = [video.fps for video in (*annotations.train, *annotations.validation) if video.fps > 0]
    return median(rates) if rates else None
