"""Two real processes (gloo) train as one does, and leave together when asked to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import free_port

from adatad.spec import load
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.run_directory import run_directory
from adatad.training.signals import EXIT_CODE_RESUME

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def command(ranks: int, spec: Path, *arguments: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launcher, str(ROOT / "tools" / "train.py"), str(spec), *arguments]


def last_parameters(spec_file: Path, run: int) -> dict[str, torch.Tensor]:
    spec = load(spec_file, [f"run.id={run}"])
    return read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1]).parameters


def test_two_ranks_train_as_one(tiny_spec):
    for ranks in (1, 2):
        run = subprocess.run(command(ranks, tiny_spec, "--id", str(ranks)), cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("report.html") == 1
    alone, together = last_parameters(tiny_spec, 1), last_parameters(tiny_spec, 2)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5)


def test_both_ranks_leave_with_75_when_one_is_asked_to_stop(tiny_spec):
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    long = command(1, tiny_spec, "--set", "schedule.epochs=2000")
    ranks = [subprocess.Popen(long, cwd=ROOT, env={**environment, "RANK": str(rank)}) for rank in range(2)]
    checkpoints = run_directory(load(tiny_spec)).checkpoints
    try:
        while not all_checkpoints(checkpoints):
            assert all(rank.poll() is None for rank in ranks)
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGUSR1)
        assert [rank.wait(timeout=60) for rank in ranks] == [EXIT_CODE_RESUME] * 2
    finally:
        for rank in ranks:
            rank.kill()
    # Evaluation, report and the rest of the epochs were left out; what was saved is whole.
    assert read_checkpoint(all_checkpoints(checkpoints)[-1]).state["progress"]["step"] >= 1
