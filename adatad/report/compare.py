"""Comparison of runs, or of detections files: scores, which is better and how sure that is, and what differs.

`compare_runs` and `compare_files` return one object, ready for JSON; `compare_page` and the command show it. The first
run is the baseline, from which differences are taken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adatad.data.annotation_file import read_names
from adatad.data.annotations import EVALUATED, ground_truth
from adatad.errors import UserError
from adatad.evaluation.groups import group_contents
from adatad.evaluation.paired import compare_detections, verdict
from adatad.evaluation.score_files import read_contents, read_detections
from adatad.files import FileError, listed, shown, write_bytes
from adatad.report.curve_picture import curve
from adatad.report.run_files import Record, by_step, detections_of, is_number, is_there, read_metrics, read_result
from adatad.report.spec_changes import changes, relation
from adatad.report.timelines import to_png
from adatad.spec import Spec, load
from adatad.spec.quirks import Quirks

RESULT_TOLERANCE = 1e-4
"""Largest difference between a result and the score of its detections that is rounding."""


class CompareError(UserError):
    """Raised for runs without results, or that can't be compared; the message names them."""


@dataclass(frozen=True)
class ComparedRun:
    """A run that is compared. evaluations: lines of metrics.jsonl by step, of the group that is compared; result:
    content of result.json, the same; memory_bytes: the most of any step, None if steps don't say; spec: None for a run
    without one."""

    path: Path
    name: str
    evaluations: list[Record]
    result: Record
    memory_bytes: float | None
    spec: Spec | None


def compare_runs(runs: Sequence[Path], group: str | None = None) -> dict[str, Any]:
    """Compare finished runs with the first; each is read once.

    group: a name from their "groups", whose instances alone are compared; None for all. Where spec or detections are
    missing, "paired" is None and "notes" say why. Raises CompareError.
    """
    notes: list[str] = []
    read = [_read(run, name, group, notes) for run, name in short_names(_each_once(runs)).items()]
    paired = None
    if len(read) == 1:
        notes.append(f"{read[0].name} is the only run here: nothing to compare it with; name another one")
    if len(read) > 1:
        try:
            paired = _paired(read, group, notes)
        except FileError as error:
            notes.append(f"which run is better can't be said: {error}")
    if paired and group is None:
        notes += _disagreements(read, paired["scores"])
    specs = [run.spec for run in read]
    known = [spec for spec in specs if spec is not None]
    relations = [relation(specs[0], spec) if specs[0] and spec else None for spec in specs[1:]]
    return {
        "baseline": read[0].name,
        "group": group,
        "runs": [_run_as_json(run) for run in read],
        "sentences": _sentences([run.name for run in read], paired, relations),
        "relations": relations,
        # All or none: a column without a spec would look like one without changes.
        "changed": [change._asdict() for change in changes(known)] if len(known) == len(specs) else [],
        "paired": paired,
        "notes": notes + (paired["notes"] if paired else []),
    }


def compare_files(
    sources: Sequence[Path], truth: Path, subset: str, tious: Sequence[float], blocked: Path | None = None
) -> dict[str, Any]:
    """Compare detections files, or those of run directories, with the first, in the form of `compare_runs`; scored as
    `evaluate_files` does. Raises UserError."""
    named = short_names(_each_once(sources))
    names = list(named.values())
    if len(names) < 2:
        raise CompareError(f"{sources[0]}: expected two or more to compare")
    read = [read_contents(truth, detections_of(source), subset, blocked) for source in named]
    contents = [(own.ground_truth, own.detections) for own in read]
    try:
        paired = compare_detections(contents[0][0], contents, names, subset, tious, read[0].blocked)
    except UserError as error:
        raise CompareError(f"{truth}: {error}") from error
    scores = [own["average_mAP"]["value"] for own in paired["scores"]]
    relations = [None] * (len(names) - 1)
    return {
        "baseline": names[0],
        "group": None,
        "runs": [{"name": name, "average_mAP": score} for name, score in zip(names, scores, strict=True)],
        "sentences": _sentences(names, paired, relations),
        "relations": relations,
        "changed": [],
        "paired": paired,
        "notes": paired["notes"],
    }


