"""K-fold training on one machine: every labelled video is scored by a model that hasn't seen it.

Each fold is a run of its own: it trains on the videos of the other folds, and validates on its own. What was planned
(which video is in which fold, which run is which fold) is kept in runs/<spec name>/folds-<k>-seed<seed>/, so that the
same command, typed again, goes on with what is unfinished. folds.json there has the scores.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adatad.data.annotation_file import load_database, read_names
from adatad.data.annotations import EVALUATED, Video, ground_truth, names_of, read_annotations
from adatad.data.rng import generator
from adatad.errors import UserError
from adatad.evaluation.detection_map import evaluate
from adatad.evaluation.score_files import read_detections
from adatad.files import check_output_folder, read_json, write_json
from adatad.report.run_files import read_result
from adatad.spec import Spec, load, to_yaml
from adatad.spec.quirks import Quirks
from adatad.spec.text import as_written
from adatad.training.local_sweep import SweepRun
from adatad.training.resume import spec_changes
from adatad.training.run_directory import ids_of, names_its_id, run_directory, with_id

PLAN, RESULT = "plan.json", "folds.json"
MAX_CHANGES = 8
"""Lines of a changed spec that a message lists."""


class FoldsError(UserError):
    """Folds that can't be made or gone on with; the message says why and what to do."""


class Folds(NamedTuple):
    """Planned folds. runs: one for each; folder: of the plan and the result; left_out: videos without an instance."""

    runs: list[SweepRun]
    folder: Path
    left_out: int


def plan_folds(spec_file: str, overrides: Sequence[str], overlays: Sequence[str], count: int) -> Folds:
    """Divide the labelled videos of a spec's two subsets into folds, and settle which run each fold is: that of an
    earlier start, or the next free id.

    Raises FoldsError, before anything is trained, for fewer videos than folds, and where an earlier start had another
    spec or other videos.
    """
    spec = load(spec_file, overrides, overlays=overlays)
    if names_its_id(spec):
        raise FoldsError("run.id: each fold is a run with an id of its own, the next free ones; leave --id out")
    # One subset of both, so that a file may have all its videos in one of them.
    both = tuple(dict.fromkeys((*names_of(spec.data.train_subset), *names_of(spec.data.validation_subset))))
    data = spec.data.model_copy(update={"validation_subset": both})
    found = read_annotations(data, Quirks.of(spec.compat), training=False)
    labelled = [video for video in found.validation if len(video.labels)]
    if len(labelled) < count:
        raise FoldsError(
            f"{spec.data.annotations}: {len(labelled)} videos with an instance can't be divided into {count} folds"
        )
    fold_of = assign_folds(labelled, len(found.classes), count, spec.train.seed)
    folder = run_directory(spec).path.parent / f"folds-{count}-seed{spec.train.seed}"
    check_output_folder(folder)
    ids = _planned_ids(spec, folder, fold_of, count)
    # Not before: another plan's files are its runs' own.
    _write_annotations(spec, folder, fold_of, count)
    runs = []
    for fold, number in enumerate(ids):
        words = _overrides(folder, fold)
        own = load(spec_file, [*overrides, *words], overlays=overlays)
        runs.append(SweepRun(f"fold {fold}", words, with_id(own, number), folder / f"fold-{fold}.log"))
    return Folds(runs, folder, len(found.validation) - len(labelled))


def assign_folds(videos: Sequence[Video], classes: int, count: int, seed: int) -> dict[str, int]:
    """Return the fold of each video, by name: sizes differ by one at most, and classes are spread as evenly as a greedy
    choice can, the rarest first."""
    counts = np.stack([np.bincount(video.labels, minlength=classes) for video in videos])
    order = [int(number) for number in generator(seed, 0, 0, "folds").permutation(len(videos))]
    held, sizes = np.zeros((count, classes), np.int64), [0] * count
    smallest, larger = divmod(len(videos), count)
    fold_of: dict[str, int] = {}
    while order:
        totals = counts[order].sum(0)
        # Every video has an instance, so that some class is left.
        rarest = int(np.where(totals > 0, totals, totals.max() + 1).argmin())
        for number in [number for number in order if counts[number, rarest]]:
            full = smallest + (sum(size > smallest for size in sizes) < larger)
            free = [fold for fold in range(count) if sizes[fold] < full]
            fold = min(free, key=lambda fold: (held[fold, rarest], sizes[fold], fold))
            fold_of[videos[number].name] = fold
            held[fold] += counts[number]
            sizes[fold] += 1
            order.remove(number)
    return fold_of


