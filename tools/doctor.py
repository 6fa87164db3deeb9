"""Look at this machine, this installation and, with SPEC, an experiment: what won't work, and how to fix it.

    python tools/doctor.py
    python tools/doctor.py configs/demo/tia.yaml

Nothing is changed. Exit code 0 if nothing stands in the way (warnings may), 1 if a problem was found, 2 for a SPEC that
is no file.
"""

from __future__ import annotations

import argparse

from adatad.command import run
from adatad.spec import add_engine_arguments, add_spec_arguments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser, optional=True)
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    args = parser.parse_args()

    from adatad.doctor.report import doctor

    return doctor(args)


if __name__ == "__main__":
    run(main)
