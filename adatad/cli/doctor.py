"""Look at this machine, this installation and, with SPEC, an experiment: what won't work, and how to fix it.

    adatad doctor
    adatad doctor configs/demo/tia.yaml

Nothing is changed. Exit code 0 if nothing stands in the way (warnings may), 1 if a problem was found, 2 for a SPEC that
is no file.
"""

from __future__ import annotations

import argparse

from adatad.cli.arguments import add_engine_arguments, add_spec_arguments, overrides_from, spec_path
from adatad.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad doctor`."""
    add_spec_arguments(parser, optional=True)
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(action=doctor)


def doctor(args: argparse.Namespace) -> int:
    """Run `adatad doctor`; returns its exit code."""
    from adatad.doctor.examine import doctor as examine

    # Not through load_from_arguments: what is wrong with a spec is a finding here, not the end of the command.
    overrides = overrides_from(args)
    if args.spec is None and (overrides or args.overlays):
        raise UserError("--set, --overlay, --engine and --id change a spec: name one")
    spec = None if args.spec is None else spec_path(args.spec)
    return examine(spec, overrides, args.overlays, args.json)
