"""Submit a spec as a job that trains to its end, in as many attempts as it takes (docs/cluster.md).

python tools/submit.py configs/thumos/g_1536x224_adapter.yaml --nodes 2 --gpus 2 --overlay slurm/nodes/two.yaml
"""

from __future__ import annotations

import argparse
import shlex

from adatad.command import run, whole_number
from adatad.quantities import gib, time_limit
from adatad.spec import add_engine_arguments, add_spec_arguments, spec_from_arguments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--nodes", type=whole_number(1, 100_000), default=1)
    parser.add_argument("--gpus", type=whole_number(1, 1_000), default=2, help="of each node; one rank each")
    parser.add_argument(
        "--gpu-memory", type=gib, metavar="GIB", help="of one GPU, as 24GB: is it enough by the planner?"
    )
    parser.add_argument("--cpus-per-gpu", type=whole_number(1, 1_000), default=8)
    parser.add_argument("--time", type=time_limit, default="24:00:00", help="limit of one attempt; the job comes back")
    parser.add_argument(
        "--warn-seconds", type=whole_number(0, 65_535), default=180, help="before that limit, for the last checkpoint"
    )
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--launcher", choices=("srun", "torchrun", "deepspeed"), default="srun")
    parser.add_argument(
        "--sbatch", metavar="OPTION", action="append", default=[], help="one more, as --sbatch=--qos=long"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script; write and submit nothing")
    args = parser.parse_args()
    spec = spec_from_arguments(args)

    from adatad.cluster.submit import Resources, check, find_slurm, prepare, preview, refuse_second_job, submit
    from adatad.training.run_directory import run_directory

    resources = Resources(
        args.nodes, args.gpus, args.cpus_per_gpu, args.time, args.warn_seconds, args.partition, args.account,
        tuple(args.sbatch),
    )  # fmt: skip
    # Before the checks, which take a while.
    resources.options()
    if not args.dry_run:
        find_slurm()
    folder = run_directory(spec).path
    check(spec, resources, args.gpu_memory)
    if args.dry_run:
        print(preview(spec, resources, args.launcher), end="")
        print("# not submitted, and nothing was written: code and resolved spec are copied when the job is submitted")
        return 0
    refuse_second_job(folder)
    job = submit(prepare(spec, resources, args.launcher))
    print(f"job {job}; python tools/status.py {shlex.quote(str(folder))} --watch")
    return 0


if __name__ == "__main__":
    run(main)
