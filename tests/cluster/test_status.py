"""adatad status and submit without a Slurm."""

import json
import os
import re

import pytest

from adatad.cluster import code_snapshot, slurm, status, submit
from adatad.cluster.job import JobAttempt, JobError, current_attempt, note_submitted
from adatad.cluster.slurm import Queued, outside_of_jobs
from adatad.cluster.submit import Resources, check, prepare, refuse_second_job
from adatad.errors import UserError
from adatad.spec import load


def write_attempt(folder, name: str, step: int, end: str | None, **facts) -> None:
    attempts = folder / "slurm" / "attempts"
    attempts.mkdir(parents=True, exist_ok=True)
    start = {"job": "7", "nodes": "n1", "step": step, "seconds_since_1970": 1e9 + step, **facts}
    (attempts / f"{name}.start").write_text(json.dumps(start))
    if end:
        (attempts / f"{name}.end").write_text(end + "\n")


@pytest.fixture
def run(tiny_spec, tmp_path):
    folder = tmp_path / "runs" / "tiny" / "id0"
    write_attempt(folder, "7-000", -1, "requeued: stopped by SIGUSR1 at step 3")
    write_attempt(folder, "7-001", 3, None)
    write_attempt(folder, "7-002", 5, None)
    (folder / "spec.yaml").write_text(tiny_spec.read_text())
    records = [{"kind": "train", "step": n, "cost": 0.5, "step_seconds": 2.0} for n in range(1, 7)]
    text = "".join(json.dumps(record) + "\n" for record in records) + '{"kind": "tra'
    (folder / "metrics.jsonl").write_text(text)
    for step, size in ((5, 3), (6, 4)):
        checkpoint = folder / "checkpoints" / f"step-0000000{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text(json.dumps({"state.json": {"bytes": 3}}))
        (checkpoint / "state.json").write_text("x" * size)
    logs = folder / "slurm" / "logs"
    logs.mkdir()
    (logs / "rank-0.log").write_text("== attempt 7-000 ==\nValueError: old\n== attempt 7-001 ==\nfine\n")
    (logs / "rank-1.log").write_text("== attempt 7-001 ==\nTraceback (most recent call last):\n  x\nKeyError: 'now'\n")
    return folder


def test_what_a_status_says(run, monkeypatch):
    monkeypatch.setattr(status, "queued", lambda job: Queued("RUNNING", "None", "3:00:00", "n[1-2]"))
    lines, going_on = status.report(run)
    text = "\n".join(lines)
    assert going_on
    assert "job 7       RUNNING, 3:00:00 left on n[1-2]" in lines
    assert "step        6 of 9, loss 0.5000" in lines
    assert "left        0:00:06 of training at 2.00 s a step, evaluations not counted" in lines
    assert "checkpoint  step-00000005, " in text
    assert "at the beginning: requeued: stopped by SIGUSR1 at step 3" in text
    assert "at step 3: ended without a word: its node was lost, or it was killed" in text
    assert text.count("at step 5: running") == 1
    assert "rank-1      KeyError: 'now'" in lines
    assert "old" not in text
    # After a lost node the job waits for its next attempt.
    monkeypatch.setattr(status, "queued", lambda job: Queued("PENDING", "BeginTime", "3:00:00", ""))
    lines, going_on = status.report(run)
    assert going_on
    assert lines[-2].endswith("at step 5: ended without a word: its node was lost, or it was killed")


def test_a_finished_run_says_done_and_its_memory(run, monkeypatch):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('in"}\n')
        for step, memory in ((8, 3 << 30), (9, 1 << 30)):
            record = {"kind": "train", "step": step, "cost": 0.5, "step_seconds": 2.0, "memory_bytes": memory}
            file.write(json.dumps(record) + "\n")
    lines = say(run, monkeypatch).splitlines()
    assert "left        nothing, training is done" in lines
    assert "memory      3.00 GiB at the peak of the first rank" in lines


def test_a_run_that_waits_for_its_first_attempt_says_that_nothing_has_run(tmp_path, monkeypatch):
    (tmp_path / "id3" / "slurm").mkdir(parents=True)
    note_submitted(tmp_path / "id3" / "slurm", "41")
    monkeypatch.setattr(status, "queued", lambda job: Queued("PENDING", "Priority", "1:00", ""))
    lines, going_on = status.report(tmp_path / "id3")
    assert lines[1:] == ["job 41      PENDING: Priority", "            nothing has run here yet"]
    assert going_on


