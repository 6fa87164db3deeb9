"""The last evaluation of a run beside its best one: their figures, and which of the two stands for the run.

The best of many evaluations is chosen on the very videos that it is scored on, and flatters by up to a point or so.
`train.select` says which one stands for a run; who takes a checkpoint or detections of "the run" asks `select_of`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from adatad.errors import UserError
from adatad.files import FileError, shown
from adatad.report.run_files import Record, by_step, is_number, read_metrics, read_result
from adatad.spec import Select
from adatad.spec.document import DocumentError, read_document

KEY = "train.select"
SELECTS: tuple[Select, ...] = get_args(Select)
WORDS: dict[Select | None, str] = {"last": "last epoch", "best": "best epoch", None: "not said which epoch"}
"""Words for the choice that a figure comes from."""


class Evaluation(NamedTuple):
    """One evaluation of a run, in 0..1. epoch: complete epochs before it, None where nobody wrote it down; by_tiou: mAP
    by tIoU, by_class: AP of each class, in the order of the tIoUs; both empty where they aren't known."""

    epoch: int | None
    average_mAP: float  # noqa: N815, the field's name for it
    by_tiou: dict[str, float]
    by_class: dict[str, list[float]]

    def describe(self, select: Select) -> str:
        """Return the average in words: best epoch (40) 75.06 %."""
        epoch = "" if self.epoch is None else f" ({self.epoch})"
        return f"{WORDS[select]}{epoch} {100 * self.average_mAP:.2f} %"

    def content(self) -> dict[str, Any]:
        """Return it as JSON of results has it, without the classes."""
        return {"epoch": self.epoch, "average_mAP": self.average_mAP, "mAP": self.by_tiou}


class LastAndBest(NamedTuple):
    """Two evaluations of one run. best: None where nobody wrote it down."""

    last: Evaluation
    best: Evaluation | None

    def describe(self) -> str:
        """Return both averages in words."""
        parts = [self.last.describe("last")]
        return "average mAP: " + ", ".join(parts + ([self.best.describe("best")] if self.best else []))


def in_result(result: Record) -> LastAndBest:
    """Return the evaluations that result.json tells of; results of earlier versions lack most of the best one."""
    last = Evaluation(
        result.get("epochs"), result["average_mAP"], result.get("mAP") or {}, result.get("ap_per_class") or {}
    )
    average = result.get("best_average_mAP")
    if average is None:
        return LastAndBest(last, None)
    epoch, by_tiou = result.get("best_epoch"), result.get("best_mAP") or {}
    is_last = average == last.average_mAP and epoch == last.epoch
    return LastAndBest(last, last if is_last else Evaluation(epoch, average, by_tiou, {}))


def of_run(run: Path) -> LastAndBest:
    """Read the last and the best evaluation of a run, which needn't have ended, from result.json and metrics.jsonl.
    Raises FileError if result.json can't be read; without metrics the best one is known by its average alone."""
    found = in_result(read_result(run / "result.json"))
    if found.best is None or found.best.by_class:
        return found
    lines = read_metrics(run / "metrics.jsonl", (), ("average_mAP", "mAP", "epoch")).evaluations
    # Step 0 is the untrained model's; what comes after the newest line was trained before the run went back.
    trained = [line for line in by_step(lines) if 0 < line["step"] <= lines[-1]["step"]]
    best = next((line for line in trained if _is(line, found.best)), None)
    if best is None:
        return found
    classes = best.get("ap_per_class")
    by_class = classes if isinstance(classes, dict) and all(map(_are_numbers, classes.values())) else {}
    return found._replace(best=Evaluation(best["epoch"], best["average_mAP"], best["mAP"], by_class))


def _is(line: Record, best: Evaluation) -> bool:
    """Return whether a line of metrics.jsonl is of the evaluation that result.json calls the best."""
    is_epoch = type(line["epoch"]) is int and best.epoch in (None, line["epoch"])
    return is_epoch and math.isclose(line["average_mAP"], best.average_mAP, abs_tol=1e-9)


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(is_number(value) and math.isfinite(value) for value in values)


def select_of(run: Path) -> Select:
    """Return which evaluation stands for a run, as its spec.yaml says, or its newest checkpoint's if the run's own
    can't be read; runs of earlier versions have no such key, and take the best. Raises UserError for another value."""
    # Names of steps have leading zeros: the newest comes first.
    others = sorted((run / "checkpoints").glob("step-*/spec.yaml"), reverse=True)
    for path in (run / "spec.yaml", *others):
        try:
            train = read_document(path).values.get("train")
        except (DocumentError, FileError, OSError):
            continue
        value = train.get("select", "best") if isinstance(train, dict) else "best"
        if value not in SELECTS:
            raise UserError(f"{path}: {KEY}: expected {' or '.join(SELECTS)}, got {shown(str(value))}")
        return value
    return "best"


def select_in(overrides: Sequence[str]) -> Select | None:
    """Return which evaluation the settings of a command line ask for, None if they leave it to the run."""
    given = [value.strip() for key, _, value in (text.partition("=") for text in overrides) if key.strip() == KEY]
    # Another value is refused by the spec.
    return given[-1] if given and given[-1] in SELECTS else None


def selected_detections(run: Path) -> tuple[Path, list[str]]:
    """Return the detections file of the evaluation that stands for a run, and lines on it where it isn't the last.
    Raises UserError as `select_of` does."""
    # Of the only evaluations there were, or if the disk was full, there is one file.
    if select_of(run) == "last" or not (run / "best_detections.json").is_file():
        return run / "detections.json", []
    try:
        found = of_run(run)
    except FileError:
        return run / "best_detections.json", []
    is_last = found.best is None or found.best.epoch == found.last.epoch
    lines = [] if is_last else [f"detections of the best epoch; {found.describe()} ({KEY})"]
    return run / "best_detections.json", lines
