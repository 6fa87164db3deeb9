"""The nodes that a job runs on: processes started on them by srun, and what scontrol says of the job.

The supervisor uses this module, so it needs the standard library alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from adatad.cluster.job import JobAttempt

LAUNCHERS = ("srun", "torchrun", "deepspeed")
CONTROLLER_TRIES = 20
"""Questions to Slurm's controller, a second apart: it may be busy or restarting."""
REQUEUE_SECONDS = 60
BLOCK_SIGNALS = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1}); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class System:
    """The processes that a supervisor starts, and its clock. Exit codes are a shell's: 128 + n for signal n."""

    def call(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Return the exit code of a command that writes to this process's own output."""
        return self._end(self._start(command, environment))

    def read(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        """Return the exit code of a command and its standard output."""
        process = self._start(command, environment, stdout=subprocess.PIPE)
        text = process.communicate()[0] if process else ""
        return self._end(process), text

    def stream(self, command: Sequence[str], environment: Mapping[str, str], take: Callable[[str], None]) -> int:
        """Return the exit code of a command; `take` gets each line of its output and errors as it comes."""
        process = self._start(command, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in process.stdout if process else ():
            take(line.rstrip("\r\n"))
        return self._end(process)

    def sleep(self, seconds: float) -> None:
        """Wait; signals that come meanwhile are handled at once."""
        time.sleep(seconds)

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str], **pipes: int
    ) -> subprocess.Popen[str] | None:
        with suppress(OSError):
            # What this process has printed comes before what the command prints.
            sys.stdout.flush()
        try:
            # Commands get no input: srun would eat all there is.
            return subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, text=True, encoding="utf-8", errors="replace",
                **pipes,
            )  # fmt: skip
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            return None

    def _end(self, process: subprocess.Popen[str] | None) -> int:
        if process is None:
            return 127
        code = process.wait()
        return code if code >= 0 else 128 - code


