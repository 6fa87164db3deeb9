"""Run one attempt of a Slurm job: check its nodes, start its ranks, and requeue the job or end it.

    python -m adatad.cluster.supervisor train SPEC [--launcher srun|torchrun|deepspeed] [arguments of train]
    python -m adatad.cluster.supervisor test SPEC --checkpoint CHECKPOINT [arguments of test]
    python -m adatad.cluster.supervisor detect MODEL SOURCE... --output FOLDER [arguments of detect]
    python -m adatad.cluster.supervisor sweep LIST SPEC [arguments of train]

The scripts in slurm/ put this in the place of the batch shell. It needs the standard library alone: with CONTAINER it
runs on the host, where srun and scontrol are, and what needs packages runs in the container.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from adatad.cluster.allocation import LAUNCHERS, REQUEUE_SECONDS, Allocation, System
from adatad.cluster.job import (
    FOLDER,
    JobError,
    JobRun,
    current_attempt,
    known_run,
    newest_step,
    note_start,
    refuse_idle,
    remember_run,
)
from adatad.cluster.node_check import judge
from adatad.cluster.rank_logs import RankLogs
from adatad.cluster.sweep import sweep_lines
from adatad.errors import UserError
from adatad.training.markers import ATTEMPT, DONE, STOPPED

ROOT = Path(__file__).parents[2]
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUME = 1, 2, 75
SIGNALLED = (128 + signal.SIGUSR1, 128 + signal.SIGTERM)
"""Exit codes of srun whose tasks one of Slurm's own signals has ended."""
SETTINGS = {
    "LAUNCHER": "srun",  # what starts the ranks; --launcher says the same
    "PROGRAM": "",  # a script in the place of tools/train.py
    "LEAVE_SECONDS": 60,  # after one rank has left, until the others are ended
    "MAX_IDLE_RESTARTS": 3,  # restarts without a newer checkpoint before the job gives up
    "MAX_EXCLUDED_NODES": 4,  # bad nodes before it does
    "HEALTH_CHECK": 1,  # 0: start without a look at the nodes
    "HEALTH_SECONDS": 180,  # a node that hasn't answered by then is bad
    "LOCAL_DISK": "",  # a folder on each node's own disk that must be writable; without it TMPDIR, or /tmp
    "MIN_FREE_GIB": 2.0,  # free on that disk, and of each GPU's memory
    "SLOW_FACTOR": 1.5,  # a node whose matrix product takes this many times the median is bad
    "MIN_GBIT": 0.0,  # Gbit/s; a slower all-reduce between the nodes is an error
    "FIRST_ID": 0,  # number of a sweep's first run
}
"""Variables of sbatch's environment with their defaults; docs/cluster.md lists them, too."""


