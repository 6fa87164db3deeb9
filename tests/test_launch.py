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
        ({"CUDA_VISIBLE_DEVICES": "GPU-3e1c-1f,GPU-5a"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
        # CUDA shows a process the first of them alone.
        ({"CUDA_VISIBLE_DEVICES": "MIG-3e1c-1f,MIG-5a"}, 1),
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


@pytest.mark.parametrize(
    ("listed", "processes"),
    [
        ("GPU 0: NVIDIA A100 (UUID: GPU-1)\nGPU 1: NVIDIA A100 (UUID: GPU-2)\n", 2),
        ("GPU 0: NVIDIA A100 (UUID: GPU-1)\n  MIG 3g.40gb Device 0: (UUID: MIG-1)\n  MIG 3g.40gb Device 1: ...\n", 1),
        ("No devices found.\n", 1),
    ],
    ids=["two", "mig", "none"],
)
def test_gpus_are_counted_as_nvidia_smi_lists_them(listed, processes, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    smi.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert f"--nproc-per-node {processes} " in launch("spec.yaml", "--dry-run", PATH=path).stdout
    for wanted in (("--device", "cpu"), ("--device=cpu",)):
        assert "--nproc-per-node 1 " in launch("spec.yaml", *wanted, "--dry-run", PATH=path).stdout


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
