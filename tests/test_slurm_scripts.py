"""slurm/*.sh without a Slurm: their form, and that each starts the supervisor, with stand-ins for srun and scontrol."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adatad.cluster.code_snapshot import LEFT_OUT
from adatad.spec import load

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
SUBMITTED = [path for path in SCRIPTS if "#SBATCH" in path.read_text()]
SRUN = """#!/usr/bin/env bash
echo "$*" >>"$STAND_IN/srun"
eval "$STAND_IN_SRUN"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
  "show job") echo "JobId=7 JobState=RUNNING ExcNodeList=(null)" ;;
  "show hostnames") echo "$3" | tr , '\\n' ;;
  *) echo "$*" >>"$STAND_IN/scontrol"; kill -TERM $PPID ;;
esac
"""


def test_the_scripts_that_are_submitted():
    names = {path.stem for path in SUBMITTED}
    assert names >= {"train", "test", "detect", "sweep", "train_g_1536_side", "train_g_768", "train_s_768"}


def test_shellcheck_finds_nothing():
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if not tool:
        pytest.skip("shellcheck isn't installed")
    files = [*SCRIPTS, *(ROOT / "tests" / "slurm").glob("*.sh")]
    run = subprocess.run([tool, "-x", *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_them(path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize("path", SUBMITTED, ids=lambda path: path.name)
def test_directives_are_where_slurm_sees_them_and_say_what_is_needed(path):
    lines = path.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives == [line for line in lines[:first_command] if line.startswith("#SBATCH")]
    text = " ".join(directives)
    assert "--requeue --open-mode=append" in text
    # The folder of the output must be there before the job.
    output = re.search(r"--output=(\S+)/", text)[1]
    assert (ROOT / output / ".gitignore").is_file()
    if path.stem not in ("test", "detect"):
        # To the ranks, not to the batch shell.
        assert re.search(r"--signal=USR1@\d+", text)


def test_named_scripts_name_specs_that_exist_and_take_their_settings_from_one_place():
    for path in SUBMITTED:
        if path.stem.startswith("train_"):
            spec = re.search(r"configs/\S+\.yaml", path.read_text())[0]
            assert (ROOT / spec).is_file()
            assert path.stem.removeprefix("train_").split("_")[0] == Path(spec).stem.split("_")[0]
            assert len(path.read_text().splitlines()) < 9


@pytest.mark.parametrize(("nodes", "ranks"), [("one", 2), ("two", 4), ("eight", 64)])
def test_overlays_of_nodes_fit_the_published_spec_and_their_ranks(nodes, ranks):
    path = ROOT / "configs" / "thumos" / "g_1536x224_adapter.yaml"
    spec = load(path, check_files=False, overlays=[str(ROOT / "slurm" / "nodes" / f"{nodes}.yaml")])
    assert spec.train.global_batch == 2, "as published"
    assert spec.train.global_batch * spec.parallel.clip == ranks * spec.train.accumulation
    assert spec.memory.policy == "tile"


@pytest.fixture
def batch(tmp_path, tiny_spec):
    """batch("what srun does", script="train.sh") runs a script as a batch shell: the process, and the commands of srun
    and scontrol that were called."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    home = tmp_path / "home"
    for name in ("adatad", "slurm", "tools", "ds_configs"):
        shutil.copytree(ROOT / name, home / name, ignore=LEFT_OUT)

    def run(srun: str, *arguments: str, script="train.sh", first: str | None = None, **environment: str):
        calls = tmp_path / "calls"
        shutil.rmtree(calls, ignore_errors=True)
        calls.mkdir()
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTORCH_", "PYTHONPATH"))} | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "STAND_IN": str(calls), "STAND_IN_SRUN": srun,
            "SLURM_SUBMIT_DIR": str(home), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "3",
            "VENV": sys.prefix, "HEALTH_CHECK": "0", **environment,
        }  # fmt: skip
        # Slurm runs a copy of the script, from its spool folder.
        copy = tmp_path / "spool-copy"
        shutil.copy(ROOT / "slurm" / script, copy)
        done = subprocess.run(
            ["bash", str(copy), *([first] if first else []), str(tiny_spec), *arguments],
            cwd=home, env=variables, capture_output=True, text=True, input="of the script\n",
        )  # fmt: skip
        called = {file.name: file.read_text().splitlines() for file in calls.iterdir()}
        return done, called.get("srun", []), called.get("scontrol", [])

    run.home = home
    run.folder = tmp_path / "runs" / "tiny" / "id0" / "slurm"
    return run


STOPPED = 'echo "SIGUSR1 at step 3" >"$ADATAD_ATTEMPT.stopped"; exit 75'


