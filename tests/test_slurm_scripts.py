"""slurm/*.sh without a Slurm: their form, and what train.sh decides upon what stand-ins for srun and scontrol say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adatad.cluster.freeze import LEFT_OUT
from adatad.spec import load

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
SUBMITTED = [path for path in SCRIPTS if "#SBATCH" in path.read_text()]
SRUN = """#!/usr/bin/env bash
echo "$*" >>"$STAND_IN/srun"
eval "$STAND_IN_SRUN"
"""
SCONTROL = """#!/usr/bin/env bash
# Busy: the first question of each kind isn't answered.
if [ -n "$STAND_IN_BUSY" ] && mkdir "$STAND_IN_BUSY/$1" 2>/dev/null; then exit 1; fi
case "$1 $2" in
  "show job") echo "JobId=7 JobState=$STAND_IN_STATE ExcNodeList=(null)" ;;
  "show hostnames") echo "$3" | tr , '\\n' ;;
  *) echo "$*" >>"$STAND_IN/scontrol"; kill -TERM $PPID ;;
esac
"""


def test_the_scripts_that_are_submitted():
    names = {path.stem for path in SUBMITTED}
    assert names >= {"train", "test", "sweep", "train_g_1536", "train_g_1536_side", "train_g_768", "train_s_768"}


@pytest.mark.parametrize("path", [*SCRIPTS, *(ROOT / "tests" / "slurm").glob("*.sh")], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if not tool:
        pytest.skip("shellcheck isn't installed")
    run = subprocess.run([tool, "-x", str(path)], cwd=ROOT, capture_output=True, text=True)
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
    if path.stem != "test":
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
def train(tmp_path, tiny_spec):
    """train("what srun does", state=...) runs slurm/train.sh, or `name`, as a batch shell: the process, and what was
    called."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    # What is kept of a job: a copy of the checkout's scripts serves as the checkout.
    home = tmp_path / "home"
    for name in ("adatad", "slurm", "tools", "ds_configs"):
        shutil.copytree(ROOT / name, home / name, ignore=LEFT_OUT)

    def run(srun: str, *arguments: str, state="RUNNING", name="train.sh", first: str | None = None, **environment: str):
        calls = tmp_path / "calls"
        shutil.rmtree(calls, ignore_errors=True)
        calls.mkdir()
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTORCH_", "PYTHONPATH"))} | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "STAND_IN": str(calls), "STAND_IN_SRUN": srun,
            "STAND_IN_STATE": state, "STAND_IN_BUSY": "", "SLURM_SUBMIT_DIR": str(home), "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_CPUS_PER_TASK": "3", "VENV": sys.prefix, "HEALTH_CHECK": "0", **environment,
        }  # fmt: skip
        script = tmp_path / "spool-copy"
        shutil.copy(ROOT / "slurm" / name, script)
        done = subprocess.run(
            ["bash", str(script), *([first] if first else []), str(tiny_spec), *arguments],
            cwd=home, env=variables, capture_output=True, text=True, input="of the script\n",
        )  # fmt: skip
        called = {file.name: file.read_text().splitlines() for file in calls.iterdir()}
        return done, called.get("srun", []), called.get("scontrol", [])

    run.home = home
    run.folder = tmp_path / "runs" / "tiny" / "id0" / "slurm"
    return run


STOPPED = 'echo "SIGUSR1 at step 3" >"$ADATAD_LIFE.stopped"; exit 75'


def test_a_stopped_life_is_requeued_whatever_the_launcher_says(train):
    for code in (75, 1, 137):
        done, srun, scontrol = train(STOPPED.replace("75", str(code)))
        assert scontrol == ["requeue 7"], done.stderr
        assert "stopped by SIGUSR1 at step 3: asking for another life" in done.stdout
    # The CPUs of a task aren't taken over from the job by themselves.
    assert "--cpus-per-task=3" in srun[0]


def test_signals_at_the_same_moment_to_all_of_the_batch_script_lose_nothing(train):
    """Slurm signals every process of it: the shell, the one of the pipeline, which dies, and what they run."""
    signals = """batch=$(awk '/^PPid/ {print $2}' /proc/$PPID/status)
    kill -TERM $batch $PPID; kill -USR1 $batch; kill -TERM $batch; sleep 0.2; echo "0: saved"; """
    done, _, scontrol = train(signals + STOPPED)
    assert "rank 0 | saved" in done.stdout
    assert scontrol == ["requeue 7"], done.stderr
    assert "unexpected EOF" not in done.stderr


def test_steps_take_the_whole_environment_and_no_input(train):
    says = 'read -r line; echo "0: ${SLURM_EXPORT_ENV-all of it}, input: $line."; ' + STOPPED
    done, _, _ = train(says, SLURM_EXPORT_ENV="VENV,HOME")
    assert "rank 0 | all of it, input: ." in done.stdout


