"""adatad submit without a Slurm: what reaches a job's script, and what is left behind."""

import os
import shlex
import subprocess

import pytest

from adatad.cluster import submit
from adatad.cluster.job import JobError, current_attempt, newest_step, started_attempts, submitted_jobs
from adatad.cluster.submit import Resources, preview
from adatad.spec import load


@pytest.fixture
def said(run_command, tiny_spec, tmp_path):
    def run(*arguments: str):
        done = run_command("submit", tiny_spec, "--gpus", "1", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_dry_run_prints_the_script_and_writes_nothing(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, printed, _ = said("--dry-run")
    assert code == 0
    assert printed.startswith("#!/usr/bin/env bash\n")
    assert "nothing was written" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_without_sbatch_nothing_is_left(said, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, error = said("--id", "41")
    assert code == 2
    assert "sbatch isn't here: run this on a host of the cluster" in error
    assert "launch/torchrun.sh SPEC" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gpus", "0"), ("--gpus", "-1"), ("--gpus", "9e29"), ("--nodes", "0"), ("--time", "nonsense"),
        ("--cpus-per-gpu", "0"), ("--warn-seconds", "-1"), ("--gpu-memory", "0"), ("--gpu-memory", "much"),
        ("--id", "-1"),
    ],
)  # fmt: skip
def test_numbers_without_a_meaning_are_refused(said, arguments):
    code, _, error = said(*arguments, "--dry-run")
    assert code == 2
    assert f"error: argument {arguments[0]}: expected " in error


@pytest.mark.parametrize("text", ["x\ntouch PWNED #", "x\r", "x\u2028y", "x\x0bx"])
def test_no_line_break_reaches_a_script(said, text):
    for option in (f"--sbatch=--{text}", f"--partition={text}", f"--account={text}"):
        code, printed, error = said("--dry-run", option)
        assert (code, printed) == (2, "")
        assert "which can't stand in a job's script" in error
    code, printed, error = said("--dry-run", "--set", f"name={text}")
    assert (code, printed) == (2, "")


@pytest.mark.parametrize(
    "name", ["$(touch PWNED)", "`touch PWNED`", "; touch PWNED", "' touch PWNED '", '"; touch PWNED']
)
def test_names_are_quoted_where_a_shell_reads_them(tiny_spec, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    spec = load(tiny_spec).model_copy(update={"name": name})
    spec = spec.model_copy(update={"run": spec.run.model_copy(update={"root": name})})
    text = preview(spec, Resources(partition=name, extra=(f"--comment={name}",)), "srun")
    # What the script would run, printed.
    shown = text.replace("\nexec bash ", "\nprintf '%s\\n' ")
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/{name}/{name}/id0/slurm/spec-<date>.yaml" in done.stdout.splitlines()
    assert not list(tmp_path.glob("**/PWNED"))
    options = [shlex.split(line.removeprefix("#SBATCH ")) for line in text.splitlines() if line.startswith("#SBATCH")]
    assert [f"--partition={name}"] in options
    assert all(len(words) == 1 for words in options)


def test_percent_signs_of_a_folder_are_no_patterns(tiny_spec):
    spec = load(tiny_spec, ["run.root=/runs/50%j"])
    assert "--output=/runs/50%%j/tiny/id0/slurm/job-%j.log" in preview(spec, Resources(), "srun")


def test_an_interruption_leaves_nothing_of_a_job(tiny_spec, tmp_path, monkeypatch):
    def interrupt(*command):
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "slurm", interrupt)
    script = submit.prepare(load(tiny_spec), Resources(), "srun")
    with pytest.raises(KeyboardInterrupt):
        submit.submit(script)
    assert not script.parent.parent.exists()


def test_options_of_sbatch_begin_with_a_dash():
    with pytest.raises(JobError, match="expected an option of sbatch, as --sbatch=--qos=long"):
        Resources(extra=("qos=long",)).options()


def test_facts_of_another_shape_are_no_attempts(tmp_path):
    (tmp_path / "attempts").mkdir()
    (tmp_path / "checkpoints" / "step-²").mkdir(parents=True)
    for number, text in enumerate(
        ["", "[]", "3", "{}", '{"job": 3}', '{"job": "7", "nodes": "n", "step": 1}', "\xff", "["]
    ):
        (tmp_path / "attempts" / f"{number}.start").write_bytes(text.encode("latin1"))
    facts = '{"job": "7", "nodes": "n1", "step": -1, "seconds_since_1970": 1.5}'
    (tmp_path / "attempts" / "7-000.start").write_text(facts)
    assert [facts["name"] for facts in started_attempts(tmp_path)] == ["7-000"]
    (tmp_path / "submitted.txt").write_text("41\n42_1\n--help\n4 x\n")
    assert submitted_jobs(tmp_path) == ["41", "42_1", "4"]
    assert newest_step(tmp_path) == -1


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_ID": ""}, {"SLURM_JOB_ID": "x"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "many"},
        {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7"},
        {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "../x"},
    ],
)  # fmt: skip
def test_variables_that_slurm_does_not_set_so_are_named(environment):
    with pytest.raises(JobError, match="expected numbers, as Slurm sets them"):
        current_attempt(environment)


@pytest.mark.parametrize("script", ["train", "train_s_768", "test", "sweep"])
def test_a_script_outside_of_slurm_says_so_from_any_folder(script, tmp_path, request):
    root = request.config.rootpath
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "ADATAD_"))}
    for folder in (root, tmp_path):
        done = subprocess.run(
            ["bash", str(root / "slurm" / f"{script}.sh"), "spec.yaml"], cwd=folder, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert "in a job of Slurm" in line
        assert "sbatch" in line
        if script == "train_s_768":
            assert line.endswith("without Slurm: launch/torchrun.sh configs/thumos/s_768x160_adapter.yaml")
