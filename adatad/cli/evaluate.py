"""Score a detections file in the ActivityNet form against an annotation file. Needs no torch.

adatad evaluate data/demo/annotations.json runs/demo/tia/id0/detections.json --subset validation
adatad evaluate --runs runs/demo/tia/id10 runs/demo/tia/id11 runs/demo/tia/id12

--score says what is reported: mAP (the default), with --top-k also recall@kx; verb, noun, action: mAP on
EPIC-Kitchens' files; recall: average recall of the detections as proposals, whatever their labels. --runs: mean and
spread of the mAP that several runs wrote down, at their last and at their best epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from adatad.cli.command import path_arg, whole_number
from adatad.errors import UserError
from adatad.printing import print_table, program
from adatad.quantities import number

if TYPE_CHECKING:
    from adatad.evaluation.detection_map import MapResult
    from adatad.evaluation.proposal_recall import RecallResult

TIOUS = [0.3, 0.4, 0.5, 0.6, 0.7]
# ActivityNet's proposal task reports these, up to 100 proposals a video.
POINTS = (1, 5, 10, 100)
"""Proposals a video at which average recall is shown."""
# More proposals than any file has; an array of this length is still made at once.
MAX_TOP_K = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad evaluate`."""
    parser.add_argument(
        "ground_truth", type=path_arg, nargs="?", metavar="GT", help='JSON file {"database": ...}, plain or .gz'
    )
    parser.add_argument(
        "detections", type=path_arg, nargs="?", metavar="DETECTIONS", help='JSON file {"results": ...}, the same'
    )
    parser.add_argument(
        "--runs", "--folds", dest="runs", type=path_arg, nargs="+", metavar="RUN",
        help="instead of GT and DETECTIONS: finished runs, or folders of adatad train --folds, for mean and spread",
    )  # fmt: skip
    parser.add_argument("--subset", default="validation", help="subset that is scored (default %(default)s)")
    parser.add_argument("--tiou", type=number(0, 1), nargs="+", default=TIOUS, metavar="T")
    parser.add_argument("--score", choices=("mAP", "verb", "noun", "action", "recall"), default="mAP")
    parser.add_argument(
        "--top-k", type=whole_number(1, MAX_TOP_K), nargs="+", default=[], metavar="K", help="report recall@kx too"
    )
    parser.add_argument(
        "--blocked", type=path_arg, metavar="FILE", help="videos that don't count: a JSON list, or a name a line"
    )
    parser.add_argument("--reference", action="store_true", help="with the reference's quirks (docs/compat.md)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--output", type=path_arg, metavar="FILE", help="write the result to a JSON file too")
    # Needed unless there are runs, which argparse can't say.
    parser.set_defaults(action=evaluate, refuse=parser.error)


def evaluate(args: argparse.Namespace) -> int:
    """Run `adatad evaluate`; returns its exit code."""
    if args.runs is not None:
        _refuse_scoring(args)
        from adatad.cli.evaluate_runs import evaluate_runs

        return evaluate_runs(args)
    if args.ground_truth is None or args.detections is None:
        args.refuse("expected GT and DETECTIONS, an annotation file and a detections file; or --runs RUN RUN")
    if not all(0 < tiou <= 1 for tiou in args.tiou):
        raise UserError("--tiou: thresholds lie above 0 and up to 1")
    # By their text, which is the key in the result: 0.3 and 0.30000001 would be one.
    if len({f"{tiou:g}" for tiou in args.tiou}) < len(args.tiou) or len(set(args.top_k)) < len(args.top_k):
        raise UserError("--tiou, --top-k: a value is there twice")
    if args.top_k and args.score != "mAP":
        raise UserError("--top-k: only with --score mAP")

    from adatad.evaluation.proposal_recall import RecallResult
    from adatad.files import files_to_write, write_json

    # --output must be none of these, and writable: both are checked before minutes of scoring.
    inputs = [path for path in (args.ground_truth, args.detections, args.blocked) if path is not None]
    with files_to_write([args.output] if args.output else [], inputs):
        result = score(args)
    content = {**result.summary(), "warnings": list(result.warnings)}
    if args.json:
        print(json.dumps(content, indent=1))
    elif isinstance(result, RecallResult):
        show_recall(result)
    else:
        show(result)
    # Whatever becomes of the file, the score has been seen.
    sys.stdout.flush()
    for line in result.warnings:
        print(f"{program()}: warning: {line}", file=sys.stderr)
    if args.output:
        write_json(args.output, content)
    return 0


def _refuse_scoring(args: argparse.Namespace) -> None:
    """Raise UserError for options of scoring beside --runs, whose figures were computed in training."""
    usual = {"subset": "validation", "tiou": TIOUS, "score": "mAP", "top_k": [], "blocked": None, "reference": False}
    for name, value in usual.items():
        if getattr(args, name) != value:
            raise UserError(
                f"--{name.replace('_', '-')}: runs are scored as their specs say; leave it out, or name GT, DETECTIONS"
            )


def score(args: argparse.Namespace) -> MapResult | RecallResult:
    """Return the result of the score that was asked for."""
    from adatad.evaluation.score_files import evaluate_epic_files, evaluate_files, evaluate_recall_files

    files = (args.ground_truth, args.detections, args.subset, args.tiou)
    match args.score:
        case "mAP":
            return evaluate_files(*files, args.top_k, args.blocked, args.reference)
        case "recall":
            return evaluate_recall_files(*files, max(POINTS), args.blocked, args.reference)
        # verb, noun and action: EPIC-Kitchens' own files, and matching by ids.
        case task:
            return evaluate_epic_files(*files, task, args.blocked, args.reference)


def show(result: MapResult) -> None:
    """Print AP by class and threshold."""
    from rich.table import Column, Table

    from adatad.files import shown

    # Names aren't cut: the headings of the figures are broken into two lines first.
    table = Table(Column("class", no_wrap=True), "average", *(f"tIoU {tiou:g}" for tiou in result.mAP))
    for label, values in result.ap_per_class.items():
        table.add_row(shown(label), *percent([sum(values) / len(values), *values]))
    table.add_section()
    table.add_row("mAP", *percent([result.average_mAP, *result.mAP.values()]), style="bold")
    # By tIoU, then k: each has the same k's.
    for k in next(iter(result.recall.values()), {}):
        recalls = [by_k[k] for by_k in result.recall.values()]
        table.add_row(f"recall@{k}x", *percent([sum(recalls) / len(recalls), *recalls]), style="bold")
    print_table(table)
    print(f"{result.num_detections} detections, {result.num_ground_truth} annotated instances, in %")


def show_recall(result: RecallResult) -> None:
    """Print average recall by the number of proposals."""
    from rich.table import Table

    table = Table("proposals a video", "average recall")
    for point, value in zip(POINTS, percent([result.at(point) for point in POINTS]), strict=True):
        table.add_row(str(point), value)
    table.add_section()
    table.add_row("area under the curve", *percent([result.auc]), style="bold")
    print_table(table)
    print(f"{result.num_proposals} proposals, {result.num_ground_truth} annotated instances, in %")


def percent(values: list[float]) -> list[str]:
    """Return shares as figures of two digits, in %."""
    return [f"{100 * value:.2f}" for value in values]
