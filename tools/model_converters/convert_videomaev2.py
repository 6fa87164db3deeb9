"""Write a backbone file of VideoMAEv2 (or any that we read) in the form that OpenTAD's settings name.

python tools/model_converters/convert_videomaev2.py vit_g_hybrid_pt_1200e_k710_ft.pth \\
    pretrained/vit-giant-p14_videomaev2-hybrid_pt_1200e_k710_ft_my.pth

Training here needs no conversion: model.backbone.weights takes the original too. An OUT that ends in .safetensors is
written in our own names.
"""

from __future__ import annotations

import argparse

from adatad.command import path_arg, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=path_arg, metavar="IN", help="file as it was published")
    parser.add_argument("output", type=path_arg, metavar="OUT", help="file to write, .pth or .safetensors")
    args = parser.parse_args()
    if args.output.suffix not in (".pth", ".safetensors"):
        parser.error(f"OUT: expected a name that ends in .pth or .safetensors, got {str(args.output)!r}")

    from adatad.convert.backbone_weights import convert_backbone

    for line in convert_backbone(args.source, args.output):
        print(line)
    return 0


if __name__ == "__main__":
    run(main)
