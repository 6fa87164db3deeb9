"""Copy the videos of a spec to this machine's own disk (data.stage_to), as training does when it begins.

python tools/stage.py configs/thumos/g_1536x224_adapter.yaml --set data.stage_to=/tmp/thumos
"""

from __future__ import annotations

import argparse
import socket

from adatad.command import run
from adatad.spec import add_engine_arguments, add_spec_arguments, spec_from_arguments
from adatad.spec.resolve import Quirks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    add_engine_arguments(parser)
    args = parser.parse_args()
    spec = spec_from_arguments(args)

    from adatad.data.annotations import read_annotations
    from adatad.data.staging import stage
    from adatad.errors import UserError

    try:
        annotations = read_annotations(spec.data, Quirks.of(spec.compat), spec.model.detector.class_agnostic)
        names = [video.name for video in annotations.train + annotations.validation]
        stage(spec.data, names, lambda line: print(f"{socket.gethostname()}: {line}"))
    except UserError as error:
        # Of many nodes' outputs in one log, this line says which.
        raise UserError(f"{socket.gethostname()}: {error}") from error
    return 0


if __name__ == "__main__":
    run(main)
