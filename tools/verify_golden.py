"""Run every golden case under a folder and compare each quantity with what the reference computed.

    python tools/verify_golden.py tests/golden

A row a case and quantity, with the largest error and its tolerance. Exit code 1 if any is over, 2 if there is no case.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that holds cases, at any depth")
    parser.add_argument("--failures", action="store_true", help="print only rows that are over their tolerance")
    args = parser.parse_args()

    from adatad.parity.verify import verify

    return verify(args.folder, failures_only=args.failures)


if __name__ == "__main__":
    sys.exit(main())
