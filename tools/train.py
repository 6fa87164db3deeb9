"""Train the experiment of a spec, alone or under a launcher.

python tools/train.py configs/demo/tia.yaml
torchrun --nproc-per-node 2 tools/train.py configs/demo/tia.yaml --engine fsdp --id 1
deepspeed --num_gpus 2 tools/train.py configs/demo/tia.yaml --deepspeed ds_configs/zero3.json --id 2
"""

from __future__ import annotations

import argparse

from adatad.command import run
from adatad.spec import add_engine_arguments, add_spec_arguments, spec_from_arguments
from adatad.training.signals import StopRequest


def main() -> int:
    # Before all that takes time: the warning of a time limit may come at once.
    stop = StopRequest().install()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--resume", metavar="auto|CHECKPOINT", help="go on from the newest or a named checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete what the run directory holds")
    args = parser.parse_args()
    spec = spec_from_arguments(args)

    from adatad.parallel.processes import is_first_rank
    from adatad.report.summary import print_summary
    from adatad.training.run import train
    from adatad.training.run_directory import run_directory

    result = train(spec, args.resume, args.overwrite, stop)
    if is_first_rank():
        print_summary(spec, result, run_directory(spec).path)
    return 0


if __name__ == "__main__":
    run(main)