def test_a_folder_of_runs_is_a_table(run, tmp_path, monkeypatch):
    (run.parents[1] / "thumos" / "b" / "id41").mkdir(parents=True)
    waiting = run.parent / "id2"
    (waiting / "slurm").mkdir(parents=True)
    note_submitted(waiting / "slurm", "8")
    done = run.parent / "id1"
    done.mkdir()
    (done / "spec.yaml").write_text((run / "spec.yaml").read_text())
    records = [
        {"kind": "train", "step": 9, "cost": 0.25, "step_seconds": 2.0, "memory_bytes": 3 << 29},
        {"kind": "evaluation", "step": 9, "average_mAP": 0.5},
    ]
    (done / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    jobs = {"7": None, "8": Queued("PENDING", "Priority", "1:00", "")}
    monkeypatch.setattr(status, "queued", lambda job: jobs[job])
    lines, going_on = status.report(tmp_path / "runs")
    assert [line.split() for line in lines] == [
        ["run", "state", "step", "loss", "average", "mAP", "memory", "left"],
        ["thumos/b/id41", "nothing", "has", "run"],
        ["tiny/id0", "stopped", "6/9", "0.5000", "0:00:06"],
        ["tiny/id1", "done", "9/9", "0.2500", "50.00", "%", "1.50", "GiB"],
        ["tiny/id2", "PENDING"],
    ]
    assert going_on


def test_a_status_of_a_run_with_broken_files(run, monkeypatch):
    monkeypatch.setattr(status, "queued", lambda job: None)
    (run / "slurm" / "attempts" / "7-003.start").write_text('{"job": "7", "ste')
    (run / "checkpoints" / "step-00000006" / "manifest.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('in{"kind": "train"}\n{"kind": "train", "step": 8, "cost": 0.25, "step_seconds": 2.0}\n')
    text = "\n".join(status.report(run)[0])
    assert "step        8 of 9, loss 0.2500" in text
    assert "checkpoint  step-00000005, " in text
    assert "7-003" not in text


def say(run, monkeypatch) -> str:
    monkeypatch.setattr(status, "queued", lambda job: None)
    return "\n".join(status.report(run)[0])


def test_a_status_says_what_it_leaves_out(run, monkeypatch):
    attempts = run / "slurm" / "attempts"
    for number, text in enumerate(("[]", "3", '{"job": "7"}', '{"job": 7, "nodes": "", "step": 1}', "[" * 9999, "\0")):
        (attempts / f"9-00{number}.start").write_text(text)
    write_attempt(run, "8-000", 3, None, job="7; reboot")
    write_attempt(run, "8-001", 3, None, seconds_since_1970=float("nan"))
    (attempts / "8-002.start").mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('in"}\n{"kind": "train", "step": 7}\n{"kind": "evaluation", "step": 7, "average_mAP": "x"}\n')
    (run / "slurm" / "submitted.txt").write_bytes(b"41\n\xff\xfe\n--version\n")
    asked = []
    monkeypatch.setattr(status, "queued", asked.append)
    text = "\n".join(status.report(run)[0])
    assert asked == ["7"]
    assert re.search(r"submitted\.txt: .*is no text in UTF-8", text)
    assert f"left out    {attempts}: 9 starts that can't be read" in text
    assert "metrics.jsonl: 3 lines can't be read or lack a key; left out" in text
    assert "step        6 of 9, loss 0.5000" in text


@pytest.mark.parametrize("content", [None, b"\xff\x00", b""])
def test_folders_and_binary_files_in_the_place_of_a_run_s_own_are_no_traceback(run, monkeypatch, content):
    for path in (
        "slurm/logs/x.log",
        "slurm/attempts/7-001.end",
        "metrics.jsonl",
        "spec.yaml",
        "checkpoints/step-00000005/manifest.json",
    ):
        file = run / path
        file.unlink(missing_ok=True)
        file.mkdir() if content is None else file.write_bytes(content)
    text = say(run, monkeypatch)
    assert "checkpoint  none yet" in text
    assert ("x.log can't be read: Is a directory" in text) == (content is None)
    assert ("7-001.end can't be read: Is a directory" in text) == (content is None)


def test_pipes_are_not_waited_for(run, monkeypatch):
    (run / "metrics.jsonl").unlink()
    for path in ("slurm/logs/x.log", "slurm/attempts/7-001.end", "slurm/attempts/7-003.start", "metrics.jsonl"):
        os.mkfifo(run / path)
    text = say(run, monkeypatch)
    assert "x.log can't be read" in text
    assert "metrics.jsonl: is no regular file, but a pipe" in text
    assert "1 starts that can't be read" in text


def test_times_of_another_clock_are_said_to_be(run, monkeypatch):
    manifest = run / "checkpoints" / "step-00000005" / "manifest.json"
    os.utime(manifest, (8e9, 8e9))
    write_attempt(run, "7-003", 6, None, seconds_since_1970=1e300)
    text = say(run, monkeypatch)
    assert re.search(r"step-00000005, \d+ days, .* in the future \(by this machine's clock\)", text)
    assert "7-003 from an unknown time" in text


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-3", "1e300", '"x"', "1" * 400])
def test_step_times_that_cannot_be(run, monkeypatch, seconds):
    (run / "metrics.jsonl").write_text(f'{{"kind": "train", "step": 1, "cost": 1.0, "step_seconds": {seconds}}}\n')
    assert "left  " not in say(run, monkeypatch)


def test_an_empty_manifest_is_no_checkpoint(run, monkeypatch):
    (run / "checkpoints" / "step-00000005" / "manifest.json").write_text("{}")
    assert "checkpoint  none yet" in say(run, monkeypatch)


def test_nothing_steers_the_terminal(run, monkeypatch):
    (run / "slurm" / "attempts" / "7-001.end").write_text("\x1b[2J\x1b]0;x\x07gone")
    (run / "slurm" / "logs" / "rank-0.log").write_text("ValueError: \x1b[31m" + "x" * 10_000)
    text = say(run, monkeypatch)
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
    assert max(map(len, text.splitlines())) < 400


def test_a_folder_that_is_no_run_is_refused(tmp_path, run, run_command):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        (run / "checkpoints", "nothing has run here: it is no run directory (no spec.yaml"),
        (tmp_path / "file", "is no directory"),
        (tmp_path / "loop", "no such run directory"),
        (tmp_path / "absent", "no such run directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        done = run_command("status", name)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_status_away_from_the_cluster(run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    lines, going_on = status.report(run)
    assert not going_on
    assert any("squeue isn't here" in line for line in lines)
    with pytest.raises(JobError, match="no such run directory"):
        status.report(run / "x")


def test_a_script_is_kept_with_its_code_and_its_spec(tiny_spec, monkeypatch, tmp_path):
    spec = load(tiny_spec, ["train.seed=5", "run.root=a folder"])
    monkeypatch.chdir(tmp_path)
    script = prepare(spec, Resources(nodes=2, gpus=4, partition="long", extra=("--qos=x",)), "torchrun")
    lines = script.read_text().splitlines()
    assert script.parent == tmp_path / "a folder" / "tiny" / "id0" / "slurm"
    for option in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "partition=long", "qos=x", "requeue"):
        assert f"#SBATCH --{option}" in lines
    # The folder's name has a space.
    assert f"#SBATCH '--output={script.parent}/job-%j.log'" in lines
    assert lines[-1].endswith(".yaml' --launcher torchrun")
    name = script.stem.removeprefix("job-")
    assert load(script.parent / f"spec-{name}.yaml", check_files=False) == spec
    assert (script.parent / f"code-{name}" / "adatad" / "cluster" / "submit.py").is_file()
    assert (script.parent / f"version-{name}.txt").read_text()


def test_the_code_is_kept_with_what_is_compiled_of_it(tiny_spec, monkeypatch, tmp_path):
    """Else every rank of every job compiles for ten seconds. A file being written now may be gone in a moment."""
    cache = tmp_path / "checkout" / "adatad" / "__pycache__"
    cache.mkdir(parents=True)
    for name in ("x.cpython-311.pyc", "x.cpython-311.pyc.140", "x.f-1.py311.nbi", "x.f-1.py311.nbi.tmp.14"):
        (cache / name).touch()
    monkeypatch.setattr(code_snapshot, "ROOT", tmp_path / "checkout")
    _, code = code_snapshot.snapshot_code(tmp_path / "slurm", "7", load(tiny_spec))
    kept = {path.name for path in (code / "adatad" / "__pycache__").iterdir()}
    assert kept == {"x.cpython-311.pyc", "x.f-1.py311.nbi"}


def test_what_would_end_the_job_at_once_is_refused_now(tiny_spec, tmp_path):
    spec = load(tiny_spec)
    check(spec, Resources(nodes=2, gpus=1))
    with pytest.raises(UserError, match=r"train\.global_batch 2 can't be divided by 8 ranks"):
        check(spec, Resources(nodes=4, gpus=2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"8 of 8 videos of .* aren't there"):
        check(load(tiny_spec, [f"data.videos={tmp_path}/empty"]), Resources(gpus=1))


def test_a_second_job_of_a_run_is_refused(tmp_path, monkeypatch):
    (tmp_path / "slurm").mkdir()
    refuse_second_job(tmp_path)
    note_submitted(tmp_path / "slurm", "41")
    monkeypatch.setattr(submit, "queued", lambda job: Queued("PENDING", "Priority", "1:00", ""))
    with pytest.raises(JobError, match="job 41 is PENDING already: scancel 41"):
        refuse_second_job(tmp_path)
    write_attempt(tmp_path, "42_1-000", -1, None, job="42_1")
    monkeypatch.setattr(submit, "queued", lambda job: Queued("RUNNING", "", "1:00", "n1") if job == "42_1" else None)
    with pytest.raises(JobError, match="job 42_1 is RUNNING already"):
        refuse_second_job(tmp_path)
    monkeypatch.setattr(submit, "queued", lambda job: None)
    refuse_second_job(tmp_path)


def test_what_slurm_refuses_leaves_nothing_and_a_folder_that_cannot_be_written_is_named(
    tiny_spec, monkeypatch, tmp_path
):
    def refuse(*command):
        raise JobError("sbatch: invalid partition")

    monkeypatch.setattr(submit, "slurm", refuse)
    script = prepare(load(tiny_spec), Resources(), "srun")
    with pytest.raises(JobError, match="invalid partition"):
        submit.submit(script)
    assert not script.parent.parent.exists()
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=r"file/tiny/id0/slurm: can't be written: .*; run\.root names another place"):
        prepare(load(tiny_spec, [f"run.root={tmp_path}/file"]), Resources(), "srun")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"RUNNING|None|1:00|n1\n", Queued("RUNNING", "None", "1:00", "n1")),
        (b"welcome to this cluster\n\nPENDING|Priority|1:00|\n", Queued("PENDING", "Priority", "1:00", "")),
        (b"\n", None),
    ],
)
def test_lines_of_a_site_are_passed_over_in_the_answer_of_squeue(monkeypatch, tmp_path, answer, found):
    put_squeue(monkeypatch, tmp_path, answer)
    assert slurm.queued("7") == found