def test_ranks_allocate_in_segments_that_grow_unless_the_user_says_otherwise(train):
    says = 'echo "0: ${PYTORCH_CUDA_ALLOC_CONF-unset}, ${PYTORCH_ALLOC_CONF-unset}"; ' + STOPPED
    done, _, _ = train(says)
    assert "rank 0 | expandable_segments:True, unset" in done.stdout
    done, _, _ = train(says, PYTORCH_ALLOC_CONF="backend:native")
    assert "rank 0 | unset, backend:native" in done.stdout


def test_ranks_meet_on_the_first_node_of_this_life_and_the_others_outlive_one_that_fails(train):
    says = f'echo "0: meet at $MASTER_ADDR:$MASTER_PORT"; {STOPPED}'
    for restarts, nodes in enumerate(("n1,n2", "n3,n2")):
        done, srun, _ = train(says, SLURM_JOB_NODELIST=nodes, SLURM_RESTART_COUNT=str(restarts))
        assert f"meet at {nodes[:2]}:15007" in done.stdout
        # The kill's own codes would hide the first failure's.
        assert " --kill-on-bad-exit=0 --wait=60 " in srun[0]


def test_an_array_task_is_requeued_by_its_own_name(train):
    _, _, scontrol = train(STOPPED, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert scontrol == ["requeue 7_2"]


def test_a_controller_that_does_not_answer_is_asked_again(train, tmp_path):
    (tmp_path / "busy" / "show").mkdir(parents=True)
    shows_nothing_once = f'{STOPPED.rpartition(";")[0]}; rmdir "$STAND_IN_BUSY/show"; exit 75'
    done, _, scontrol = train(shows_nothing_once, STAND_IN_BUSY=str(tmp_path / "busy"))
    assert {path.name for path in (tmp_path / "busy").iterdir()} == {"show", "requeue"}
    assert scontrol == ["requeue 7"], done.stdout


def test_a_test_that_a_preemption_ends_is_begun_anew(train):
    assert train("exit 143", name="test.sh")[2] == ["requeue 7"]
    for code, state in ((143, "COMPLETING"), (2, "RUNNING"), (0, "RUNNING")):
        done, _, scontrol = train(f"exit {code}", name="test.sh", state=state)
        assert (done.returncode, scontrol) == (code, [])


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_job_that_is_being_ended_is_not_brought_back(state, train):
    done, _, scontrol = train(STOPPED, state=state)
    assert (done.returncode, scontrol) == (75, [])


def test_75_without_the_trainers_mark_fails(train):
    """One rank fails, the others answer a signal with 75: a launcher may pass on either code."""
    done, _, scontrol = train('echo "1: ValueError: broken"; exit 75')
    assert (done.returncode, scontrol) == (75, [])
    assert "The first failing rank was rank 1" in done.stdout
    assert (train.folder / "lives" / "7-000.end").read_text() == "failed: exit code 75\n"


def test_a_launcher_that_started_nobody_is_a_failure(train):
    done, _, _ = train("exit 0")
    assert done.returncode == 1
    done, _, _ = train('echo "step 9" >"$ADATAD_LIFE.done"')
    assert done.returncode == 0
    assert "job: done, step 9" in done.stdout


def test_restarts_without_progress_end_the_job(train):
    for restarts in range(3):
        done, _, scontrol = train(STOPPED, SLURM_RESTART_COUNT=str(restarts), MAX_IDLE_RESTARTS="2")
        assert bool(scontrol) == (restarts < 2), done.stderr
    assert done.returncode == 2
    assert "stopped: 2 restarts in a row without progress, still at no checkpoint at all" in done.stderr
    assert "without progress" in (train.folder / "lives" / "7-002.end").read_text()
    (train.folder.parent / "checkpoints" / "step-00000004").mkdir(parents=True)
    _, _, scontrol = train(STOPPED, SLURM_RESTART_COUNT="3", MAX_IDLE_RESTARTS="2")
    assert scontrol == ["requeue 7"]


def test_a_task_of_a_sweep_takes_its_line_and_refuses_one_that_cannot_be_read(train, tiny_spec, tmp_path):
    rows = tmp_path / "rows.txt"
    rows.write_text("# rows\r\ntrain.seed=3 'run.name=a b'\r\n\ntrain.seed=4 'run.name=a\n")
    array = {"SLURM_ARRAY_JOB_ID": "7", "name": "sweep.sh", "first": str(rows)}
    for task, text in ((1, "rows.txt, line 1 (from 0): train.seed=4 'run.name=a: can't be read"), (2, "has 2 lines")):
        done, srun, _ = train("exit 0", SLURM_ARRAY_TASK_ID=str(task), **array)
        assert (done.returncode, srun) == (2, [])
        assert text in done.stderr
    done, _, _ = train("exit 0", SLURM_ARRAY_TASK_ID="0", **{**array, "first": f"{tmp_path}/none"})
    assert "none: no such file" in done.stderr
    rows.write_text("train.seed=3 'schedule={warmup_epochs: 1, epochs: 2}'\r\n")
    train('echo "step 9" >"$ADATAD_LIFE.done"', SLURM_ARRAY_TASK_ID="0", **array)
    spec = (train.folder / "spec-7_0.yaml").read_text()
    assert re.search(r"seed: 3$", spec, re.MULTILINE)
    assert re.search(r" epochs: 2\b", spec)
    assert "| 0 | train.seed=3" in (train.folder.parents[1] / "sweep-rows.md").read_text()


def test_a_later_life_uses_the_code_and_the_spec_of_the_first(train, tiny_spec):
    train(STOPPED)
    tiny_spec.write_text("nonsense: true")
    _, srun, _ = train(STOPPED, SLURM_RESTART_COUNT="1")
    assert f"{train.folder}/code-7/tools/train.py {train.folder}/spec-7.yaml --resume auto" in srun[0]
    done, _, _ = train(STOPPED)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_what_becomes_of_the_checkout_meanwhile_does_not_reach_a_later_life(train):
    train(STOPPED)
    (train.home / "adatad" / "cluster" / "logs.py").write_text("in the middle of an edit")
    done, _, scontrol = train(f'echo "0: hello"; {STOPPED}', SLURM_RESTART_COUNT="1")
    assert "rank 0 | hello" in done.stdout, done.stderr
    assert scontrol == ["requeue 7"]


def test_marks_of_an_earlier_life_of_the_same_name_do_not_count(train):
    """Numbers of jobs come again, and train.sh may run twice in one allocation."""
    done, _, _ = train('echo "step 9" >"$ADATAD_LIFE.done"')
    assert done.returncode == 0
    done, _, scontrol = train("exit 3")
    assert (done.returncode, scontrol) == (3, [])
    assert (train.folder / "lives" / "7-000.end").read_text() == "failed: exit code 3\n"


def test_a_bad_node_is_left_out_and_too_many_end_the_job(train):
    done, srun, scontrol = train("exit 1", HEALTH_CHECK="1")
    assert len(srun) == 1
    assert "health check: n1: didn't answer" in done.stderr
    assert " timeout --kill-after=10 180 " in srun[0]
    assert scontrol == ["requeue 7", "update JobId=7 ExcNodeList=n1"]
    done, _, scontrol = train("exit 1", HEALTH_CHECK="1", MAX_EXCLUDED_NODES="0")
    assert (done.returncode, scontrol) == (1, [])
    assert "more than MAX_EXCLUDED_NODES: giving up" in done.stdout


def test_staging_that_is_interrupted_comes_back_and_one_that_fails_does_not(train):
    staged = ("--set", "data.stage_to=/nowhere")
    assert train("exit 143", *staged)[2] == ["requeue 7"]
    done, srun, scontrol = train("exit 2", *staged)
    assert (done.returncode, len(srun), scontrol) == (1, 1, [])
    assert "videos couldn't be copied to /nowhere" in done.stdout


def test_mistakes_on_the_command_line_are_said_at_once(train):
    for arguments, text in (
        (("--launcher", "ssh"), "expected srun, torchrun or deepspeed"),
        (("--launcher=ssh",), "--launcher is 'ssh'"),
        (("--launcher",), "--launcher is ''"),
        (("--overwrite",), "isn't for jobs"),
        (("--set", "train.sead=1"), "train.sead"),
    ):
        done, srun, _ = train(STOPPED, *arguments)
        assert (done.returncode, srun) == (2, [])
        assert text in done.stderr
    done, _, _ = train(STOPPED, VENV="/nowhere")
    assert done.returncode == 2
    assert "set VENV or CONTAINER" in done.stderr
    done, _, _ = train(STOPPED, SLURM_JOB_NODELIST="")
    assert done.returncode == 2
    assert "runs in a job of Slurm: sbatch " in done.stderr


def test_signals_wait_for_the_trainer_also_where_env_cannot_hold_them(train, tmp_path):
    (tmp_path / "env").write_text("#!/usr/bin/bash\nexit 125\n")
    (tmp_path / "env").chmod(0o755)
    says = 'until [ "$1" = bash ]; do command=("${command[@]}" "$1"); shift; done; '
    says += '"${command[@]:$((${#command[@]} - 3))}" sed -n "s/^SigBlk:/0:/p" /proc/self/status; ' + STOPPED
    done, _, _ = train(says)
    blocked = int(re.search(r"^rank 0 \| *\t?([0-9a-f]+)$", done.stdout, re.MULTILINE)[1], 16)
    assert blocked == 1 << 14 | 1 << 9


@pytest.mark.parametrize(("visible", "local"), [("0,1", "1"), ("5", "0"), ("", "1")])
def test_a_rank_that_sees_its_own_gpu_alone_takes_that_one(visible, local):
    variables = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": visible}
    run = subprocess.run(
        ["bash", "slurm/rank.sh", "bash", "-c", "echo $RANK $WORLD_SIZE $LOCAL_RANK"], cwd=ROOT,
        env={**os.environ, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout.split() == ["3", "4", local]