class Allocation:
    """The job's share of the cluster, in one attempt.

    environment: of all that is started, from that of the batch script; python: the command that starts the ranks'
    Python; leave_seconds: after one rank has left, until srun ends the others.
    """

    def __init__(self, environment: Mapping[str, str], system: System, attempt: JobAttempt, leave_seconds: int):
        self.system, self.attempt, self.leave_seconds = system, attempt, leave_seconds
        self.environment = dict(environment)
        self.nodes = environment.get("SLURM_JOB_NUM_NODES") or "1"
        self.ranks = environment.get("SLURM_NTASKS_PER_NODE") or "1"
        self.cpus = environment.get("SLURM_CPUS_PER_TASK") or "1"
        container = environment.get("CONTAINER")
        self.python = ["apptainer", "exec", "--nv", container, "python3"] if container else [sys.executable]
        self.hosts = self.hostnames(environment["SLURM_JOB_NODELIST"])
        self.environment = job_environment(environment, self.hosts[0] if self.hosts else "")

    def call(self, command: Sequence[str]) -> int:
        """Run a command in the job's environment; returns its exit code."""
        return self.system.call(command, self.environment)

    def hostnames(self, nodes: str) -> list[str]:
        """Return the names that a list such as n[1-3] stands for."""
        return self.system.read(["scontrol", "show", "hostnames", nodes], self.environment)[1].split()

    def fact(self, name: str) -> str:
        """Return what scontrol says of the job under a name, "" for nothing or if it doesn't answer for a while."""
        for _ in range(CONTROLLER_TRIES):
            code, text = self.system.read(["scontrol", "show", "job", "-o", self.attempt.job], self.environment)
            if code == 0:
                found = re.search(rf"(?:^|\s){name}=(\S*)", text)
                return found[1] if found and found[1] != "(null)" else ""
            self.system.sleep(1)
        return ""

    def state(self) -> str:
        """Return the job's state, such as RUNNING; "" if Slurm doesn't say."""
        return self.fact("JobState")

    def requeue(self) -> bool:
        """Ask Slurm to requeue the job; returns whether it does."""
        # A requeue ends what the job runs, scontrol amid its answer, too: only the job's state tells a refusal.
        return self.call(["scontrol", "requeue", self.attempt.job]) == 0 or self.state() != "RUNNING"

    def exclude(self, nodes: str) -> None:
        """Exclude nodes from the requeued job's next attempt."""
        # Slurm refuses it for a job that runs and takes it once the job is pending again, which is before it kills this
        # process.
        update = ["scontrol", "update", f"JobId={self.attempt.job}", f"ExcNodeList={nodes}"]
        while self.system.read(update, self.environment)[0]:
            self.system.sleep(0.2)

    # --- steps ---------------------------------------------------------------------------------------------------

    def step(self, cpus: str, *arguments: str) -> list[str]:
        """Return the command of a step. srun takes no CPUs per task from the job by itself; --label names the task."""
        return ["srun", "--label", f"--cpus-per-task={cpus}", *arguments]

    def one_task_a_node(self, *arguments: str) -> list[str]:
        """Return the command of a step with one task on each node, which has all of the node's CPUs."""
        cpus = str(int(self.ranks) * int(self.cpus))
        return self.step(cpus, f"--ntasks={self.nodes}", "--ntasks-per-node=1", *arguments)

    def one_task_a_rank(self, code: Path | str, program: Sequence[str], held: Sequence[str] = ()) -> list[str]:
        """Return the command of a step that starts every rank of a program itself. code: folder with slurm/rank.sh;
        held: a prefix of each rank's command."""
        return self.step(self.cpus, *self._leaving(), *held, "bash", f"{code}/slurm/rank.sh", *self.python, *program)

    def _leaving(self) -> list[str]:
        # To kill the other ranks at once would hide the first failure's exit code behind theirs.
        return ["--kill-on-bad-exit=0", f"--wait={self.leave_seconds}"]

    def launch(self, launcher: str, code: str, program: Sequence[str], hostfile: Path) -> list[str]:
        """Return the command that starts all ranks of a program. hostfile: written where the launcher needs one."""
        held = self._held_signals()
        port, address = self.environment["MASTER_PORT"], self.environment["MASTER_ADDR"]
        if launcher == "srun":
            return self.one_task_a_rank(code, program, held)
        if launcher == "torchrun":
            # Its own prefix of lines doesn't tell ranks of two nodes apart.
            self.environment["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = "[rank${rank}]:"
            return self.one_task_a_node(
                *self._leaving(), *held, *self.python, "-m", "torch.distributed.run", f"--nnodes={self.nodes}",
                f"--nproc-per-node={self.ranks}", "--rdzv-backend=c10d",
                f"--rdzv-id={self.environment['SLURM_JOB_ID']}", f"--rdzv-endpoint={address}:{port}",
                "--signals-to-handle=SIGTERM,SIGUSR1", "--tee=3", *program,
            )  # fmt: skip
        # DeepSpeed's launcher runs on every node and is told which one it is on: nothing goes through ssh.
        hostfile.write_text("".join(f"{host} slots={self.ranks}\n" for host in self.hosts), encoding="utf-8")
        runner = [*self.python, "-m", "deepspeed.launcher.runner", f"--hostfile={hostfile}", "--no_ssh"]
        runner += [f"--master_addr={address}", f"--master_port={port}", "--log_level=warning"]
        # Only the task knows the number of its node.
        on_node = 'exec "${@:2:$1}" --node_rank="$SLURM_NODEID" "${@:$1+2}"'
        shell = ["bash", "-c", on_node, "-", str(len(runner)), *runner, *program]
        return self.one_task_a_node(*self._leaving(), *held, *shell)

    def _held_signals(self) -> list[str]:
        """Return a prefix that keeps TERM and USR1 waiting until the trainer handles them, however long its imports
        take."""
        held = ["env", "--block-signal=TERM,USR1"]
        if self.system.read([*held, "true"], self.environment)[0] == 0:
            return held
        # env can since coreutils 8.31.
        return [sys.executable, "-c", BLOCK_SIGNALS]


def job_environment(environment: Mapping[str, str], first_host: str) -> dict[str, str]:
    """Return the environment of a job's steps. What the user has set stays, but for what the job must know better."""
    result = dict(environment)
    # sbatch --export=SOME leaves it for steps, which would drop all that is set here.
    result.pop("SLURM_EXPORT_ENV", None)
    result |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "PYTHONSAFEPATH": "1", "COLUMNS": "160"}
    defaults = {
        "OMP_NUM_THREADS": environment.get("SLURM_CPUS_PER_TASK") or "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "NCCL_DEBUG": "WARN",
        "TORCH_FR_BUFFER_SIZE": "2000",
    }
    if not shutil.which("nvidia-smi", path=environment.get("PATH")):
        defaults["DS_ACCELERATOR"] = "cpu"
    result |= {name: value for name, value in defaults.items() if not environment.get(name)}
    # Saved inputs of some MiB would leave gaps in segments of a fixed size. torch reads either name, this one first.
    if "PYTORCH_CUDA_ALLOC_CONF" not in environment and "PYTORCH_ALLOC_CONF" not in environment:
        result["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    # Anew in each attempt: the next one gets other nodes. The task's own number: tasks of an array share nodes.
    result["MASTER_ADDR"] = first_host
    result["MASTER_PORT"] = str(15000 + int(environment["SLURM_JOB_ID"]) % 20000)
    return result
