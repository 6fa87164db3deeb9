"""Evaluate a checkpoint on the validation videos of a spec.

python tools/test.py configs/demo/tia.yaml --checkpoint runs/demo/tia/id0/checkpoints/best
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adatad.command import run
from adatad.spec import add_spec_arguments, spec_from_arguments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    parser.add_argument(
        "--checkpoint", type=Path, required=True,
        help="checkpoint directory or OpenTAD's checkpoint (.pth): the averages are used; or a file of tools/export.py",
    )  # fmt: skip
    parser.add_argument("--last", action="store_true", help="the last step's parameters instead of their averages")
    parser.add_argument("--detections", type=Path, metavar="FILE", help="write the detections to a JSON file")
    parser.add_argument(
        "--shuffle-clips", action="store_true", help="shuffle the frames inside every clip: what is left needs no order"
    )
    args = parser.parse_args()
    if args.last and args.checkpoint.suffix == ".safetensors":
        parser.error("--last: a file of tools/export.py holds one set of parameters; its header says which")

    if args.checkpoint.is_file():
        from adatad.training.export import holds_frozen_weights

        if holds_frozen_weights(args.checkpoint):
            # Nothing of a pretrained file would be left; it needn't be there.
            args.overrides.append("model.backbone.weights=random")
    spec = spec_from_arguments(args)

    from adatad.parallel.processes import is_first_rank
    from adatad.report.summary import print_scores
    from adatad.training.run import score_checkpoint

    result = score_checkpoint(spec, args.checkpoint, args.detections, args.shuffle_clips, averages=not args.last)
    if is_first_rank():
        print_scores(spec, result)
    return 0


if __name__ == "__main__":
    run(main)
