"""Score a detections file in the ActivityNet form against an annotation file. Needs no torch.

python tools/evaluate.py data/demo/annotations.json runs/demo/tia/id0/detections.json --subset validation
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from adatad.errors import UserError
from adatad.evaluation.detection_map import MapResult
from adatad.evaluation.files import evaluate_files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ground_truth", type=Path, metavar="GT", help='JSON file {"database": ...}')
    parser.add_argument("detections", type=Path, metavar="DETECTIONS", help='JSON file {"results": ...}')
    parser.add_argument("--subset", default="validation", help="subset that is scored (default %(default)s)")
    parser.add_argument("--tiou", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7], metavar="T")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to a JSON file too")
    args = parser.parse_args()
    if not all(0 < tiou <= 1 for tiou in args.tiou):
        parser.error("--tiou: thresholds lie above 0 and up to 1")
    try:
        result = evaluate_files(args.ground_truth, args.detections, args.subset, args.tiou)
    except UserError as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 2
    show(result)
    if args.json:
        args.json.write_text(json.dumps(as_dictionary(result), indent=1))
    return 0


def as_dictionary(result: MapResult) -> dict[str, object]:
    by_tiou = {f"{tiou:g}": value for tiou, value in result.mAP.items()}
    return {"average_mAP": result.average_mAP, "mAP": by_tiou, "ap_per_class": result.ap_per_class}


def show(result: MapResult) -> None:
    # Names aren't cut: the headings of the figures are broken into two lines first.
    table = Table(Column("class", no_wrap=True), "average", *(f"tIoU {tiou:g}" for tiou in result.mAP))
    for label, values in result.ap_per_class.items():
        table.add_row(label, f"{100 * sum(values) / len(values):.2f}", *(f"{100 * value:.2f}" for value in values))
    table.add_section()
    everything = [f"{100 * value:.2f}" for value in result.mAP.values()]
    table.add_row("mAP", f"{100 * result.average_mAP:.2f}", *everything, style="bold")
    console = Console()
    # Nor are figures, however many columns there are.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1_000)).minimum)
    console.print(table)
    console.print(f"{result.num_detections} detections, {result.num_ground_truth} annotated instances, in %")


if __name__ == "__main__":
    sys.exit(main())