class Supervisor:
    """One attempt of a job, from its first look at the nodes to its end.

    environment: that of the batch script. received: signals so far, appended to by this process's handlers.
    """

    def __init__(self, environment: Mapping[str, str], system: System, received: list[int]):
        self.settings = read_settings(environment)
        self.attempt = current_attempt(environment)
        self.received = received
        self.job = Allocation(environment, system, self.attempt, int(self.settings["LEAVE_SECONDS"]))
        self.run = JobRun("", "", "", "")
        self.folder = Path()

    @property
    def markers(self) -> Path:
        """Path of the attempt's files without their endings."""
        return self.folder / "attempts" / self.attempt.name

    # --- verbs ---------------------------------------------------------------------------------------------------

    def train(self, arguments: Sequence[str]) -> int:
        """Train until the end, a signal or an error. Returns the job's exit code."""
        launcher, arguments = take_launcher(arguments, str(self.settings["LAUNCHER"]))
        run = known_run(self.attempt)
        if run is None:
            snapshot = [*self.job.python, "-m", "adatad.cli.job", "snapshot", *arguments]
            code, printed = self.job.system.read(snapshot, self.job.environment)
            if code:
                return code
            run = JobRun(*json.loads(printed.splitlines()[-1]))
            remember_run(self.attempt, run)
        self.run, self.folder = run, Path(run.run) / FOLDER
        nodes, path = self.job.environment["SLURM_JOB_NODELIST"], self.job.environment.get("PYTHONPATH")
        note_start(self.folder, self.attempt, newest_step(Path(run.run)), nodes)
        refuse_idle(self.folder, self.attempt, int(self.settings["MAX_IDLE_RESTARTS"]))
        self.job.environment["PYTHONPATH"] = run.code + (f":{path}" if path else "")
        self.job.environment[ATTEMPT] = str(self.markers)
        self.say(f"attempt {self.attempt.name} of {run.run} on {nodes}")

        if self.settings["HEALTH_CHECK"] and (code := self.check_nodes()) is not None:
            return code
        if run.stage_to and (code := self.stage_videos()) is not None:
            return code

        program = [str(self.settings["PROGRAM"]) or f"{run.code}/tools/train.py", run.spec, "--resume", "auto"]
        command = self.job.launch(launcher, run.code, program, self.markers.with_suffix(".hosts"))
        header = f"== attempt {self.attempt.name}, {time.strftime('%F %T')} =="
        logs = RankLogs(self.folder / "logs", sys.stdout, header, one_task_a_rank=launcher == "srun")
        code = self.job.system.stream(command, self.job.environment, logs.take_and_flush)
        if self.marker(STOPPED) is None and self.marker(DONE) is None:
            logs.repeat_first_error()
        return self.end(code)

    def test(self, arguments: Sequence[str]) -> int:
        """Score a checkpoint; a test that a preemption ends begins anew. Returns the exit code."""
        return self.outlast_preemption("test", [str(ROOT / "tools" / "test.py"), *arguments])

    def detect(self, arguments: Sequence[str]) -> int:
        """Detect in this task's part of a list; what a preemption ends goes on with the next video. Returns the exit
        code."""
        return self.outlast_preemption("detection", ["-m", "adatad", "detect", *arguments])

    def outlast_preemption(self, what: str, program: Sequence[str]) -> int:
        """Run the ranks of a program, and requeue the job if a preemption ends it. Returns the exit code."""
        code = self.job.call(self.job.one_task_a_rank(ROOT, program))
        # At the start of a preemption's grace time Slurm signals the ranks alone, and a job that then ended by itself
        # would not come back.
        if code == 128 + signal.SIGTERM and self.job.state() == "RUNNING":
            self.say(f"a signal ended the {what}: requeueing the job")
            self.received.clear()
            if self.job.requeue():
                self.wait_for_slurm()
        return code

    def sweep(self, arguments: Sequence[str]) -> int:
        """Train with one line of a list of overrides, then write the table of all results. Returns the exit code."""
        task = self.job.environment.get("SLURM_ARRAY_TASK_ID")
        if not task or len(arguments) < 2:
            raise JobError("usage: sbatch --array=0-N slurm/sweep.sh LIST SPEC [arguments of slurm/train.sh]")
        file, *arguments = arguments
        lines, first = sweep_lines(Path(file)), int(self.settings["FIRST_ID"])
        if int(task) >= len(lines):
            raise JobError(f"{file} has {len(lines)} lines: --array=0-{len(lines) - 1}, there is no {task}")
        try:
            overrides = shlex.split(lines[int(task)])
        except ValueError as error:
            raise JobError(f"{file}, line {task} (from 0): {lines[int(task)]}: can't be read: {error}") from error
        code = self.train([*arguments, "--set", *overrides, "--id", str(first + int(task))])
        if code == 0:
            self.job.call([*self.job.python, "-m", "adatad.cli.job", "table", file, str(first), *arguments])
        return code

    # --- steps of an attempt: each returns the job's exit code, or None to go on -----------------------------------

    def check_nodes(self) -> int | None:
        """Look at every node before training: a bad one is named, and excluded from the next attempt."""
        seconds, folder = str(self.settings["HEALTH_SECONDS"]), self.folder / "health" / self.attempt.name
        disk = str(self.settings["LOCAL_DISK"]) or self.job.environment.get("TMPDIR") or "/tmp"
        # A GPU or a disk may hang whoever looks at it: `timeout` ends the look with it.
        look = ["timeout", "--kill-after=10", seconds, *self.job.python, "-m", "adatad.cluster.node_check", str(folder)]
        look += ["--disk", disk, "--min-free-gib", str(self.settings["MIN_FREE_GIB"]), "--seconds", seconds]
        code = self.job.call(self.job.one_task_a_node("--kill-on-bad-exit=0", f"--wait={seconds}", *look))
        # What Slurm's own signals end isn't a node's fault.
        if code in SIGNALLED:
            return self.requeue("a signal during the health check")
        slow_factor, min_gbit = float(self.settings["SLOW_FACTOR"]), float(self.settings["MIN_GBIT"])
        bad = judge(folder, self.job.hosts, slow_factor, min_gbit)
        for host, text in bad.items():
            self.say(f"health check: {host or 'network'}: {text}")
        if not bad:
            return None
        if names := ",".join(host for host in bad if host):
            return self.requeue(f"bad node {names}", names)
        self.write_end("failed: health check")
        return EXIT_FAILED

    def stage_videos(self) -> int | None:
        """Copy the videos to every node's own disk; what an earlier attempt has copied stays."""
        stage = [*self.job.python, f"{self.run.code}/tools/stage.py", self.run.spec]
        code = self.job.call(self.job.one_task_a_node(*stage))
        if code in SIGNALLED:
            return self.requeue("a signal while videos were copied")
        if code:
            self.say(f"videos couldn't be copied to {self.run.stage_to}")
            self.write_end("failed: staging")
            return EXIT_FAILED
        return None

    def end(self, code: int) -> int:
        """End the attempt. Launchers lose and hide exit codes in many ways, so the trainer's markers decide."""
        if (stopped := self.marker(STOPPED)) is not None:
            return self.requeue(f"stopped by {stopped}")
        if (done := self.marker(DONE)) is not None:
            self.say(f"done, {done}")
            self.write_end("done")
            return 0
        # A launcher that started nobody returns 0.
        code = code or EXIT_FAILED
        logs = self.folder / "logs"
        self.say(f"failed with {code}: the ranks left without having stopped or finished; logs of each in {logs}")
        self.write_end(f"failed: exit code {code}")
        return code

    def requeue(self, reason: str, bad_nodes: str = "") -> int:
        """Requeue the job, without `bad_nodes`, and wait for Slurm to end this attempt."""
        state = self.job.state()
        if state != "RUNNING":
            # After scancel a requeue would bring the job back; after a preemption or a lost node Slurm itself does it.
            self.say(f"{reason}; the job is {state or 'unknown to Slurm'}: not requeued from here")
            self.write_end(f"ended: {reason}, the job was {state or 'unknown'}")
            return EXIT_RESUME
        excluded = ""
        if bad_nodes:
            excluded = ",".join(filter(None, (self.job.fact("ExcNodeList"), bad_nodes)))
            count = len(self.job.hostnames(excluded))
            if count > int(self.settings["MAX_EXCLUDED_NODES"]):
                too_many = f"with it {count} nodes would be left out ({excluded}), more than MAX_EXCLUDED_NODES"
                self.say(f"{reason}: {too_many}: giving up")
                self.write_end(f"failed: {reason}")
                return EXIT_FAILED
            self.say(f"leaving out {excluded} from now on")
        self.received.clear()
        self.say(f"{reason}: requeueing the job")
        self.write_end(f"requeued: {reason}")
        if not self.job.requeue():
            self.job.system.sleep(2)
            if not self.job.requeue():
                self.say("this job may not be requeued: submit it again, it goes on from its last checkpoint")
                self.write_end(f"failed: {reason}, and Slurm refused to requeue")
                return EXIT_RESUME
        if excluded:
            self.job.exclude(excluded)
        self.wait_for_slurm()
        return EXIT_RESUME

    def wait_for_slurm(self) -> None:
        """Wait for the signal by which Slurm ends a requeued attempt: a job that ended first might not come back."""
        for _ in range(5 * REQUEUE_SECONDS):
            if self.received:
                return
            self.job.system.sleep(0.2)

    # --- files and output ----------------------------------------------------------------------------------------

    def marker(self, kind: str) -> str | None:
        """Return the text of a marker that the trainer has written; None without it."""
        with suppress(OSError):
            return self.markers.with_suffix(f".{kind}").read_text(encoding="utf-8").strip()
        return None

    def write_end(self, text: str) -> None:
        """Write how the attempt ended, for `adatad status`."""
        # A full disk must not keep the job from being requeued.
        with suppress(OSError):
            self.markers.with_suffix(".end").write_text(text + "\n", encoding="utf-8")

    def say(self, text: str) -> None:
        """Print a line with the time to the job's output."""
        with suppress(OSError):
            print(f"{time.strftime('%F %T')} job: {text}", flush=True)


