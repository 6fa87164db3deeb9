"""Convert pretrained weights.

adatad weights import vit_g_hybrid_pt_1200e_k710_ft.pth \\
    --output pretrained/vit-giant-p14_videomaev2-hybrid_pt_1200e_k710_ft_my.pth
"""

from __future__ import annotations

import argparse

from adatad.cli.command import path_arg
from adatad.errors import UserError
from adatad.progress_bar import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad weights`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = """Write a backbone file of VideoMAEv2 (or any that we read) in the form that OpenTAD's settings name, or as
.safetensors in our own names. Training here needs no conversion: model.backbone.weights takes the original too."""
    convert = commands.add_parser("import", help="write a published backbone file in another form", description=text)
    convert.add_argument("source", type=path_arg, metavar="FILE", help="file as it was published")
    convert.add_argument("--output", type=path_arg, required=True, metavar="FILE", help=".pth or .safetensors to write")
    convert.set_defaults(action=import_weights)


def import_weights(args: argparse.Namespace) -> int:
    """Run `adatad weights import`; returns its exit code."""
    if args.output.suffix not in (".pth", ".safetensors"):
        raise UserError(f"--output: expected a name that ends in .pth or .safetensors, got {str(args.output)!r}")

    from adatad.convert.backbone_weights import convert_backbone

    with progress("files converted"):
        lines = list(convert_backbone(args.source, args.output))
    print("\n".join(lines))
    return 0
