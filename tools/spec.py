"""Print an experiment with all its settings, and where each one comes from.

python tools/spec.py configs/demo/tia.yaml --set train.seed=1
"""

from __future__ import annotations

import argparse
import sys

from adatad.command import run
from adatad.spec import SpecError, add_spec_arguments, overrides_from, spec_path
from adatad.spec.checks import file_checks
from adatad.spec.dump import annotated
from adatad.spec.explain import dotted
from adatad.spec.load import load_with_sources


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    args = parser.parse_args()
    try:
        spec, document = load_with_sources(spec_path(args.spec), overrides_from(args), False, args.overlays)
    except SpecError as error:
        print(f"{args.spec} can't be used:\n{error}", file=sys.stderr)
        return 2
    print(annotated(spec, document))
    for key, problem in file_checks(spec):
        print(f"warning: {dotted(key)}: {problem}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run(main)
