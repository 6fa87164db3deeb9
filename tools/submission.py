"""Write detections (tools/test.py --detections) as the file that a challenge's server takes. Needs no torch.

python tools/submission.py activitynet detections.json submission.json --annotations activity_net.v1-3.min.json \\
    --subset testing --external "CUHK classifier, Kinetics-400 weights"
python tools/submission.py epic verbs.json submission.json --nouns nouns.json --verb-classes category_idx_verb.txt \\
    --noun-classes category_idx_noun.txt
python tools/submission.py ego4d detections.json submission.json --annotations ego4d_v2_220429.json --subset test

With --annotations every video of the subset must be there and no other, with its own labels and inside its duration.
Nothing is written if anything is wrong.
"""

from __future__ import annotations

import argparse
import sys

from adatad.command import path_arg, run
from adatad.evaluation.submission import expected_of, write_submission


def warn(line: str) -> None:
    print(f"{sys.argv[0]}: warning: {line}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=("activitynet", "epic", "ego4d"), help="whose form is written")
    parser.add_argument("detections", type=path_arg, metavar="DETECTIONS", help="file of tools/test.py; epic: of verbs")
    parser.add_argument("output", type=path_arg, metavar="OUT", help="JSON file to write")
    parser.add_argument("--annotations", type=path_arg, metavar="FILE", help="annotation file to check against")
    parser.add_argument("--subset", metavar="NAME", help="subset of it that must be covered")
    parser.add_argument("--external", metavar="TEXT", help="activitynet: what was used beside the data set")
    parser.add_argument("--nouns", type=path_arg, metavar="FILE", help="epic: detections of the noun model")
    parser.add_argument(
        "--verb-classes", type=path_arg, metavar="FILE", help="epic: class file, id<TAB>name or in order"
    )
    parser.add_argument("--noun-classes", type=path_arg, metavar="FILE", help="epic: the same of nouns")
    args = parser.parse_args()
    for_epic = (args.nouns, args.verb_classes, args.noun_classes)
    if any((option is None) == (args.form == "epic") for option in for_epic):
        parser.error("--nouns, --verb-classes and --noun-classes belong to epic, which needs all three")
    if args.external is not None and args.form != "activitynet":
        parser.error("--external belongs to activitynet")
    if (args.annotations is None) != (args.subset is None):
        parser.error("--annotations and --subset go together")
    expected = expected_of(args.annotations, args.subset) if args.annotations else None
    ids = (args.verb_classes, args.noun_classes) if args.form == "epic" else None
    entries = write_submission(args.form, args.detections, args.output, args.nouns, ids, args.external, expected, warn)
    print(f"{args.output}: {args.form}, {entries} entries, {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    run(main)
