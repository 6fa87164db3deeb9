"""`adatad data import`, `from-csv` and `export`: labels of own videos from annotation tools, and back into them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adatad.cli.command import path_arg, whole_number
from adatad.errors import UserError
from adatad.labels.columns import ROLES
from adatad.labels.forms import FORMS
from adatad.labels.recognize import NAMES
from adatad.quantities import gib, number

IMPORT_TEXT = """Make a data set and a spec of own videos out of labels of any tool (docs/own-data.md).

adatad data import labels.csv --videos my_videos --output data/mine
adatad data import elan_files/ study.boris --videos my_videos --output data/mine --update

SOURCE is a file or a folder of them: tables, ELAN, BORIS, VIA 3, Label Studio, CVAT, subtitles, ActivityNet's,
FiftyOne's or Roboflow's JSON, recognized by their content. Everything is checked before anything is written, and all
that is wrong is listed at once; what is guessed or left out is said."""
FROM_CSV_TEXT = """The former name of `adatad data import`, for tables alone; it leaves a spec that is there as it is.

adatad data from-csv labels.csv --videos my_videos --output data/mine"""
EXPORT_TEXT = """Write annotations, or detections as labels to correct, as files of annotation tools
(docs/label-forms.md).

adatad data export data/mine/annotations.json --form elan --output for_elan --videos my_videos
adatad data export detections.json --form boris,csv --output for_boris --threshold 0.4 --videos my_videos

SOURCE is an annotation file, a file of detections of `adatad test --detections`, or the folder of `adatad detect`.
The videos say frame rates and lengths, and where they lie, so that the tool finds them."""
READ_NAMES = {
    **{name.replace(" ", "-"): name for name in NAMES},
    "csv": "table", "tsv": "table", "elan": "eaf", "srt": "subtitles", "vtt": "subtitles",
    "label-studio": "labelstudio",
}  # fmt: skip
"""Forms as --form of import calls them, and their keys."""
WRITTEN_NAMES = {**{name: name for name in FORMS}, "elan": "eaf", "label-studio": "labelstudio"}
"""Forms as --form of export calls them, and their keys."""


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad data import`."""
    parser.description = IMPORT_TEXT
    parser.add_argument("sources", type=path_arg, nargs="+", metavar="SOURCE", help="files of labels, or their folders")
    _add_shared_arguments(parser)
    parser.add_argument(
        "--form", choices=sorted(READ_NAMES), metavar="FORM",
        help=f"take all files for this form, whatever they look like: {', '.join(sorted(READ_NAMES))}",
    )  # fmt: skip
    parser.add_argument(
        "--fps", type=number(1e-3, 1e5), metavar="N",
        help="frames a second that labels in frames were counted at (default: what they say, else the video's)",
    )  # fmt: skip
    parser.add_argument(
        "--point-seconds", type=number(1e-3, 1e4), metavar="S",
        help="make each moment, which has no length, an instance of S seconds around it (default: left out)",
    )  # fmt: skip
    parser.add_argument(
        "--labels-from", metavar="WHAT", help="where labels stand: tiers or values in ELAN, an attribute's name in VIA"
    )
    parser.add_argument(
        "--classes", type=path_arg, metavar="FILE",
        help="names of the classes, one a line, in the order that they get; instances of others are left out, counted",
    )  # fmt: skip
    parser.add_argument(
        "--unlabelled", choices=("leave-out", "keep"), default="leave-out",
        help="videos that no label is of; keep: in them nothing happens (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--missing", choices=("error", "leave-out"), default="error",
        help="labels whose video isn't there (default %(default)s)",
    )  # fmt: skip
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--update", action="store_true",
        help="import again: old videos stay in their subset and old classes in their place, the spec stays as it is",
    )  # fmt: skip
    existing.add_argument("--force", action="store_true", help="replace an earlier import, its spec too")
    parser.set_defaults(action=import_labels)


