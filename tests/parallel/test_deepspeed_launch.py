"""The commands of the README on two CPU ranks: torchrun, DeepSpeed's launcher, and no launcher at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import free_port

from adatad.spec import load
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.run_directory import run_directory

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "deepspeed.sh"


def last_parameters(spec_file: Path, run: int) -> dict[str, torch.Tensor]:
    spec = load(spec_file, [f"run.id={run}"])
    return read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1]).parameters


@pytest.mark.slow
def test_launched_either_way_or_alone_a_spec_trains_as_one_process_does(tiny_spec):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(free_port())]
    commands = [
        [sys.executable, "tools/train.py", tiny_spec, "--id", "0"],
        [sys.executable, "tools/train.py", tiny_spec, "--engine", "zero1", "--id", "1"],
        [*torchrun, "tools/train.py", tiny_spec, "--engine", "zero2", "--id", "2"],
        [*deepspeed, "tools/train.py", tiny_spec, "--deepspeed", "ds_configs/zero3.json", "--id", "3"],
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in commands:
        command = [*map(str, command), "--set", "schedule.epochs=1"]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        # Within training DeepSpeed speaks only to warn; its launcher names what it starts.
        news = [line for line in (run.stdout + run.stderr).splitlines() if "[INFO]" in line]
        assert all("runner.py" in line or "launch.py" in line for line in news)
    truth = last_parameters(tiny_spec, 0)
    for number in (1, 2, 3):
        trained = last_parameters(tiny_spec, number)
        assert trained.keys() == truth.keys()
        for name, tensor in truth.items():
            torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-5)


def dry_run(*arguments: str, **environment: str) -> str:
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments, "--dry-run"], env={**visible, **environment}, capture_output=True,
        text=True, check=True,
    ).stdout.strip()  # fmt: skip


@pytest.fixture
def two_gpus(tmp_path) -> str:
    """A PATH on which nvidia-smi lists two GPUs."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: other'\n")
    tool.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_the_script_starts_a_rank_for_each_gpu_and_passes_everything_on(two_gpus):
    command = ".venv/bin/deepspeed --log_level warning --num_gpus {} tools/train.py SPEC --set train.seed=1"
    arguments = ["SPEC", "--set", "train.seed=1"]
    assert dry_run(*arguments, PATH=two_gpus) == command.format(2)
    assert dry_run(*arguments, PATH=two_gpus, ADATAD_PROCESSES="5") == command.format(5)
    chosen = dry_run(*arguments, PATH=two_gpus, CUDA_VISIBLE_DEVICES="1")
    assert chosen == command.replace("--num_gpus {}", "--include localhost:1")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_the_script_starts_one_rank_where_there_is_no_gpu():
    assert dry_run("SPEC") == ".venv/bin/deepspeed --log_level warning --num_gpus 1 tools/train.py SPEC"
