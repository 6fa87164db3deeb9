"""Write detections (adatad test --detections) as the file that a challenge's server takes. Needs no torch.

adatad submission activitynet detections.json --output submission.json --annotations activity_net.v1-3.min.json \\
    --subset testing --external "CUHK classifier, Kinetics-400 weights"
adatad submission epic verbs.json --output submission.json --nouns nouns.json \\
    --verb-classes category_idx_verb.txt --noun-classes category_idx_noun.txt
adatad submission ego4d detections.json --output submission.json --annotations ego4d_v2_220429.json --subset test

With --annotations every video of the subset must be there and no other, with its own labels and inside its duration.
Nothing is written if anything is wrong.
"""

from __future__ import annotations

import argparse
import sys

from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.printing import program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad submission`."""
    parser.add_argument("form", choices=("activitynet", "epic", "ego4d"), help="whose form is written")
    parser.add_argument("detections", type=path_arg, metavar="DETECTIONS", help="file of adatad test; epic: of verbs")
    parser.add_argument("--output", type=path_arg, required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--annotations", type=path_arg, metavar="FILE", help="annotation file to check against")
    parser.add_argument("--subset", metavar="NAME", help="subset of it that must be covered")
    parser.add_argument("--external", metavar="TEXT", help="activitynet: what was used beside the data set")
    parser.add_argument("--nouns", type=path_arg, metavar="FILE", help="epic: detections of the noun model")
    parser.add_argument(
        "--verb-classes", type=path_arg, metavar="FILE", help="epic: class file, id<TAB>name or in order"
    )
    parser.add_argument("--noun-classes", type=path_arg, metavar="FILE", help="epic: the same of nouns")
    parser.set_defaults(action=submission)


def submission(args: argparse.Namespace) -> int:
    """Run `adatad submission`; returns its exit code."""
    # Needed by epic, refused with the others: given in vain, they would look used.
    for_epic = (args.nouns, args.verb_classes, args.noun_classes)
    if any((option is None) == (args.form == "epic") for option in for_epic):
        raise UserError("--nouns, --verb-classes and --noun-classes belong to epic, which needs all three")
    if args.external is not None and args.form != "activitynet":
        raise UserError("--external belongs to activitynet")
    if (args.annotations is None) != (args.subset is None):
        raise UserError("--annotations and --subset go together")

    from adatad.evaluation.submission import expected_of, write_submission

    def warn(line: str) -> None:
        """Print a warning under the command's name."""
        print(f"{program()}: warning: {line}", file=sys.stderr)

    # Read first: a subset that isn't there is said before the detections, which may be large, are read.
    expected = expected_of(args.annotations, args.subset) if args.annotations else None
    # EPIC's server wants the numbers of its class files, not names.
    ids = (args.verb_classes, args.noun_classes) if args.form == "epic" else None
    entries = write_submission(args.form, args.detections, args.output, args.nouns, ids, args.external, expected, warn)
    print(f"{args.output}: {args.form}, {entries} entries, {args.output.stat().st_size / 1e6:.1f} MB")
    return 0