def write_picture(found: dict[str, Any], path: Path) -> None:
    """Draw the mAP curves of compared runs into a PNG file."""
    title = "average mAP on validation, %" + (f", {found['group']}" if found["group"] else "")
    series = {
        run["name"]: (run["steps"], [math.nan if value is None else value for value in run["curve"]])
        for run in found["runs"]
    }
    write_bytes(path, to_png(curve(title, series, marker="o")))


def short_names(runs: Sequence[Path]) -> dict[Path, str]:
    """Return a short name for each run: its last two folders, or the path as given if two names would be equal."""
    absolute = {run: Path(os.path.abspath(run)) for run in runs}
    short = {run: f"{path.parent.name}/{path.name}" for run, path in absolute.items()}
    names = list(short.values())
    return {run: name if names.count(name) == 1 else str(run) for run, name in short.items()}


def _each_once(paths: Sequence[Path]) -> list[Path]:
    """Return the paths without those that lead to the same run or file as an earlier one."""
    # By the path itself: a link or `..` is another name of the same run, which would be drawn over itself.
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _read(run: Path, name: str, group: str | None, notes: list[str]) -> ComparedRun:
    """Read a run; notes get a line about what is left out. Raises CompareError."""
    # Said here, as a missing metrics file alone reads as a run that hasn't begun.
    if not run.is_dir():
        raise CompareError(
            f"{run}: is no run directory; expected runs/<spec name>/id<N>, or detections files with --ground-truth"
        )
    try:
        metrics = read_metrics(run / "metrics.jsonl", ())
        result = read_result(run / "result.json")
    except FileError as error:
        raise CompareError(f"{run}: holds no evaluation that can be read: {error}") from error
    if not metrics.evaluations:
        raise CompareError(f"{run}: holds no evaluation (metrics.jsonl)")
    if line := metrics.note(run / "metrics.jsonl"):
        notes.append(line)
    memory = [line["memory_bytes"] for line in metrics.train if is_number(line.get("memory_bytes"))]
    evaluations = by_step(metrics.evaluations)
    if group is not None:
        evaluations, result = [_of_group(line, group, run) for line in evaluations], _of_group(result, group, run)
        # result.json has these of all instances alone; the first evaluation may be before training.
        first = evaluations[0]
        result["untrained_average_mAP"] = first["average_mAP"] if first["step"] == 0 else None
        result["best_average_mAP"] = None
    return ComparedRun(run, name, evaluations, result, max(memory, default=None), _spec(run, notes))


def _spec(run: Path, notes: list[str]) -> Spec | None:
    """Read a run's spec; None if there is none, or if it can't be read, which is noted."""
    if not is_there(run / "spec.yaml"):
        return None
    try:
        return load(run / "spec.yaml", check_files=False)
    except UserError as error:
        notes.append(f"{run / 'spec.yaml'}: can't be read: {str(error).splitlines()[0]}")
        return None


def _of_group(values: Record, group: str, run: Path) -> Record:
    """Return an evaluation with one group's figures in the place of those of all instances."""
    groups = values.get("groups")
    groups = groups if isinstance(groups, dict) else {}
    if not isinstance(groups.get(group), dict) or not is_number(groups[group].get("average_mAP")):
        there = ", ".join(map(shown, groups)) or "none: set evaluate.groups_by"
        raise CompareError(f"{run}: has no group {group!r}; it has {there}")
    return {**values, **groups[group]}


