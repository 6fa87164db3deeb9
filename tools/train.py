"""Train the experiment of a spec, alone or under a launcher.

python tools/train.py configs/demo/tia.yaml
torchrun --nproc-per-node 2 tools/train.py configs/demo/tia.yaml --engine fsdp --id 1
deepspeed --num_gpus 2 tools/train.py configs/demo/tia.yaml --deepspeed ds_configs/zero3.json --id 2
"""

from __future__ import annotations

from adatad.command import run
from adatad.training.signals import StopRequest

# Before all that takes time: the warning of a time limit may come at once.
stop = StopRequest()
if __name__ == "__main__":
    stop.importing = True
    stop.install()

import argparse  # noqa: E402

from adatad.printing import lasting_output  # noqa: E402
from adatad.spec import add_device_argument, add_engine_arguments, add_spec_arguments, spec_from_arguments  # noqa: E402


def main() -> int:
    stop.install()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    add_engine_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--resume", metavar="auto|CHECKPOINT", help="go on from the newest or a named checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete what the run directory holds")
    args = parser.parse_args()
    spec = spec_from_arguments(args)

    from adatad.parallel.processes import is_first_rank
    from adatad.report.summary import print_summary
    from adatad.training.run import train_run

    stop.importing = False
    with lasting_output():
        result, folder = train_run(spec, args.resume, args.overwrite, stop)
        if is_first_rank():
            print_summary(spec, result, folder)
    return 0


if __name__ == "__main__":
    run(main)