def _write_annotations(spec: Spec, folder: Path, fold_of: dict[str, int], count: int) -> None:
    """Write an annotation file for each fold, whose own videos are its validation subset."""
    database = load_database(spec.data.annotations)
    for fold in range(count):
        entries = {
            name: {**database[name], "subset": "validation" if own == fold else "training"}
            for name, own in fold_of.items()
        }
        write_json(_annotations(folder, fold), {"database": entries}, indent=None)


def _annotations(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold}.json"


def _overrides(folder: Path, fold: int) -> tuple[str, ...]:
    """Return what a fold's run has over the spec."""
    # Absolute: a relative path would start from data.root. Quoted, as paths hold what YAML takes for something else.
    path = json.dumps(as_written(str(_annotations(folder, fold).resolve())), ensure_ascii=False)
    subsets = ("data.train_subset=training", "data.validation_subset=validation")
    return (f"data.annotations={path}", *subsets, "data.blocked_videos=null")


def _planned_ids(spec: Spec, folder: Path, fold_of: dict[str, int], count: int) -> list[int]:
    """Return the ids of the folds' runs, as an earlier start has planned them; plan them if there was none."""
    file, text = folder / PLAN, to_yaml(spec)
    if not file.is_file():
        free = max([-1, *ids_of(spec)]) + 1
        plan = {"ids": list(range(free, free + count)), "spec": text, "folds": fold_of}
        # Before any run begins: a command that is killed at once finds the same ids again.
        write_json(file, plan)
        return plan["ids"]
    plan = read_json(file)
    ids = plan.get("ids") if isinstance(plan, dict) else None
    if not isinstance(ids, list) or len(ids) != count or not all(type(number) is int and number >= 0 for number in ids):
        raise FoldsError(f"{file}: isn't what was written: expected the ids of {count} runs; remove {folder}")
    afresh = f"give it another name (--set name=NAME), or remove {folder} and the runs id{ids[0]} to id{ids[-1]}"
    if plan.get("folds") != fold_of:
        raise FoldsError(f"{file}: the labelled videos aren't those of the start before; {afresh}")
    if changes := spec_changes(str(plan.get("spec")), text):
        more = [f"and {len(changes) - MAX_CHANGES} more"] if len(changes) > MAX_CHANGES else []
        listed = "".join(f"\n  {line}" for line in changes[:MAX_CHANGES] + more)
        raise FoldsError(f"{file}: the spec isn't that of the start before; {afresh}:{listed}")
    return ids


def score_folds(folds: Folds) -> dict[str, Any]:
    """Score the detections of all folds' last evaluations together, and each fold alone; write folds.json, and return
    its content. Raises UserError for a run whose files can't be read."""
    each, truth, found = [], {}, {}
    for run in folds.runs:
        own = ground_truth(run.spec.data, Quirks.of(run.spec.compat).keep_ambiguous)["database"]
        result = read_result(run.folder / "result.json")
        truth |= own
        found |= read_detections(run.folder / "detections.json")
        instances = sum(len(video["annotations"]) for video in own.values())
        each.append({
            "run": str(run.folder), "videos": len(own), "instances": instances, "epochs": result["epochs"],
            "average_mAP": result["average_mAP"], "best_average_mAP": result["best_average_mAP"],
            "best_epoch": result["best_epoch"],
        })  # fmt: skip
    spec = folds.runs[0].spec
    pooled = evaluate(
        {"database": truth}, {"results": found}, EVALUATED, spec.evaluate.tious,
        read_names(spec.evaluate.blocked_videos), keep_ambiguous=True, top_k=spec.evaluate.top_k,
    )  # fmt: skip
    scores = [fold["average_mAP"] for fold in each]
    content = {
        "pooled": pooled.summary(),
        "mean_average_mAP": statistics.mean(scores),
        "standard_deviation": statistics.stdev(scores),
        "folds": each,
    }
    write_json(folds.folder / RESULT, content)
    return content
