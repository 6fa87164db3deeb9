"""Print an experiment with all its settings, and where each one comes from.

adatad spec configs/demo/tia.yaml --set train.seed=1
adatad spec thumos/s_768x160_adapter             # a spec that comes with the package, by its name
adatad spec --copy thumos/s_768x160_adapter      # a copy of it in the current folder, to be changed
adatad spec --explain data.window.overlap        # what a key means
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from adatad.cli.arguments import add_spec_arguments, load_from_arguments, spec_path
from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.files import FileError, read_text, write_text
from adatad.resources import resource
from adatad.spec.checks import file_checks
from adatad.spec.keys import dotted
from adatad.spec.write import annotated

BASE = re.compile(r"^base: *(\S+) *$", re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad spec`."""
    add_spec_arguments(parser, optional=True)
    parser.add_argument("--copy", action="store_true", help="write the spec to the current folder instead")
    parser.add_argument("--output", type=path_arg, metavar="FILE", help="with --copy: the file to write")
    parser.add_argument("--force", action="store_true", help="with --copy: replace a file that is there")
    parser.add_argument("--explain", metavar="KEY", help="say what a key means, its values and its default")
    parser.set_defaults(action=spec)


def spec(args: argparse.Namespace) -> int:
    """Run `adatad spec`; returns its exit code."""
    if args.explain is not None:
        from adatad.spec import explain_key

        print(explain_key(args.explain))
        return 0
    if args.spec is None:
        raise UserError("name a spec, such as configs/demo/tia.yaml or demo/tia; --explain KEY explains a key")
    if args.copy:
        print(copy_spec(args.spec, args.output, args.force))
        return 0
    if args.output or args.force:
        raise UserError("--output and --force: only with --copy")
    found, document = load_from_arguments(args, check_files=False)
    print(annotated(found, document))
    # The spec is printed whatever is missing: it may be meant for another machine.
    for key, problem in file_checks(found):
        print(f"warning: {dotted(key)}: {problem}", file=sys.stderr)
    return 0


def copy_spec(name: str, output: Path | None = None, force: bool = False) -> Path:
    """Write a copy of a shipped spec, to the current folder by default, and return its path. Raises FileError."""
    source = Path(spec_path(name))
    text = read_text(source)
    shipped = resource("configs")
    target = Path(source.name) if output is None else output
    if os.path.lexists(target) and not force:
        raise FileError(f"{target}: is there already; --force replaces it, --output FILE names another")

    def from_anywhere(base: re.Match[str]) -> str:
        """Return the line `base:` with a path that holds wherever the copy lies."""
        file = Path(os.path.abspath(source.parent / base[1]))
        inside = file.is_relative_to(shipped)
        return f"base: {Path('configs') / file.relative_to(shipped) if inside else file}"

    write_text(target, BASE.sub(from_anywhere, text))
    return target