@pytest.mark.parametrize("answer", [b"RUNNING\n", b"a|b|c|d|e\n", b"|||\n", b"\xff\x1b[2J\n"])
def test_an_answer_of_squeue_that_cannot_be_read_is_one_line_of_the_status(run, monkeypatch, tmp_path, answer):
    put_squeue(monkeypatch, tmp_path, answer)
    lines, _ = status.report(run)
    assert any("squeue's answer on job 7 can't be read" in line for line in lines)


def put_squeue(monkeypatch, folder, answer):
    """A squeue that answers with these bytes, first on the path."""
    (folder / "answer").write_bytes(answer)
    (folder / "squeue").write_text(f"#!/bin/sh\ncat {folder}/answer\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_job_keeps_its_number_beside_lines_of_a_site_and_is_not_forgotten_without_one(
    tiny_spec, monkeypatch, tmp_path
):
    answers = {"--test-only": "", "--parsable": "welcome\n41;cluster\n"}
    monkeypatch.setattr(submit, "slurm", lambda *command: answers[command[1]])
    spec = load(tiny_spec, [f"run.root={tmp_path}"])
    assert submit.submit(prepare(spec, Resources(), "srun")) == "41"
    answers["--parsable"] = "welcome\n"
    script = prepare(spec, Resources(), "srun")
    with pytest.raises(JobError, match=r"took the job, but its answer holds no number: 'welcome'"):
        submit.submit(script)
    assert script.is_file()


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "a: &a [*a]"])
def test_a_spec_of_a_run_that_is_nested_without_end_hides_nothing_else(run, run_command, monkeypatch, text):
    monkeypatch.setattr(status, "queued", lambda job: None)
    (run / "spec.yaml").write_text(text)
    lines, _ = status.report(run)
    assert any(line.startswith("step ") for line in lines)
    done = run_command("report", run)
    assert done.returncode == 2
    assert "spec.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_submits_others_as_if_from_outside():
    inside = {"SLURM_NTASKS_PER_NODE": "2", "SRUN_CPUS_PER_TASK": "1", "SLURM_CONF": "c", "SBATCH_ACCOUNT": "a"}
    assert outside_of_jobs(inside) == {"SLURM_CONF": "c", "SBATCH_ACCOUNT": "a"}


def test_a_task_of_an_array_is_named_by_the_array():
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
    assert current_attempt(array) == JobAttempt("9_3", 2)
    assert current_attempt({"SLURM_JOB_ID": "8"}) == JobAttempt("8", 0)
    with pytest.raises(JobError, match="SLURM_JOB_ID isn't set"):
        current_attempt({})
