"""Score a checkpoint on the validation videos of a spec: of its own, or of another.

adatad test --checkpoint runs/demo/tia/id0
adatad test configs/demo/tia.yaml --checkpoint runs/demo/tia/id0/checkpoints/best --detections found.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from adatad.cli.arguments import add_device_argument, add_spec_arguments, overrides_from, spec_from_arguments
from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.files import FileError, check_output, read_start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad test`."""
    help_text = "YAML file of the experiment, or a name of it; left out: the spec that the checkpoint holds"
    add_spec_arguments(parser, help_text, optional=True, with_id=False)
    add_device_argument(parser)
    parser.add_argument(
        "--checkpoint", type=path_arg, required=True,
        help="run (its best checkpoint, or the last with train.select=last), checkpoint directory or OpenTAD's "
        "checkpoint (.pth): the averages are used; or a file of adatad export",
    )  # fmt: skip
    parser.add_argument("--last", action="store_true", help="the last step's parameters instead of their averages")
    parser.add_argument("--detections", type=path_arg, metavar="FILE", help="write the detections to a JSON file")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument(
        "--shuffle-clips", action="store_true", help="shuffle the frames inside every clip: what is left needs no order"
    )
    parser.set_defaults(action=test)


def test(args: argparse.Namespace) -> int:
    """Run `adatad test`; returns its exit code."""
    if args.last and args.checkpoint.suffix == ".safetensors":
        raise UserError("--last: a file of adatad export holds one set of parameters; its header says which")
    if args.detections is not None:
        check_output(args.detections)
        # A typing error may name weights or a video: only what may be detections is replaced.
        if args.detections.is_file() and read_start(args.detections).lstrip()[:1] not in (b"", b"{", b"["):
            raise FileError(
                f"{args.detections}: is there already and isn't JSON: detections would replace it; name another file"
            )

    from adatad.parallel.processes import is_first_rank
    from adatad.report.last_and_best import select_in
    from adatad.training.export import find_checkpoint, holds_frozen_weights, own_spec

    checkpoint, lines = find_checkpoint(args.checkpoint, select_in(overrides_from(args)))
    # Every rank resolves the checkpoint alike; one of them says what was found.
    if is_first_rank():
        for line in lines:
            print(f"note: {line}", file=sys.stderr)
    # All that a run took of it is in its checkpoint.
    args.overrides.append("model.init_from=null")
    if holds_frozen_weights(checkpoint):
        # Nothing of a pretrained file would be left; it needn't be there.
        args.overrides.append("model.backbone.weights=random")
    # A checkpoint carries its spec; another one is for other videos, or another machine's paths.
    own = args.spec is None
    spec = own_spec(checkpoint, overrides_from(args), args.overlays) if own else spec_from_arguments(args)
    if args.detections is not None:
        place, inside = args.detections.resolve(), checkpoint.resolve()
        if place in (Path(spec.data.annotations).resolve(), inside) or inside in place.parents:
            raise FileError(f"{args.detections}: is read by this test, or part of its checkpoint; name another file")

    from adatad.report.scores import print_scores
    from adatad.training.model_scores import in_training
    from adatad.training.score import detect_and_score
    from adatad.training.validation import write_detections

    scored = detect_and_score(
        spec, checkpoint, args.shuffle_clips, averages=not args.last, only_scores=args.detections is None
    )
    if scored.is_main:
        try:
            training = in_training(checkpoint)
            if args.json:
                run = {"run": training.content()} if training else {}
                print(json.dumps({**scored.result, **run}, indent=1))
            else:
                print_scores(spec, scored.result)
                if training:
                    print(training.describe())
        finally:
            # Also if nothing can be printed any more: detecting may have taken hours.
            if args.detections is not None:
                write_detections(args.detections, scored.detections)
                print(f"detections {args.detections}", file=sys.stderr)
    return 0
