"""Submit a spec as a job of Slurm that trains to its end, in as many attempts as it takes (docs/cluster.md).

adatad submit configs/thumos/g_1536x224_adapter.yaml --nodes 2 --gpus 2 --overlay slurm/nodes/two.yaml
"""

from __future__ import annotations

import argparse
import shlex

from adatad.cli.arguments import add_engine_arguments, add_spec_arguments, spec_from_arguments
from adatad.cli.command import whole_number
from adatad.errors import UserError
from adatad.progress_bar import progress
from adatad.quantities import gib, time_limit
from adatad.resources import checkout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad submit`."""
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
        # At most what sbatch's --signal takes, a number of 16 bits.
        "--warn-seconds",
        type=whole_number(0, 65_535),
        default=180,
        help="before that limit, for the last checkpoint",
    )
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--launcher", choices=("srun", "torchrun", "deepspeed"), default="srun")
    parser.add_argument(
        "--sbatch", metavar="OPTION", action="append", default=[], help="one more, as --sbatch=--qos=long"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script; write and submit nothing")
    parser.set_defaults(action=submit)


def submit(args: argparse.Namespace) -> int:
    """Run `adatad submit`; returns its exit code."""
    if checkout() is None:
        raise UserError("adatad submit needs a checkout of the project: jobs run the scripts in its slurm/")
    spec = spec_from_arguments(args)

    from adatad.cluster import submit as jobs
    from adatad.training.run_directory import run_directory

    resources = jobs.Resources(
        args.nodes, args.gpus, args.cpus_per_gpu, args.time, args.warn_seconds, args.partition, args.account,
        tuple(args.sbatch),
    )  # fmt: skip
    # Before the checks, which take a while.
    resources.options()
    if not args.dry_run:
        jobs.find_slurm()
    # Only its name so far: nothing is made before all checks have passed.
    folder = run_directory(spec).path
    with progress("checks of the job"):
        jobs.check(spec, resources, args.gpu_memory)
    if args.dry_run:
        print(jobs.preview(spec, resources, args.launcher), end="")
        print("# not submitted, and nothing was written: code and resolved spec are copied when the job is submitted")
        return 0
    # As late as can be: another submission may have come while this one was checked.
    jobs.refuse_second_job(folder)
    job = jobs.submit(jobs.prepare(spec, resources, args.launcher))
    print(f"job {job}; adatad status {shlex.quote(str(folder))} --watch")
    return 0
