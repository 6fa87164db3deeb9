"""Print an experiment with all its settings, and where each one comes from.

python tools/spec.py configs/demo/tia.yaml --set train.seed=1
"""

from __future__ import annotations

import argparse
import sys

from adatad.command import run
from adatad.spec import add_spec_arguments
from adatad.spec.arguments import load_from_arguments
from adatad.spec.checks import file_checks
from adatad.spec.dump import annotated
from adatad.spec.explain import dotted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    args = parser.parse_args()
    spec, document = load_from_arguments(args, check_files=False)
    print(annotated(spec, document))
    for key, problem in file_checks(spec):
        print(f"warning: {dotted(key)}: {problem}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run(main)
