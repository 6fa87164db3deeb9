"""Submit a spec as a job that trains to its end, in as many lives as it takes (docs/cluster.md).

python tools/submit.py configs/thumos/g_1536x224_adapter.yaml --nodes 2 --gpus 2 --overlay slurm/nodes/two.yaml
"""

from __future__ import annotations

import argparse
import shlex

from adatad.command import run
from adatad.spec import add_engine_arguments, add_spec_arguments, spec_from_arguments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=2, help="of each node; one rank each")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="of one GPU: is it enough by the planner?")
    parser.add_argument("--cpus-per-gpu", type=int, default=8)
    parser.add_argument("--time", default="24:00:00", help="limit of one life; the job comes back after it")
    parser.add_argument("--warn-seconds", type=int, default=180, help="before that limit, for the last checkpoint")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--launcher", choices=("srun", "torchrun", "deepspeed"), default="srun")
    parser.add_argument(
        "--sbatch", metavar="OPTION", action="append", default=[], help="one more, as --sbatch=--qos=long"
    )
    parser.add_argument("--dry-run", action="store_true", help="write and print the script, and submit nothing")
    args = parser.parse_args()
    spec = spec_from_arguments(args)

    from adatad.cluster.submit import Resources, check, prepare, refuse_second_job, submit
    from adatad.training.run_directory import run_directory

    resources = Resources(
        args.nodes, args.gpus, args.cpus_per_gpu, args.time, args.warn_seconds, args.partition, args.account,
        tuple(args.sbatch),
    )  # fmt: skip
    run = run_directory(spec).path
    check(spec, resources, args.gpu_memory)
    if args.dry_run:
        script = prepare(spec, resources, args.launcher)
        print(script.read_text(), end="")
        print(f"# not submitted: sbatch {shlex.quote(str(script))}")
        return 0
    refuse_second_job(run)
    job = submit(prepare(spec, resources, args.launcher))
    print(f"job {job}; python tools/status.py {run} --watch")
    return 0


if __name__ == "__main__":
    run(main)