def read_settings(environment: Mapping[str, str]) -> dict[str, str | int | float]:
    """Return the values of SETTINGS; an empty variable counts as unset. Raises JobError."""
    settings: dict[str, str | int | float] = {}
    for name, default in SETTINGS.items():
        text = environment.get(name) or str(default)
        try:
            value = type(default)(text)
        except ValueError:
            value = -1
        if not isinstance(value, str) and not 0 <= value < 1e9:
            expected = "a whole number" if isinstance(default, int) else "a number"
            raise JobError(f"{name} is {text!r}; expected {expected}, such as {default}")
        settings[name] = value
    return settings


def take_launcher(arguments: Sequence[str], launcher: str) -> tuple[str, list[str]]:
    """Return the launcher that the arguments name, else `launcher`, and the other arguments. Raises JobError."""
    others, words = [], iter(arguments)
    for word in words:
        if word == "--launcher":
            launcher = next(words, "")
        elif word.startswith("--launcher="):
            launcher = word.partition("=")[2]
        elif word in ("--resume", "--force", "--overwrite"):
            raise JobError(
                f"{word} isn't for jobs: they go on from what their run directory holds; --id N starts another"
            )
        else:
            others.append(word)
    if launcher not in LAUNCHERS:
        raise JobError(f"--launcher is {launcher!r}; expected {', '.join(LAUNCHERS[:-1])} or {LAUNCHERS[-1]}")
    return launcher, others


def main() -> int:
    """Run one of the supervisor's verbs and return the job's exit code."""
    received: list[int] = []
    # Before any child is started: the batch script has the signals ignored, which children would inherit. Slurm signals
    # the ranks itself; this process need only outlive them.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: received.append(number))
    # A character that the output's encoding lacks must not end the job.
    sys.stdout.reconfigure(errors="backslashreplace")
    verb, *arguments = sys.argv[1:]
    try:
        supervisor = Supervisor(os.environ, System(), received)
        verbs = {
            "train": supervisor.train, "test": supervisor.test, "detect": supervisor.detect, "sweep": supervisor.sweep,
        }  # fmt: skip
        return verbs[verb](arguments)
    except (UserError, OSError) as error:
        print(f"slurm/{verb}.sh on {socket.gethostname()}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