def add_from_csv_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad data from-csv`."""
    parser.description = FROM_CSV_TEXT
    parser.add_argument("sources", type=path_arg, nargs=1, metavar="CSV", help="table of instances")
    _add_shared_arguments(parser)
    parser.set_defaults(
        action=from_csv, form="table", fps=None, point_seconds=None, labels_from=None, classes=None,
        unlabelled="leave-out", missing="error",
    )  # fmt: skip


def _add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", type=path_arg, required=True, metavar="FOLDER", help="folder of the video files")
    parser.add_argument("--output", type=path_arg, required=True, metavar="FOLDER", help="folder to write into")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="ROLE=NAME",
        help="which column of a table is the video, start, end, label, duration or subset, if its name doesn't tell: "
        "label=verb,video=clip",
    )  # fmt: skip
    parser.add_argument(
        "--subset", nargs="+", default=[], metavar="SUBSET=PATTERN",
        help="what videos are for, by their path: validation='day3/*'; the others are for training",
    )  # fmt: skip
    parser.add_argument(
        "--validation-share", type=number(0, 1), default=0.2, metavar="S",
        help="share of the videos that is for validation if neither labels nor --subset say it (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="another one splits otherwise (default 0)"
    )
    parser.add_argument(
        "--gpu-memory", type=gib, metavar="GIB",
        help="of the GPU that will train: 24, or 24GB (default: this machine's; without one a tiny model)",
    )  # fmt: skip


def import_labels(args: argparse.Namespace) -> int:
    """Run `adatad data import`; returns its exit code."""
    return _import(args, "update" if args.update else "replace" if args.force else "refuse")


def from_csv(args: argparse.Namespace) -> int:
    """Run `adatad data from-csv`; returns its exit code."""
    print("note: adatad data import does the same, for labels of any form")
    return _import(args, "refresh")


def _import(args: argparse.Namespace, existing: str) -> int:
    # `number` includes its bounds; a side without videos would fail hours later.
    if not 0 < args.validation_share < 1:
        raise UserError("--validation-share: lies between 0 and 1")
    columns = _columns(args.columns)

    from adatad.data.prepare.label_sources import SourceOptions
    from adatad.data.prepare.own_data import ImportOptions, import_labels
    from adatad.data.prepare.splits import SplitRules, read_patterns

    options = ImportOptions(
        SourceOptions(args.form and READ_NAMES[args.form], args.fps, columns, args.point_seconds, args.labels_from),
        SplitRules(args.validation_share, args.seed, read_patterns(args.subset)),
        args.classes, args.unlabelled, args.missing, existing, _fit(args.gpu_memory),
    )  # fmt: skip
    spec = import_labels(args.sources, args.videos, args.output, options)
    print(f"{spec}: look at it, then adatad data summary {spec}")
    return 0


def _fit(gpu_memory_gib: float | None) -> Callable[[dict[str, Any]], str | None] | None:
    """Return the function that fits a spec to the GPU; None without one."""
    from adatad.report.first_plan import fit_on, target_here

    target = target_here(gpu_memory_gib)
    return None if target is None else fit_on(target)


def _columns(texts: Sequence[str]) -> dict[str, str]:
    """Read ROLE=NAME pairs, also several divided by commas. Raises UserError."""
    # A comma divides only where a role follows: names of columns have commas, too.
    parts = [part for text in texts for part in re.split(rf",(?=(?:{'|'.join(ROLES)})=)", text)]
    pairs = [part.partition("=") for part in parts]
    if not all(role and name for role, _, name in pairs):
        raise UserError("--columns: expected ROLE=NAME, such as label=verb")
    # A dict has one entry a role, so fewer than were given means a role that stands twice.
    columns = {role.strip(): name.strip() for role, _, name in pairs}
    if len(columns) < len(pairs):
        raise UserError("--columns: names a role twice")
    return columns


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad data export`."""
    parser.description = EXPORT_TEXT
    parser.add_argument("source", type=path_arg, metavar="SOURCE", help="annotations, detections, or a folder of them")
    parser.add_argument(
        "--form", required=True, metavar="FORM,...", help=f"forms to write: {', '.join(sorted(WRITTEN_NAMES))}"
    )
    parser.add_argument("--output", type=path_arg, required=True, metavar="FOLDER", help="folder to write into")
    parser.add_argument(
        "--threshold", type=number(0, 1), metavar="T", help="leave out detections of a lower score (default: none)"
    )
    parser.add_argument("--videos", type=path_arg, metavar="FOLDER", help="folder of the video files")
    parser.add_argument("--fps", type=number(1e-3, 1e5), metavar="N", help="frames a second of all videos")
    parser.add_argument("--subset", metavar="NAME", help="only videos of this subset of an annotation file")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.set_defaults(action=export_labels)


def export_labels(args: argparse.Namespace) -> int:
    """Run `adatad data export`; returns its exit code."""
    forms = []
    for name in filter(None, (part.strip().casefold() for part in args.form.split(","))):
        if name not in WRITTEN_NAMES:
            raise UserError(f"--form {name}: expected some of {', '.join(sorted(WRITTEN_NAMES))}, divided by commas")
        forms.append(WRITTEN_NAMES[name])
    if not forms:
        raise UserError(f"--form: expected some of {', '.join(sorted(WRITTEN_NAMES))}")

    from adatad.data.prepare.export_labels import ExportOptions, export_labels

    options = ExportOptions(args.threshold, args.videos, args.fps, args.subset, args.force)
    written: list[Path] = export_labels(args.source, tuple(dict.fromkeys(forms)), args.output, options)
    print(f"{args.output}: {len(written)} file{'' if len(written) == 1 else 's'} written")
    return 0