def test_train_outlives_signals_to_the_whole_batch_script_and_gives_steps_its_environment_but_no_input(batch):
    """Slurm signals every process of the batch script; sbatch --export=SOME would have steps drop what is set."""
    does = "kill -TERM $PPID; kill -USR1 $PPID; kill -TERM $PPID; sleep 0.2; read -r line; "
    does += 'echo "0: ${SLURM_EXPORT_ENV-all of it}, input: $line, $MASTER_ADDR."; '
    # Signals that this shell's parent ignores, its children would ignore as well.
    does += 'trap "echo 0: saved" TERM; kill -TERM $$; '
    done, srun, scontrol = batch(does + STOPPED, SLURM_EXPORT_ENV="VENV,HOME")
    assert "rank 0 | all of it, input: , n1." in done.stdout, done.stderr
    assert "rank 0 | saved" in done.stdout
    assert (done.returncode, len(srun), scontrol) == (75, 1, ["requeue 7"])
    assert "Traceback" not in done.stderr


def test_what_becomes_of_the_checkout_meanwhile_does_not_reach_a_later_attempt(batch):
    batch(STOPPED)
    for file in (batch.home / "adatad" / "cluster").glob("*.py"):
        file.write_text("in the middle of an edit")
    done, srun, scontrol = batch(f'echo "0: hello"; {STOPPED}', SLURM_RESTART_COUNT="1")
    assert "rank 0 | hello" in done.stdout, done.stderr
    assert f"bash {batch.folder}/code-7/slurm/rank.sh" in srun[0]
    assert scontrol == ["requeue 7"]


def test_a_test_job_that_a_preemption_ends_is_requeued(batch):
    done, srun, scontrol = batch("exit 143", "--checkpoint", "x", script="test.sh")
    assert (done.returncode, scontrol) == (143, ["requeue 7"])
    assert srun[0].endswith("tools/test.py " + srun[0].split()[-3] + " --checkpoint x")


def test_a_task_of_a_detection_gets_its_arguments_as_they_are_and_comes_back_after_a_preemption(batch):
    arguments = ("a b's *.mp4", "--output", "found here")
    done, srun, scontrol = batch("exit 143", *arguments, script="detect.sh")
    assert (done.returncode, scontrol) == (143, ["requeue 7"])
    assert srun[0].endswith(" -m adatad detect " + " ".join([*srun[0].split()[-7:-6], *arguments]))
    done, _, scontrol = batch("exit 1", *arguments, script="detect.sh")
    assert (done.returncode, scontrol) == (1, []), "a video that can't be read is no reason to come back"


def test_a_task_of_a_sweep_trains_its_line_and_writes_the_table(batch, tmp_path):
    rows = tmp_path / "rows.txt"
    rows.write_text("# rows\r\ntrain.seed=3 'schedule={warmup_epochs: 1, epochs: 2}'\r\n\n")
    array = {"SLURM_ARRAY_JOB_ID": "7", "script": "sweep.sh", "first": str(rows)}
    done, srun, _ = batch("exit 0", SLURM_ARRAY_TASK_ID="1", **array)
    assert (done.returncode, srun) == (2, [])
    assert "rows.txt has 1 lines: --array=0-0, there is no 1" in done.stderr
    done, _, _ = batch('echo "step 9" >"$ADATAD_ATTEMPT.done"', SLURM_ARRAY_TASK_ID="0", **array)
    assert done.returncode == 0, done.stderr
    assert re.search(r"seed: 3$", (batch.folder / "spec-7_0.yaml").read_text(), re.MULTILINE)
    assert "| 0 | train.seed=3" in (batch.folder.parents[1] / "sweep-rows.md").read_text()


def test_mistakes_are_said_at_once(batch, tmp_path):
    for environment, text in (
        ({"VENV": "/nowhere"}, "/nowhere/bin/python doesn't start on "),
        ({"SLURM_SUBMIT_DIR": str(tmp_path)}, f"slurm/train.sh: {tmp_path} isn't the checkout"),
        ({"MAX_IDLE_RESTARTS": "many"}, "MAX_IDLE_RESTARTS is 'many'; expected a whole number, such as 3"),
    ):
        done, srun, _ = batch(STOPPED, **environment)
        assert (done.returncode, srun) == (2, [])
        assert text in done.stderr


@pytest.mark.parametrize(("visible", "local"), [("0,1", "1"), ("5", "0"), ("", "1")])
def test_a_rank_that_sees_its_own_gpu_alone_takes_that_one(visible, local):
    variables = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": visible}
    run = subprocess.run(
        ["bash", "slurm/rank.sh", "bash", "-c", "echo $RANK $WORLD_SIZE $LOCAL_RANK"], cwd=ROOT,
        env={**os.environ, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout.split() == ["3", "4", local]
