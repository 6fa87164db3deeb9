"""A real Slurm on this machine: slurmctld and some slurmd, each node in namespaces of its own (network, processes,
mounts, host name). Nothing of the host changes, and all ends with the process that started it.

Times are shortened where Slurm allows it: a node counts as lost after seconds, a requeued job starts after seconds.
CPUs, memory and GPUs are claims: GPUs are copies of /dev/null, so that scripts that ask for some are taken.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

INIT = Path(__file__).parent / "init.sh"
TOOLS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")

CONFIGURATION = """
ClusterName={cluster}
SlurmctldHost=head(10.99.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={state}/munge/socket,cred_expire=5
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/nodes/%n/spool
SlurmctldPidFile={state}/controller/pid
SlurmdPidFile={state}/nodes/%n/slurmd.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdLogFile={state}/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PropagateResourceLimitsExcept=MEMLOCK
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=8
MessageTimeout=4
TCPTimeout=2
KillWait=20
CompleteWait=0
InactiveLimit=0
MinJobAge=7200
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=n[1-{nodes}] CPUs=64 Sockets=1 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=64000 Gres=gpu:8 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 DefaultTime=20 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=20 MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return what keeps this machine from having a cluster, if anything."""
    if os.getuid() != 0:
        return "a Slurm cluster in namespaces needs root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=path)]
    if missing:
        return f"not installed: {', '.join(missing)} (packages slurmctld slurmd slurm-client munge iproute2)"
    tried = subprocess.run(
        ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True
    )
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.decode().strip()}"


def until(condition: Callable[[], object], what: str, seconds: float = 240.0) -> object:
    """The first true value of a condition; fails after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not in {seconds:g} s: {what}"
        # Each look at a job is a process or two, on cores that the job needs.
        time.sleep(0.5)


class Cluster:
    """Runs from `start` to `stop`. Jobs are submitted in the checkout, with its virtual environment."""

    def __init__(self, nodes: int):
        self.nodes = nodes
        # The path of a Unix socket may have 107 bytes: not below pytest's folder.
        self.state = Path(tempfile.mkdtemp(prefix="slurm."))

    def start(self) -> Cluster:
        self._write_configuration()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
             "bash", str(INIT), "head", str(self.state), str(self.nodes)],
            stdin=subprocess.PIPE, stdout=(self.state / "log" / "init.log").open("w"), stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
        )  # fmt: skip
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._head = str(until(lambda: children.read_text().split(), "the head's namespaces", 20)[0])
        try:
            until(lambda: (self.state / "started").exists() or self._failed(), "the nodes are plugged in", 60)
            until(lambda: self._failed() or self.idle() == self.nodes, "all nodes are idle", 60)
            assert not self._failed()
        except AssertionError as error:
            logs = "\n".join(file.read_text()[-2000:] for file in (self.state / "log").iterdir())
            self.stop()
            raise AssertionError(f"the cluster didn't come up: {error}\n{logs}") from error
        return self

    def stop(self) -> None:
        self._holder.kill()
        self._holder.wait()
        shutil.rmtree(self.state, ignore_errors=True)

    def _write_configuration(self) -> None:
        for name in ("conf", "munge", "controller", "nodes", "log", "dev"):
            (self.state / name).mkdir()
        self.state.chmod(0o755)
        (self.state / "munge" / "key").write_bytes(os.urandom(128))
        (self.state / "munge" / "key").chmod(0o600)
        (self.state / "munge").chmod(0o711)
        conf = self.state / "conf"
        hosts = ["127.0.0.1 localhost", "10.99.0.1 head", *(f"10.99.0.{10 + n} n{n}" for n in range(1, self.nodes + 1))]
        (conf / "hosts").write_text("\n".join(hosts) + "\n")
        for number in range(8):
            subprocess.run(["mknod", str(self.state / "dev" / f"nvidia{number}"), "c", "1", "3"], check=True)
        gres = f"AutoDetect=off\nName=gpu Flags=nvidia_gpu_env File={self.state}/dev/nvidia[0-7]\n"
        (conf / "gres.conf").write_text(gres)
        (conf / "cgroup.conf").write_text("CgroupAutomount=no\n")
        # Other clusters beside this one number their jobs alike.
        text = CONFIGURATION.format(
            state=self.state, nodes=self.nodes, cluster=self.state.name.replace(".", "").lower()
        )
        (conf / "slurm.conf").write_text(text)
        Path("/etc/slurm").mkdir(exist_ok=True)

    def _failed(self) -> bool:
        return (self.state / "failed").exists() or self._holder.poll() is not None

    def idle(self) -> int:
        listed = self.run("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N", check=False)
        return len(set(listed.split()))

    def run(self, *command: object, check: bool = True, cwd: Path | None = None, **environment: str) -> str:
        """Standard output of a command on the head."""
        words = ["nsenter", "--target", self._head, "--mount", "--uts", "--net", "--pid", f"--wd={cwd or os.getcwd()}"]
        done = subprocess.run(
            [*words, "--", *map(str, command)], capture_output=True, text=True, env={**clean(os.environ), **environment}
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def on_node(self, node: str, *command: object) -> str:
        """The same on a node."""
        pid = (self.state / "nodes" / node / "pid").read_text().strip()
        return self.run("nsenter", "--target", pid, "--mount", "--uts", "--net", "--pid", "--", *command)

    def cut(self, node: str) -> None:
        """Pull the network cable of a node."""
        self.run("ip", "link", "set", f"to-{node}", "down")

    def heal(self, node: str) -> None:
        self.run("ip", "link", "set", f"to-{node}", "up")

    def facts(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`, by name."""
        text = self.run("scontrol", "show", "job", "-o", job, check=False).splitlines()
        return dict(re.findall(r"(\w+)=(\S*)", text[0])) if text else {}

    def is_in(self, job: str, *states: str) -> str | None:
        state = self.facts(job).get("JobState")
        return state if state in states else None

    def wait(self, job: str, *states: str, seconds: float = 240.0) -> str:
        """Until a job is in one of the states, by default one that is final."""
        return until(lambda: self.is_in(job, *(states or ENDED)), f"job {job} in {states or ENDED}", seconds)


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what a surrounding job, or a launcher of tests, would put into the jobs."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")
    return {
        k: v for k, v in environment.items() if k not in names and not k.startswith(("SLURM_", "SBATCH_", "PYTEST_"))
    }
