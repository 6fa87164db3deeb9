"""Explanations of files: a run's own detections, or a detections file beside an annotation file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adatad.data.annotation_file import load_database, read_names
from adatad.data.annotations import EVALUATED, ground_truth
from adatad.errors import UserError
from adatad.evaluation.explain import explain
from adatad.evaluation.score_files import read_contents, read_detections
from adatad.evaluation.sentences import with_signs
from adatad.evaluation.thresholds import TIOU
from adatad.evaluation.training_signs import Sign, training_signs
from adatad.files import FileError
from adatad.report.run_files import is_there
from adatad.spec import Spec
from adatad.spec.quirks import Quirks


def explain_files(
    ground_truth_file: Path,
    detections: Path,
    subset: str,
    tious: Sequence[float],
    blocked: Path | None = None,
    right_tiou: float = TIOU,
) -> dict[str, Any]:
    """Explain the score of a detections file; see `explain`. Raises FileError before anything is computed."""
    read = read_contents(ground_truth_file, detections, subset, blocked)
    try:
        return explain(read.ground_truth, read.detections, subset, tious, read.blocked, right_tiou=right_tiou)
    except UserError as error:
        raise UserError(f"{ground_truth_file}: {error}") from error


def explain_run(run_directory: Path, spec: Spec, right_tiou: float = TIOU) -> dict[str, Any]:
    """Explain the score of a run's last evaluation, as the run computed it, and what its training shows to be wrong.

    The content of `explain`, and "training": the signs as JSON, which "sentences" include. A run that broke before its
    first evaluation has these two alone. Raises UserError.
    """
    signs, notes = _signs(run_directory, spec)
    training = {"training": [sign.as_json() for sign in signs]}
    # The last one's, whichever stands for the run: the best one of many is chosen on these very videos.
    path = run_directory / "detections.json"
    if not is_there(path) and (broken := _broken(signs)):
        return broken
    found = explain_results(read_detections(path), spec, right_tiou)
    sentences = with_signs(found["sentences"], len(found["would_fit"]), [(sign.place, sign.text) for sign in signs])
    return {**found, "sentences": sentences, "notes": [*found["notes"], *notes], **training}


def explain_broken(run_directory: Path, spec: Spec) -> dict[str, Any] | None:
    """Return what `explain_run` returns of a run that broke before its first evaluation; None if it didn't break."""
    return _broken(_signs(run_directory, spec)[0])


def _broken(signs: Sequence[Sign]) -> dict[str, Any] | None:
    if not signs or signs[0].place != "first":
        return None
    return {"sentences": [sign.text for sign in signs], "training": [sign.as_json() for sign in signs]}


def _signs(run_directory: Path, spec: Spec) -> tuple[list[Sign], list[str]]:
    """Return the signs of a training, and a note if its metrics can't be read: the score is explained without."""
    try:
        return training_signs(run_directory, spec), []
    except FileError as error:
        return [], [str(error)]


def explain_results(results: dict[str, Any], spec: Spec, right_tiou: float = TIOU) -> dict[str, Any]:
    """Explain the score of detections in the validation videos of a spec. results: {video: detections}. Raises
    UserError."""
    truth = ground_truth(spec.data, Quirks.of(spec.compat).keep_ambiguous)
    if not any(entry["annotations"] for entry in truth["database"].values()):
        raise UserError(f"{spec.data.annotations}: the validation videos have no annotated instance")
    # The truth that scores are computed from has no durations, which coverage needs.
    database = load_database(spec.data.annotations)
    for video, entry in truth["database"].items():
        entry["duration"] = database[video].get("duration")
    found, blocked = {"results": results}, read_names(spec.evaluate.blocked_videos)
    return explain(truth, found, EVALUATED, spec.evaluate.tious, blocked, keep_ambiguous=True, right_tiou=right_tiou)
