"""A cluster for each process of the test run, a tiny form of the published specs, and jobs as the tests see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import Cluster, clean, until, why_not

from adatad.training.checkpoint import Checkpoint, all_checkpoints, read_checkpoint

ROOT = Path(__file__).parents[2]
NODES = 4
LAST_STEP = 6
NODE_DISK = "/dev/shm/staged"
"""Each node of the cluster has its own."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    running = Cluster(NODES).start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def tiny(tiny_data: Path) -> list[str]:
    """Arguments that make a published spec train six steps on the built-in videos."""
    return [
        "--set",
        f"data.annotations={tiny_data}/annotations.json",
        f"data.videos={tiny_data}/videos",
        "data.classes=null",
        "data.class_count=null",
        "data.window={size_grid: 32, stride_frames: 2, frames_per_position: 1}",
        "data.size_pixels=32",
        "data.workers=0",
        "model.backbone={preset: tiny, width: 16, depth: 2, heads: 2, patch: 16, mlp_ratio: 2, position_grid: 2}",
        "model.backbone.drop_path=0.2",
        "model.backbone.weights=random",
        "model.detector={width: 16, heads: 2, stem_blocks: 1, branch_blocks: 2, max_length: 32}",
        "model.detector.regression_ranges=[[0, 4], [4, 8], [8, 10000]]",
        "schedule={warmup_epochs: 1, epochs: 2}",
        "train={global_batch: 2, evaluate_every_epochs: 9, checkpoint_every_steps: 1, precision: fp32}",
    ]


@dataclass
class Job:
    """A job of a test: where its run and its output are. id: as sbatch printed it."""

    cluster: Cluster
    folder: Path
    name: str
    id: str = ""
    submitted: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """Directory of its run, whose parent is that of the spec."""
        return next(iter(sorted(self.folder.glob("runs/**/id[0-9]*"))), self.folder / "runs")

    @property
    def log(self) -> str:
        return (self.folder / "job.log").read_text() if (self.folder / "job.log").exists() else ""

    @property
    def go(self) -> Path:
        """Release a planted hold."""
        return self.folder / "go"

    def rank_log(self, rank: int) -> str:
        return (self.run / "slurm" / "logs" / f"rank-{rank}.log").read_text()

    def held(self, ranks: int) -> None:
        """Until so many ranks of the first attempt stand at the planted step."""
        self.until(lambda: all((self.folder / f"go.held-{rank}").exists() for rank in range(ranks)), "ranks hold")

    def until(self, condition, what: str, seconds: float = 240.0) -> None:
        """Fails with the job's output as soon as the job has ended otherwise."""

        def ended_or() -> bool:
            if condition():
                return True
            state = self.cluster.is_in(self.id, "FAILED", "CANCELLED", "TIMEOUT", "COMPLETED")
            assert not state or condition(), f"{what}: the job has ended as {state}\n{self.log}"
            return False

        try:
            until(ended_or, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.facts(self.id)}\n{self.log}") from None

    def ends_as(self, state: str, seconds: float = 300.0) -> None:
        found = None
        try:
            found = self.cluster.wait(self.id, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.facts(self.id)}\n{self.log}") from None
        assert found == state, f"{found}\n{self.log}"

    def ended(self) -> list[str]:
        """How each attempt ended, in order; "" for one that left no word."""
        attempts = self.run / "slurm" / "attempts"
        names = sorted(file.stem for file in attempts.glob("*.start"))
        ends = [attempts / f"{name}.end" for name in names]
        return [end.read_text().strip() if end.exists() else "" for end in ends]

    def checkpoint(self) -> Checkpoint:
        path = all_checkpoints(self.run / "checkpoints")[-1]
        assert path.name == f"step-{LAST_STEP:08d}"
        return read_checkpoint(path)


class Submit:
    """submit(script, *arguments, options=[...], plant="hold:3", **environment) -> Job"""

    def __init__(self, cluster: Cluster, folder: Path, tiny: list[str]):
        self.cluster, self.folder, self.tiny = cluster, folder, tiny
        self.count = 0

    def __call__(
        self, script: str, *arguments: str, options: tuple[str, ...] = (), plant: str = "", **environment: str
    ) -> Job:
        self.count += 1
        job = Job(self.cluster, self.folder / f"job{self.count}", f"job{self.count}")
        job.folder.mkdir()
        environment = {**quick(), **environment}
        if plant:
            environment |= {"PROGRAM": str(ROOT / "tests/slurm/planted.py"), "PLANT": plant, "PLANT_GO": str(job.go)}
        runs = f"run.root={job.folder}/runs"
        job.id = self.cluster.run(
            "sbatch", "--parsable", f"--output={job.folder}/job.log", *TWO_NODES, *options,
            f"slurm/{script}", *self.tiny, runs, *arguments, cwd=ROOT, **environment,
        ).strip()  # fmt: skip
        return job


TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")


def quick() -> dict[str, str]:
    """Settings of the scripts in tests: the health check has a test of its own, and the machine is a busy one."""
    return {"VENV": sys.prefix, "HEALTH_CHECK": "0", "LEAVE_SECONDS": "30", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path, tiny: list[str]) -> Submit:
    return Submit(cluster, tmp_path, tiny)


@pytest.fixture(scope="session")
def two_nodes(
    cluster: Cluster, tiny: list[str], one_process: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """The published job on two nodes, never interrupted; with the health check, and videos on the nodes' disks.

    After one process, which leaves in the checkout what it has compiled: jobs keep that with their code.
    """
    submit = Submit(cluster, tmp_path_factory.mktemp("two-nodes"), tiny)
    job = submit("train_g_1536.sh", f"data.stage_to={NODE_DISK}", HEALTH_CHECK="1", SLOW_FACTOR="1000")
    job.ends_as("COMPLETED")
    return job


@pytest.fixture(scope="session")
def one_process(cluster: Cluster, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The last checkpoint of the same spec without Slurm."""
    folder, spec = tmp_path_factory.mktemp("one-process"), ROOT / "configs" / "thumos" / "g_1536x224_adapter.yaml"
    command = [sys.executable, str(ROOT / "tests/slurm/planted.py"), str(spec), *tiny, f"run.root={folder}/runs"]
    environment = {**clean(os.environ), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return read_checkpoint(all_checkpoints(folder / "runs" / "thumos" / spec.stem / "id0" / "checkpoints")[-1])


def read_json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
