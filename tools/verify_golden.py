"""Run every golden case under a folder and compare each quantity with what the reference computed.

    python tools/verify_golden.py tests/golden
    python tools/verify_golden.py tests/golden --policy tile --tile-clips 1 --segment-blocks 2

A row a case and quantity, with the largest error and its tolerance. Exit code 1 if any is over, 2 if there is no case
or one can't be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adatad.command import run, whole_number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="folder that holds cases, at any depth")
    parser.add_argument("--failures", action="store_true", help="print only rows that are over their tolerance")
    parser.add_argument(
        "--policy", choices=("none", "selective", "block", "tile"), default="none", help="memory policy"
    )
    parser.add_argument("--tile-clips", type=whole_number(1), metavar="M", help="policy tile: clips of a tile")
    parser.add_argument("--segment-blocks", type=whole_number(1), metavar="K", help="policy tile: blocks of a segment")
    parser.add_argument("--recompute", choices=("once", "twice"), default="once", help="policy tile")
    args = parser.parse_args()
    if not args.folder:
        parser.error("DIR is empty; name a folder of cases")
    if args.policy != "tile" and (args.tile_clips or args.segment_blocks or args.recompute != "once"):
        parser.error("--tile-clips, --segment-blocks and --recompute belong to --policy tile")

    from adatad.dev.parity.verify_golden import verify
    from adatad.spec.schema import MemorySpec

    memory = MemorySpec(
        policy=args.policy, tile_clips=args.tile_clips, segment_blocks=args.segment_blocks, recompute=args.recompute
    )
    return verify(Path(args.folder), args.failures, memory)


if __name__ == "__main__":
    run(main)