def _paired(runs: Sequence[ComparedRun], group: str | None, notes: list[str]) -> dict[str, Any]:
    """Compare the runs' detections as the first one's spec scores them. Raises FileError if a file is missing, and
    CompareError if they were scored against different annotations."""
    for run in runs:
        if run.spec is None:
            raise FileError(f"{run.path}: has no spec.yaml that can be read")
    first = runs[0].spec
    evaluate, keep = first.evaluate, Quirks.of(first.compat).keep_ambiguous
    # Before the annotations, which may be large.
    found = [{"results": read_detections(detections_of(run.path))} for run in runs]
    truths = [_truth(run, keep) for run in runs]
    for run, truth in zip(runs[1:], truths[1:], strict=True):
        if (difference := _difference(truths[0], truth)) is not None:
            raise CompareError(
                f"{run.path}: was scored against other annotations than {runs[0].path}: {difference}; score the "
                "detections of both against one file: adatad compare RUN... --ground-truth GT"
            )
        settings = ("tious", "blocked_videos")
        if any(getattr(run.spec.evaluate, name) != getattr(evaluate, name) for name in settings):
            notes.append(f"{run.name}: its evaluate section differs; it is scored as {runs[0].name} here")
    try:
        blocked = read_names(evaluate.blocked_videos)
    except UserError as error:
        raise FileError(f"{runs[0].path}: evaluate.blocked_videos: {error}") from error
    contents = [(truths[0], own) for own in found]
    if group is not None:
        contents = [_group_content(truths[0], own, group, evaluate.tious) for own in found]
    names = [run.name for run in runs]
    return compare_detections(contents[0][0], contents, names, EVALUATED, evaluate.tious, blocked, True)


def _group_content(
    truth: dict[str, Any], found: dict[str, Any], group: str, tious: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the annotations and detections of one group. Raises FileError if the annotations don't have it."""
    contents = group_contents(group.partition("=")[0], truth, found, EVALUATED, tious)
    if group not in contents:
        raise FileError(f"the annotations have no group {group!r} any more; they have {listed(list(contents))}")
    return contents[group]


def _disagreements(runs: Sequence[ComparedRun], scores: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each run whose result isn't the score of its detections, as after another test."""
    lines = []
    for run, own in zip(runs, scores, strict=True):
        said, scored = run.result["average_mAP"], own["average_mAP"]["value"]
        if abs(said - scored) > RESULT_TOLERANCE:
            lines.append(
                f"{run.name}: result.json says {100 * said:.2f} %, its detections score {100 * scored:.2f} % here"
            )
    return lines


def _truth(run: ComparedRun, keep_ambiguous: bool) -> dict[str, Any]:
    """Return the annotations that a run was scored against. Raises FileError if they can't be read."""
    try:
        return ground_truth(run.spec.data, keep_ambiguous)
    except (UserError, OSError) as error:
        raise FileError(f"{run.path}: {error}") from error


def _difference(first: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first difference between the annotations of two runs, in words; None if there is none."""
    mine, theirs = (content["database"] for content in (first, other))
    if mine.keys() != theirs.keys():
        lacking = sorted(mine.keys() ^ theirs.keys())
        return f"{len(lacking)} videos are in one of the two only, such as {shown(lacking[0])!r}"
    for video, entry in mine.items():
        instances = (
            sorted((*item["segment"], item["label"]) for item in own["annotations"]) for own in (entry, theirs[video])
        )
        if next(instances) != next(instances):
            return f"the instances of video {shown(video)!r} differ"
    return None


def _run_as_json(run: ComparedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "average_mAP": run.result["average_mAP"],
        "best_average_mAP": run.result["best_average_mAP"],
        "untrained_average_mAP": _finite(run.result["untrained_average_mAP"]),
        "epochs": run.result["epochs"],
        "seconds": run.result["seconds"],
        "memory_bytes": _finite(run.memory_bytes),
        "steps": [line["step"] for line in run.evaluations],
        # In percent, as it is drawn.
        "curve": [_finite(100 * line["average_mAP"]) for line in run.evaluations],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _sentences(names: Sequence[str], paired: dict[str, Any] | None, relations: Sequence[str | None]) -> list[str]:
    """Return what is known about each run against the first, a sentence each."""
    if paired is None:
        return []
    sentences = []
    for name, difference, how in zip(names[1:], paired["differences"], relations, strict=True):
        average = difference["average_mAP"]
        points = f"{100 * average['value']:+.1f} points ({100 * average['low']:.1f} to {100 * average['high']:.1f})"
        ahead = f"ahead in {100 * average['better']:.0f} % of the draws"
        what = verdict(average)
        if average["low"] == average["high"] == 0:
            sentence = f"{name} and {names[0]} score the same: no difference can be told"
        elif what == "open":
            sentence = f"No difference can be told between {name} and {names[0]}: {points}, {name} {ahead}"
        else:
            sentence = f"{name} is {what} than {names[0]}: {points}, {ahead}"
        sentences.append(sentence + (f"; {how}" if how else "") + ".")
    return sentences
