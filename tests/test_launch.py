"""launch/torchrun.sh: the command that it makes of this machine and its arguments."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def launch(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    unset = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "ADATAD_PROCESSES", *ALLOCATOR)
    environment = {name: value for name, value in os.environ.items() if name not in unset} | variables
    command = ["bash", "launch/torchrun.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("variables", "processes"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, 1),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-3e1c4f-1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "ADATAD_PROCESSES": "4"}, 4),
    ],
)
def test_one_process_a_gpu_unless_told_otherwise(variables, processes):
    run = launch("spec.yaml", "--engine", "fsdp", "--set", "run.root=a b", "--dry-run", **variables)
    assert run.returncode == 0, run.stderr
    settings, _, command = run.stdout.strip().partition(" .venv/")
    assert command == (
        f"bin/torchrun --standalone --nproc-per-node {processes} tools/train.py spec.yaml --engine fsdp "
        "--set run.root=a\\ b"
    )
    threads = max(1, os.cpu_count() // processes)
    allocator = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    assert settings == f"OMP_NUM_THREADS={threads} OMP_WAIT_POLICY=PASSIVE {allocator}"


def test_the_users_environment_stays():
    run = launch("--dry-run", OMP_NUM_THREADS="7", OMP_WAIT_POLICY="ACTIVE", CUDA_VISIBLE_DEVICES="")
    assert run.stdout.startswith("OMP_NUM_THREADS=7 OMP_WAIT_POLICY=ACTIVE ")


@pytest.mark.parametrize("name", ALLOCATOR)
def test_the_users_settings_of_the_allocator_stay_under_both_names(name):
    run = launch("--dry-run", **{name: "backend:native"})
    own = " PYTORCH_CUDA_ALLOC_CONF=backend:native" if name == ALLOCATOR[0] else ""
    # torch would take the first name's value, even an empty one, before the second's.
    assert f"OMP_WAIT_POLICY=PASSIVE{own} .venv" in run.stdout


def test_a_number_of_processes_that_is_none_is_refused():
    for value in ("two", "0"):
        run = launch("--dry-run", ADATAD_PROCESSES=value)
        assert run.returncode == 2
        assert f"ADATAD_PROCESSES is '{value}'" in run.stderr
