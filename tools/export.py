"""Write the trained weights of a checkpoint to one safetensors file.

python tools/export.py runs/demo/tia/id0/checkpoints/best --output tia.safetensors
python tools/export.py runs/demo/tia/id0/checkpoints/best --output whole.safetensors --merged

tools/test.py --checkpoint reads both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint directory")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    parser.add_argument("--merged", action="store_true", help="with the frozen weights of the backbone")
    parser.add_argument("--last", action="store_true", help="the last step's parameters instead of their averages")
    args = parser.parse_args()

    from adatad.errors import UserError
    from adatad.spec import load
    from adatad.training.checkpoint import read_checkpoint
    from adatad.training.export import export

    try:
        checkpoint = read_checkpoint(args.checkpoint)
        spec = load(args.checkpoint / "spec.yaml", check_files=False)
        tensors = export(spec, checkpoint, args.output, averages=not args.last, merged=args.merged)
    except (UserError, OSError) as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {tensors} tensors, {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
