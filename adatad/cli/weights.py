"""Get published weights, check them, and convert them.

adatad weights list videomae-l
adatad weights fetch vit_b_k710_dl_from_giant.pth
adatad weights check vit_b_k710_dl_from_giant.pth
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.progress_bar import progress
from adatad.spec.published import NOT_KNOWN, PublishedFile, published

if TYPE_CHECKING:
    from adatad.convert.download import ExpectedFile

HEADINGS = ("name", "for", "mAP", "size", "licence", "here")
EXAMPLES = 5
"""Names that a message about an unknown one lists."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad weights`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    lists = commands.add_parser("list", help="list published backbones, trained models and logs")
    lists.add_argument("words", nargs="*", metavar="WORD", help="only those whose name or use has all words")
    lists.add_argument("--json", action="store_true", help="print everything that is known as JSON")
    lists.set_defaults(action=list_weights)
    where = commands.add_parser("where", help="say what to download and where to put it; needs no network")
    where.add_argument("name", metavar="NAME", help="name in `adatad weights list`")
    where.set_defaults(action=where_weights)
    text = "Download a published file, or continue where a download was interrupted, and verify it."
    fetch = commands.add_parser("fetch", help="download a published file", description=text)
    fetch.add_argument("name", metavar="NAME", help="name in `adatad weights list`")
    fetch.add_argument("--output", type=path_arg, metavar="DIR", help="folder for the file, instead of the specs'")
    fetch.add_argument(
        "--plain", action="store_true", help="never through huggingface-hub, whose downloads can't be continued"
    )
    fetch.set_defaults(action=fetch_weights)
    check = commands.add_parser("check", help="say whether a file is there, right and readable")
    check.add_argument("name", metavar="NAME|FILE", help="name in `adatad weights list`, or any weights file")
    check.set_defaults(action=check_weights)
    text = """Write a backbone file of VideoMAEv2 (or any that we read) in the form that OpenTAD's settings name, or as
.safetensors in our own names. Training here needs no conversion: model.backbone.weights takes the original too."""
    convert = commands.add_parser("import", help="write a published backbone file in another form", description=text)
    convert.add_argument("source", type=path_arg, metavar="FILE", help="file as it was published")
    convert.add_argument("--output", type=path_arg, required=True, metavar="FILE", help=".pth or .safetensors to write")
    convert.set_defaults(action=import_weights)


def find(name: str) -> PublishedFile:
    """Return the published file of a name. Raises UserError for an unknown one."""
    if name in published():
        return published()[name]
    from difflib import get_close_matches

    from adatad.files import listed, shown

    close = get_close_matches(name, list(published()), EXAMPLES, cutoff=0.4)
    like = f"; did you mean {listed(close)}?" if close else ""
    raise UserError(f"{shown(name)}: no published file has this name{like} `adatad weights list` has all")


def list_weights(args: argparse.Namespace) -> int:
    """Run `adatad weights list`; returns its exit code."""
    words = [word.lower() for word in args.words]
    found = [e for e in published().values() if all(w in f"{e.kind} {e.name} {e.what}".lower() for w in words)]
    if args.json:
        facts = [{**e._asdict(), "page": e.page(), "here": Path(e.path).is_file()} for e in found]
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return 0
    if not found:
        raise UserError(f"no published file has {' and '.join(map(repr, args.words))} in its name or use")
    from rich.table import Table

    from adatad.printing import print_table

    table = Table(box=None, pad_edge=False)
    rows = list(map(_row, found))
    for heading, *cells in zip(HEADINGS, *rows, strict=True):
        # Whole lines: a name that is broken in two can't be copied.
        table.add_column(heading, min_width=max(map(len, cells)))
    for row in rows:
        table.add_row(*row)
    print_table(table)
    return 0


def _row(entry: PublishedFile) -> tuple[str, ...]:
    figure = "" if entry.published_mAP is None else f"{entry.published_mAP:.2f}"
    here = "yes" if Path(entry.path).is_file() else "no"
    return entry.name, entry.what, figure, size_text(entry), entry.licence or NOT_KNOWN, here


def size_text(entry: PublishedFile) -> str:
    """Return a file's size in words."""
    return NOT_KNOWN if entry.size_bytes is None else f"{entry.size_bytes / 1e6:.0f} MB"


def where_weights(args: argparse.Namespace) -> int:
    """Run `adatad weights where`; returns its exit code."""
    entry = find(args.name)
    rows = {
        "for": entry.what, "address": entry.page() or "none: it is made from another file", "put it at": entry.path,
        "command": entry.fetch(), "size": size_text(entry), "SHA-256": _digest(entry), "licence": licence(entry),
        "format": entry.format, "note": entry.note,
    }  # fmt: skip
    for heading, text in rows.items():
        if text:
            print(f"{heading:10} {text}")
    return 0


