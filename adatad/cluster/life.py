"""The start of a life of a job, called by slurm/train.sh: prints variables for the shell.

python -m adatad.cluster.life SPEC [arguments of adatad train]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import sys
import time
from pathlib import Path

from adatad.cli.arguments import add_engine_arguments, add_spec_arguments, spec_from_arguments
from adatad.cluster.freeze import freeze
from adatad.cluster.job import FOLDER, JobError, Life, newest_step, present_life, started_lives
from adatad.errors import UserError
from adatad.files import MAX_SPEC_BYTES, read_text
from adatad.spec import Spec, load
from adatad.training.life import DONE, STOPPED

POINTERS = Path("slurm") / "logs"
"""Here a requeued job finds its run, whatever has become of the files that it was submitted with."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_spec_arguments(parser)
    add_engine_arguments(parser)
    args = parser.parse_args()
    try:
        life = present_life()
        run, spec_file, code = known_job(life) or new_job(life, args.spec, spec_from_arguments(args))
        note_start(run / FOLDER, life, newest_step(run))
        refuse_idle(run / FOLDER, life, most_idle_restarts())
    except (UserError, OSError) as error:
        print(f"{socket.gethostname()}: {error}", file=sys.stderr)
        return 2
    folder = run / FOLDER
    values = {
        "run": run,
        "spec": spec_file,
        "code": code,
        "life": folder / "lives" / life.name,
        "logs": folder / "logs",
        "health": folder / "health" / life.name,
        "job": life.job,
        "stage_to": load(spec_file, check_files=False).data.stage_to or "",
    }
    print("\n".join(f"{name}={shlex.quote(str(value))}" for name, value in values.items()))
    return 0


def pointer(life: Life) -> Path:
    return POINTERS / f".run-of-{os.environ.get('SLURM_CLUSTER_NAME', 'cluster')}-{life.job}"


def known_job(life: Life) -> tuple[Path, Path, Path] | None:
    """(run directory, resolved spec, code) of a job in a later life."""
    if life.restarts == 0 or not pointer(life).is_file():
        return None
    lines = read_text(pointer(life), MAX_SPEC_BYTES).splitlines()
    if len(lines) != 3:
        raise JobError(f"{pointer(life)}: expected three lines, a run's folder, spec and code: submit the job again")
    run, spec_file, code = map(Path, lines)
    return run, spec_file, code


def new_job(life: Life, path: str, spec: Spec) -> tuple[Path, Path, Path]:
    """The same of a job in its first life, whose code and spec are kept now, unless adatad submit has done that."""
    run = (Path(spec.run.root) / spec.name / f"id{spec.run.id}").absolute()
    if "ADATAD_CODE" in os.environ:
        spec_file, code = Path(path), Path(os.environ["ADATAD_CODE"])
    else:
        spec_file, code = freeze(run / FOLDER, life.job, spec)
    pointer(life).parent.mkdir(parents=True, exist_ok=True)
    pointer(life).write_text(f"{run}\n{spec_file}\n{code}\n")
    return run, spec_file, code


def most_idle_restarts() -> int:
    text = os.environ.get("MAX_IDLE_RESTARTS", "3")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise JobError(f"MAX_IDLE_RESTARTS is {text!r}; expected a whole number, such as 3")
    return int(text)


def note_start(folder: Path, life: Life, step: int) -> None:
    """A start without an end, whatever a life of this name has left before."""
    for name in ("lives", "logs", f"health/{life.name}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    facts = {
        "job": life.job,
        "restarts": life.restarts,
        "nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        "step": step,
        "seconds_since_1970": time.time(),
    }
    # Numbers of jobs come again, and the batch script may run twice in one allocation.
    for kind in (STOPPED, DONE, "end"):
        (folder / "lives" / f"{life.name}.{kind}").unlink(missing_ok=True)
    start = folder / "lives" / f"{life.name}.start"
    unfinished = start.with_name(f".{start.name}.unfinished")
    unfinished.write_text(json.dumps(facts))
    unfinished.replace(start)


def refuse_idle(folder: Path, life: Life, most: int) -> None:
    """Raises JobError after `most` restarts in a row that found no newer checkpoint than the life before."""
    steps = [facts["step"] for facts in started_lives(folder) if facts["job"] == life.job]
    if life.restarts and len(steps) > most and len(set(steps[-most - 1 :])) == 1:
        where = f"step {steps[-1]}" if steps[-1] >= 0 else "no checkpoint at all"
        (folder / "lives" / f"{life.name}.end").write_text(f"failed: {most} restarts in a row without progress\n")
        raise JobError(
            f"stopped: {most} restarts in a row without progress, still at {where}. {folder}/lives says how each life "
            "ended; a checkpoint may take longer than the time there is (train.checkpoint_every_steps, --time, "
            "--signal), MAX_IDLE_RESTARTS sets another limit"
        )


if __name__ == "__main__":
    sys.exit(main())
