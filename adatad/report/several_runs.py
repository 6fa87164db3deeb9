"""Spread of mAP over several runs of one experiment: seeds, or the folds of `adatad train --folds`.

One run's figure says little: rounding and seeds move it by as much as many changes do. Last and best epochs are kept
apart, since means of the best ones flatter.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adatad.errors import UserError
from adatad.files import FileError, read_bytes, read_json
from adatad.report.last_and_best import Evaluation, LastAndBest, of_run
from adatad.report.run_files import read_result
from adatad.spec import Select, Spec, load
from adatad.spec.document import DocumentError, parse_value
from adatad.spec.sizes import end_epoch

PLAN = "plan.json"
"""File in a folder of folds that says which runs they are."""


class OneRun(NamedTuple):
    """A finished run. is_fold: it was scored on a share of the labelled videos of its own."""

    path: Path
    spec: Spec
    both: LastAndBest
    is_fold: bool


def spread_of_runs(paths: Sequence[Path]) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1), minimum and maximum of mAP over runs, in 0..1: of "last" and "best",
    each with "average_mAP", "mAP" by tIoU and "ap_per_class"; "runs" has each run's own, "notes" what is missing.

    A folder of folds stands for its runs. Raises UserError for runs that can't be averaged, naming the first of them.
    """
    runs = [_read(path) for path in _expand(paths)]
    if len(runs) < 2:
        raise UserError(f"{runs[0].path}: is one run; a spread needs two at least, or a folder of folds")
    for run in runs[1:]:
        _check_alike(runs[0], run)
    unknown = [run.path for run in runs if run.both.best is None or not run.both.best.by_class]
    best = None if unknown else _spread([run.both.best for run in runs if run.both.best])
    return {
        "runs": [_content(run) for run in runs],
        "last": _spread([run.both.last for run in runs]),
        "best": best,
        "notes": [f"{path}: metrics.jsonl has no line on its best epoch: best ones are left out" for path in unknown],
    }


def run_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that are read for these runs, which no output may replace. Raises UserError."""
    names = ("spec.yaml", "result.json", "metrics.jsonl")
    return [*(path / PLAN for path in paths), *(run / name for run in _expand(paths) for name in names)]


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Return run directories, folders of folds replaced by their runs. Raises UserError for one that comes twice."""
    found: list[Path] = []
    for path in paths:
        found += _runs_of_folds(path) if (path / PLAN).is_file() else [path]
    # By the real path: a link to a run is that run.
    seen: dict[str, Path] = {}
    for run in found:
        if (real := os.path.realpath(run)) in seen:
            raise UserError(f"{run}: is given twice (as {seen[real]}); a run counts once")
        seen[real] = run
    return found


def _runs_of_folds(folder: Path) -> list[Path]:
    plan = read_json(folder / PLAN)
    ids = plan.get("ids") if isinstance(plan, dict) else None
    if not isinstance(ids, list) or not ids or not all(type(number) is int and number >= 0 for number in ids):
        raise FileError(f"{folder / PLAN}: expected the ids of the folds' runs, as adatad train --folds writes them")
    return [folder.parent / f"id{number}" for number in ids]


def _read(run: Path) -> OneRun:
    """Read a run. Raises UserError for another folder, and for a run that isn't finished."""
    if not (run / "spec.yaml").is_file():
        raise UserError(f"{run}: is no run directory (it has no spec.yaml); name runs, or a folder of folds")
    spec = load(run / "spec.yaml", check_files=False)
    if not (run / "result.json").exists():
        raise UserError(f"{run}: isn't finished: it has no result.json; {_goes_on(run)}")
    result = read_result(run / "result.json")
    if not result["stopped_early"] and (result["epochs"] or 0) < end_epoch(spec):
        raise UserError(
            f"{run}: isn't finished: {result['epochs'] or 0} of {end_epoch(spec)} epochs are evaluated; {_goes_on(run)}"
        )
    both = of_run(run)
    for one in both:
        if one and any(len(values) != len(one.by_tiou) for values in one.by_class.values()):
            raise FileError(f"{run}: ap_per_class: expected an AP for each of the {len(one.by_tiou)} tIoUs of mAP")
    return OneRun(run, spec, both, _plan_spec(spec) is not None)


