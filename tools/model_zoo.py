"""Write docs/model-zoo.md from the specs of the published rows.

python tools/model_zoo.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adatad.command import path_arg, run
from adatad.files import check_output, write_text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=path_arg, default=Path("docs/model-zoo.md"), metavar="FILE")
    args = parser.parse_args()
    # The page takes minutes.
    check_output(args.output)

    from adatad.dev.model_zoo import model_zoo

    write_text(args.output, model_zoo())
    print(args.output)
    return 0


if __name__ == "__main__":
    run(main)