def _digest(entry: PublishedFile) -> str:
    return entry.sha256 or (f"begins with {entry.sha256_start}" if entry.sha256_start else NOT_KNOWN)


def licence(entry: PublishedFile) -> str:
    """Return a file's licence, with what a user must know of it."""
    if entry.licence is None:
        return f"{NOT_KNOWN}: ask whoever published it"
    return f"{entry.licence}{': no commercial use' if 'NC' in entry.licence else ''}"


def fetch_weights(args: argparse.Namespace) -> int:
    """Run `adatad weights fetch`; returns its exit code."""
    from adatad.convert.download import ExpectedFile, problem_of

    entry = find(args.name)
    target = Path(entry.path) if args.output is None else args.output / Path(entry.path).name
    if entry.made_from:
        raise UserError(f"{entry.name}: isn't published itself; it is made by: {entry.fetch(target)}")
    expected = ExpectedFile(entry.size_bytes, entry.digest())
    if target.is_file():
        problem = problem_of(target, expected)[0]
        if problem:
            raise UserError(f"{target}: is there, but {problem}; move it away, then fetch again")
        print(f"{target}: is there already")
        return 0
    if entry.download() is None:
        raise UserError(f"{entry.name}: the address of the file itself isn't known: {entry.by_hand(target)}")
    print(f"{entry.name}: licence {licence(entry)}", file=sys.stderr)
    digest = _fetched(entry, target, expected, args.plain)
    verified = "verified" if expected.sha256 else "the published one isn't known"
    print(f"{target}: {target.stat().st_size:,} bytes, SHA-256 {digest} ({verified})")
    return 0


def _fetched(entry: PublishedFile, target: Path, expected: ExpectedFile, plain: bool) -> str:
    """Download an entry to `target`, plainly or through huggingface-hub; return its SHA-256."""
    from adatad.convert.download import DownloadError, download, kept, part_of
    from adatad.convert.hub import download_from_hub, has_library

    try:
        if entry.hub_file and not plain and has_library():
            return download_from_hub(entry.hub, entry.hub_file, target, expected)
        return download(entry.download(), target, expected)
    except DownloadError as error:
        raise UserError(f"{error}\nby hand: {entry.by_hand(target)}") from error
    except KeyboardInterrupt:
        print(f"interrupted: {kept(part_of(target))}", file=sys.stderr)
        raise


def check_weights(args: argparse.Namespace) -> int:
    """Run `adatad weights check`; returns its exit code: 0 only if nothing is wrong."""
    from adatad.convert.download import ExpectedFile, problem_of
    from adatad.spec.published import by_file

    entry = published().get(args.name) or by_file(args.name)
    path = Path(entry.path if entry and args.name == entry.name and not Path(args.name).is_file() else args.name)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a weights file")
    if not path.is_file():
        if entry is None:
            find(args.name)
        raise UserError(f"{path}: isn't there; fetch it: {entry.fetch(path)}")
    problem, digest = problem_of(path, ExpectedFile(entry.size_bytes, entry.digest()) if entry else ExpectedFile())
    if problem:
        fix = f"; fetch it again: {entry.fetch(path)}" if entry else ""
        raise UserError(f"{path}: {problem}{fix}")
    print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {digest}")
    print("the published one" if entry and entry.digest() else "what SHA-256 was published isn't known")
    if entry is None or entry.kind != "log":
        print(opened(path, entry))
    return 0


def opened(path: Path, entry: PublishedFile | None) -> str:
    """Return what a weights file holds. Raises UserError for one that can't be used, or of another size than the
    published file has that it is named for."""
    from adatad.convert.backbone_weights import size_in_words
    from adatad.convert.weight_file import WeightsError, check_values, read_weight_file

    tensors = read_weight_file(path).tensors
    check_values({name: t for name, t in tensors.items() if t.is_floating_point()}, path)
    text = f"opens: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()) / 1e6:.1f} million numbers"
    expected = entry.preset if entry else None
    try:
        preset, size = size_in_words(tensors, path)
    except WeightsError as error:
        if expected:
            raise UserError(f"{error}; its name stands for {expected}: fetch it again: {entry.fetch(path)}") from error
        return f"{text}; no backbone that is known here"
    if expected and preset != expected:
        fix = f"name it otherwise, and fetch the right one: {entry.fetch(path)}"
        raise UserError(f"{path}: its backbone is {size}, but its name stands for {expected}; {fix}")
    return f"{text}; its backbone is {size}"


def import_weights(args: argparse.Namespace) -> int:
    """Run `adatad weights import`; returns its exit code."""
    if args.output.suffix not in (".pth", ".safetensors"):
        raise UserError(f"--output: expected a name that ends in .pth or .safetensors, got {str(args.output)!r}")

    from adatad.convert.backbone_weights import convert_backbone

    with progress("files converted"):
        lines = convert_backbone(args.source, args.output)
    print("\n".join(lines))
    return 0
