"""The commands of the documents on two CPU ranks: torchrun, DeepSpeed's launcher, and no launcher at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import free_port
from test_documents import commands

from adatad.spec import load
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.run import train
from adatad.training.run_directory import run_directory

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "deepspeed.sh"


def last_parameters(spec_file: Path, run: int) -> dict[str, torch.Tensor]:
    spec = load(spec_file, [f"run.id={run}"])
    return read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1]).parameters


def documented() -> list[list[str]]:
    """Words of commands of README.md and docs/engines.md that train on built-in data, each once but for its --id."""
    found = {}
    for document in (ROOT / "README.md", ROOT / "docs" / "engines.md"):
        for words in commands(document):
            trains = words[0] in ("torchrun", "deepspeed", "adatad") and {"train", "tools/train.py"} & set(words)
            if trains and not any(word.startswith("configs/thumos") for word in words):
                found.setdefault(" ".join(words).partition(" --id")[0], words)
    return list(found.values())


@pytest.mark.slow
def test_the_commands_of_the_documents_train_as_one_process_does(tiny_spec, pytestconfig):
    """They run as they stand there, on a smaller spec, each with a number of its own."""
    shown = documented()
    if not pytestconfig.getoption("--full"):
        # The first of each launcher: what else they start, engines do on ranks in the other files.
        shown = list({words[0]: words for words in reversed(shown)}.values())
    assert {words[0] for words in shown} == {"torchrun", "deepspeed", "adatad"}
    assert all("configs/demo/tia.yaml" in words for words in shown)
    # Without the directory of this python first, the launchers would be those of another installation.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    train(load(tiny_spec, ["run.id=0", "schedule.epochs=1"]))
    for number, words in enumerate(shown, start=1):
        command = [str(tiny_spec) if word == "configs/demo/tia.yaml" else word for word in words]
        command[:1] = [sys.executable, "-m", "adatad"] if command[0] == "adatad" else command[:1]
        command += ["--id", str(number), "--set", "schedule.epochs=1"]
        if command[0] == "deepspeed":
            # Its port is always the same, and this machine may run other things.
            command[1:1] = ["--master_port", str(free_port())]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        # Within training DeepSpeed speaks only to warn; its launcher names what it starts.
        news = [line for line in (run.stdout + run.stderr).splitlines() if "[INFO]" in line]
        assert all("runner.py" in line or "launch.py" in line for line in news)
    truth = last_parameters(tiny_spec, 0)
    for number in range(1, len(shown) + 1):
        trained = last_parameters(tiny_spec, number)
        assert trained.keys() == truth.keys()
        for name, tensor in truth.items():
            torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-5)


WITHOUT_LIBRARIES = """
import runpy, sys
sys.modules.update(deepspeed=None, fairscale=None)
tool, spec = sys.argv[1:]
for engine in ("zero1", "fairscale", "fsdp"):
    sys.argv = [tool, spec, "--engine", engine, "--set", "schedule.epochs=1"]
    try:
        runpy.run_path(tool, run_name="__main__")
    except SystemExit as left:
        print("left with", left.code or 0, file=sys.stderr, flush=True)
"""


@pytest.mark.slow
def test_deepspeed_and_fairscale_are_needed_by_their_engines_alone(tiny_spec):
    """All three in one process, which can import neither."""
    command = [sys.executable, "-c", WITHOUT_LIBRARIES, str(ROOT / "tools" / "train.py"), str(tiny_spec)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stderr.splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("left with ")]
    assert [lines[end] for end in ends] == ["left with 2", "left with 2", "left with 0"], run.stderr
    for end, library in zip(ends, ("deepspeed", "fairscale"), strict=False):
        assert f"launch/setup.sh {library} installs it" in lines[end - 1]


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