def _goes_on(run: Path) -> str:
    return f"adatad train with --resume auto goes on with it, --folds with folds, or leave {run.name} out"


def _plan_spec(spec: Spec) -> dict[str, Any] | None:
    """Return the data section that folds were made of; None for a run that is no fold, or whose plan has gone."""
    annotations = Path(spec.data.annotations)
    plan = annotations.parent / PLAN
    if not annotations.name.startswith("fold-") or not plan.is_file():
        return None
    content = read_json(plan)
    try:
        values = parse_value(str(content.get("spec"))) if isinstance(content, dict) else None
    except DocumentError:
        values = None
    data = values.get("data") if isinstance(values, dict) else None
    return data if isinstance(data, dict) else None


def _check_alike(first: OneRun, run: OneRun) -> None:
    """Raise UserError if two runs weren't scored on the same data, tIoUs and classes."""
    if first.is_fold != run.is_fold:
        fold, other = (first, run) if first.is_fold else (run, first)
        raise UserError(f"{fold.path}: is a fold, scored on other videos than {other.path}, which is none")
    ours, theirs = _scored_on(first.spec), _scored_on(run.spec)
    for key, value in theirs.items():
        is_same = value == ours[key] or (key == "data.annotations" and _same_content(str(value), str(ours[key])))
        if not is_same:
            raise UserError(
                f"{run.path}: {key} is {value!r}, and that of {first.path} is {ours[key]!r}: figures of different data "
                "or rules have no common mean"
            )
    if run.both.last.by_tiou.keys() != first.both.last.by_tiou.keys():
        raise UserError(f"{run.path}: its result.json has other tIoUs than that of {first.path}")
    here, there = set(run.both.last.by_class), set(first.both.last.by_class)
    # A rare class may have no instance in the videos of a fold.
    if here != there and not run.is_fold:
        raise UserError(f"{run.path}: has other classes than {first.path}: {sorted(here ^ there)[0]!r} is in one alone")


def _scored_on(spec: Spec) -> dict[str, Any]:
    """Return the keys that decide what a run's figures are of. Of a fold: of all folds together."""
    data = _plan_spec(spec) or spec.data.model_dump(mode="json")
    keys = ("annotations", "validation_subset", "classes", "blocked_videos")
    evaluated = {f"evaluate.{key}": getattr(spec.evaluate, key) for key in ("tious", "blocked_videos")}
    return {**{f"data.{key}": data.get(key) for key in keys}, **evaluated, "compat": spec.compat}


def _same_content(one: str, other: str) -> bool:
    """Return whether two files of different paths, as of two machines, are equal."""
    try:
        return read_bytes(Path(one)) == read_bytes(Path(other))
    except FileError:
        return False


def _content(run: OneRun) -> dict[str, Any]:
    last, best = run.both
    pairs: tuple[tuple[Select, Evaluation | None], ...] = (("last", last), ("best", best))
    return {"run": str(run.path), **{name: one.content() if one else None for name, one in pairs}}


def _spread(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the spread of average mAP, of mAP by tIoU, and of AP by class over evaluations that share their tIoUs."""
    tious, classes = list(evaluations[0].by_tiou), {name: None for one in evaluations for name in one.by_class}
    by_class = {}
    for name in classes:
        # Only of the runs that were scored on instances of it.
        rows = [one.by_class[name] for one in evaluations if name in one.by_class]
        by_tiou = {tiou: spread([row[place] for row in rows]) for place, tiou in enumerate(tious)}
        by_class[name] = {"average": spread([statistics.fmean(row) for row in rows]), "by_tiou": by_tiou}
    return {
        "average_mAP": spread([one.average_mAP for one in evaluations]),
        "mAP": {tiou: spread([one.by_tiou[tiou] for one in evaluations]) for tiou in tious},
        "ap_per_class": by_class,
    }


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean, standard deviation (n - 1; None of one value), minimum, maximum and number of values."""
    return {
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
        "minimum": min(values),
        "maximum": max(values),
        "runs": len(values),
    }
