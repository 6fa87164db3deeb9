"""Say where the average mAP of detections goes, what to do first, and how sure each figure is.

adatad explain runs/demo/tia/id0
adatad explain found.json annotations.json --subset validation --json > explanation.json

Errors by type and what each costs, scores by length, coverage and number of instances, thresholds, bouts and durations
by class, mistakes of the files that would explain the score and, of a run, of its training. Intervals hold 95 % of the
draws of a bootstrap over videos. docs/diagnose.md says what to do about what.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.printing import print_rows
from adatad.quantities import number

MAX_CLASSES = 6
"""Classes that are shown, the weakest; --json has all."""
MAX_NAME_CHARACTERS = 30
BUCKETS = ("XS", "S", "M", "L", "XL")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad explain`."""
    parser.add_argument("source", type=path_arg, metavar="RUN|DETECTIONS", help="run directory, or a detections file")
    parser.add_argument("ground_truth", type=path_arg, nargs="?", metavar="GT", help="with DETECTIONS: annotation file")
    parser.add_argument("--subset", help="subset that is scored (default validation; a run has its own)")
    parser.add_argument(
        "--tiou", type=number(0, 1), nargs="+", metavar="T", help="thresholds (default 0.3 to 0.7; a run has its own)"
    )
    parser.add_argument("--blocked", type=path_arg, metavar="FILE", help="videos that don't count; a run has its own")
    parser.add_argument(
        "--right-tiou", type=number(0.01, 1), default=0.5, metavar="T",
        help="overlap from which a detection is right, for thresholds, bouts and calibration (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(action=explain)


def explain(args: argparse.Namespace) -> int:
    """Run `adatad explain`; returns its exit code."""
    found = _of_run(args) if args.ground_truth is None else _of_files(args)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show(found)
    return 0


def _of_run(args: argparse.Namespace) -> dict[str, Any]:
    """Explain a run's own detections."""
    run: Path = args.source
    if not (run / "spec.yaml").is_file():
        raise UserError(
            f"{run}: is no run directory (it has no spec.yaml); name one, or a detections file and the annotations GT"
        )
    given = [name for name in ("subset", "tiou", "blocked") if getattr(args, name) is not None]
    if given:
        raise UserError(f"--{given[0]}: a run is scored as its spec says; name DETECTIONS and GT to score otherwise")

    from adatad.evaluation.explain_files import explain_run
    from adatad.spec import load

    return explain_run(run, load(run / "spec.yaml", check_files=False), args.right_tiou)


def _of_files(args: argparse.Namespace) -> dict[str, Any]:
    """Explain a detections file."""
    tious = args.tiou or [0.3, 0.4, 0.5, 0.6, 0.7]
    if not all(tious) or len(set(tious)) < len(tious):
        raise UserError("--tiou: thresholds lie above 0 and up to 1, each once")

    from adatad.evaluation.explain_files import explain_files

    subset = "validation" if args.subset is None else args.subset
    return explain_files(args.ground_truth, args.source, subset, tious, args.blocked, args.right_tiou)


def show(found: dict[str, Any]) -> None:
    """Print an explanation on one screen."""
    from adatad.files import shown

    if "average_mAP" in found:
        counts = f"{found['videos']:,} videos, {found['instances']:,} instances, {found['detections']:,} detections"
        print(f"average mAP {_interval(found['average_mAP'])} %; {counts}")
    for line in found.get("notes", ()):
        print(f"note: {shown(line)}")
    for place, sentence in enumerate(found["sentences"], 1):
        print(f"{place}. {shown(sentence)}")
    # A run that broke before its first evaluation has sentences alone.
    if "average_mAP" in found:
        _show_errors(found)
        _show_buckets(found)
        _show_classes(found)
        error = found["calibration"]["error"]
        if error:
            print(f"\nscores differ from the share that is right by {_interval(error)} % on average")


def _show_errors(found: dict[str, Any]) -> None:
    """Print what each type of error costs, and its share of the best detections and of the tenth slice."""
    first, last = (found["profile"][place] if found["profile"] else {} for place in (0, -1))
    rows = [
        [name, _interval(cost), *(_interval(part[name]) if name in part else "" for part in (first, last))]
        for name, cost in found["costs"].items()
    ]
    print_rows(["error", "costs, points", "% of the best", f"% of slice {len(found['profile']) or 1}"], rows)


def _show_buckets(found: dict[str, Any]) -> None:
    """Print the score of short to long instances, and the share of them that is missed."""
    rows = []
    for name in ("length", "coverage", "instances"):
        parts = found["sensitivity"][name]
        scores = [
            f"{_percent(part['normalized_mAP']['value'])} / {_percent(part['missed']['value'])}"
            if part["instances"]
            else "none"
            for part in parts
        ]
        rest = [""] * (len(BUCKETS) - len(parts))
        rows += [[name, *(part["holds"] for part in parts), *rest], ["", *scores, *rest]]
    print_rows(["mAP_N / missed, %", *BUCKETS], rows)


def _show_classes(found: dict[str, Any]) -> None:
    """Print AP, the best threshold and the bouts of the weakest classes."""
    from adatad.files import shown

    ordered = sorted(found["classes"].items(), key=lambda pair: pair[1]["ap"]["value"])
    rows = []
    for label, row in ordered[:MAX_CLASSES]:
        cells = [""] * 6
        if "threshold" in row:
            rates = [_percent(row[key]) for key in ("precision", "recall", "f1")]
            sums = [f"{row[key]['detected']:.0f} of {row[key]['true']:.0f}" for key in ("bouts", "seconds")]
            cells = [f"{row['threshold']:.3g}", *rates, *sums]
        rows.append([shown(label, MAX_NAME_CHARACTERS), _interval(row["ap"]), *cells])
    which = f"class, of {len(ordered)}" if len(ordered) > MAX_CLASSES else "class"
    print_rows([which, "AP, %", "from score", "precision", "recall", "F1", "bouts", "seconds"], rows)


def _percent(share: float | None) -> str:
    # Plus 0 turns -0.0 into 0.0.
    return "-" if share is None else f"{round(100 * share, 1) + 0.0:.1f}"


def _interval(figure: dict[str, float | None]) -> str:
    """Return a share in percent with its interval."""
    value, low, high = (_percent(figure[key]) for key in ("value", "low", "high"))
    return value if value == "-" else f"{value} ({low} to {high})"
