"""Whole runs on a tiny spec: stopped, killed and resumed, they end as if nothing had happened."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adatad.training.loop as loop
from adatad.data.decode import VideoError
from adatad.errors import UserError
from adatad.models.detector import TemporalActionDetector
from adatad.spec import load, to_yaml
from adatad.training.checkpoint import BEST, Checkpoint, all_checkpoints, read_checkpoint
from adatad.training.metrics import memory_values
from adatad.training.resume import ResumeError, spec_changes
from adatad.training.run import train
from adatad.training.run_directory import RunDirectoryError, run_directory, with_id
from adatad.training.score import score_checkpoint
from adatad.training.signals import EXIT_CODE_RESUME, StopRequest

ROOT = Path(__file__).parents[2]
LAST_STEP = 9


def last_checkpoint(spec) -> Checkpoint:
    path = all_checkpoints(run_directory(spec).checkpoints)[-1]
    assert path.name == f"step-{LAST_STEP:08d}"
    return read_checkpoint(path)


def assert_same(ours: Checkpoint, expected: Checkpoint) -> None:
    """Bit for bit."""
    for mine, theirs in ((ours.parameters, expected.parameters), (ours.ema, expected.ema)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for name, tensors in expected.optimizer.items():
        assert all(torch.equal(ours.optimizer[name][key], tensor) for key, tensor in tensors.items())
    assert ours.state["normalizer"] == expected.state["normalizer"]


def signal_in_step(monkeypatch, step: int, number: signal.Signals) -> None:
    """Let the process receive a signal while it computes a step (counted from 0)."""
    real = loop.train_step

    def interrupted(parts, batches, at):
        if at == step:
            signal.raise_signal(number)
        return real(parts, batches, at)

    monkeypatch.setattr(loop, "train_step", interrupted)


@pytest.fixture(scope="module")
def whole_run(tiny_data, tmp_path_factory) -> Checkpoint:
    from tiny_spec import TINY_SPEC

    folder = tmp_path_factory.mktemp("whole")
    path = folder / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=folder / "runs"))
    spec = load(path)
    train(spec)
    return last_checkpoint(spec)


@pytest.mark.parametrize(
    ("step", "number"),
    [(1, signal.SIGTERM), (2, signal.SIGUSR1), (3, signal.SIGTERM), (LAST_STEP - 1, signal.SIGTERM)],
    ids=["middle of an epoch", "end of an epoch", "after an epoch", "last step"],
)
def test_a_stopped_run_saves_leaves_with_75_and_resumes_exactly(tiny_spec, whole_run, monkeypatch, step, number):
    spec = load(tiny_spec)
    at_the_end = []
    with monkeypatch.context() as patch:
        signal_in_step(patch, step, number)
        patch.setattr(loop, "write_marker", lambda *_: at_the_end.append(signal.getsignal(signal.SIGINT)))
        with pytest.raises(SystemExit) as left:
            train(spec)
    assert left.value.code == EXIT_CODE_RESUME
    assert at_the_end == [signal.SIG_IGN]
    saved = read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1])
    assert saved.state["progress"]["step"] == step + 1
    train(spec, resume="auto")
    assert_same(last_checkpoint(spec), whole_run)


def test_metrics_have_what_a_gpu_s_allocator_held_beside_what_tensors_took(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7)
    assert memory_values(5, torch.device("cuda", 0)) == {"memory_bytes": 5, "reserved_bytes": 7}
    assert memory_values(5, torch.device("cpu")) == {"memory_bytes": 5}


def test_a_run_stopped_amid_an_evaluation_leaves_at_once_and_resumes_exactly(
    tiny_spec, whole_run, monkeypatch, tmp_path
):
    windows = []

    def forward(self, frames, *rest, **names):
        if not self.training:
            windows.append(frames)
            signal.raise_signal(signal.SIGUSR1)
        return real(self, frames, *rest, **names)

    real = TemporalActionDetector.forward
    monkeypatch.setattr(TemporalActionDetector, "forward", forward)
    monkeypatch.setenv("ADATAD_ATTEMPT", str(tmp_path / "attempt"))
    with pytest.raises(SystemExit) as stopped:
        train(load(tiny_spec))
    assert stopped.value.code == EXIT_CODE_RESUME
    assert len(windows) == 1
    assert (tmp_path / "attempt.stopped").read_text() == "SIGUSR1 at step 3\n"
    monkeypatch.setattr(TemporalActionDetector, "forward", real)
    result = train(load(tiny_spec), resume="auto")
    assert_same(last_checkpoint(load(tiny_spec)), whole_run)
    assert result["epochs"] == 3
    assert (tmp_path / "attempt.done").read_text() == f"step {LAST_STEP}\n"
    metrics = [json.loads(line) for line in run_directory(load(tiny_spec)).metrics.read_text().splitlines()]
    assert [m["step"] for m in metrics if m["kind"] == "evaluation"] == [3, 6, 9]


def test_a_signal_that_was_held_back_until_somebody_notes_it(monkeypatch, tmp_path):
    """In a batch job, which goes on to its first step all the same."""
    monkeypatch.setenv("ADATAD_ATTEMPT", str(tmp_path / "attempt"))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    stop = StopRequest()
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert stop.install().signal_name == "SIGUSR1"
    finally:
        stop.restore()


@pytest.mark.pictures
def test_what_a_run_leaves(tiny_spec):
    spec = load(tiny_spec, ["train.evaluate_untrained=true", "train.keep_checkpoints=1"])
    result = train(spec)
    run = run_directory(spec)
    on_disk = json.loads(run.result.read_text())
    assert on_disk == result
    assert {"average_mAP", "untrained_average_mAP", "mAP", "seconds"} <= result.keys()
    assert list(result["mAP"]) == ["0.3", "0.4", "0.5", "0.6", "0.7"]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, LAST_STEP + 1))
    assert [line["epoch"] for line in lines if line["kind"] == "evaluation"] == [0, 1, 2, 3]
    assert {"loss", "gradient_norm", "lr", "memory_bytes", "data_wait_seconds", "step_seconds"} <= lines[1].keys()
    assert lines[1]["lr"] == {"adapter": 0.0, "detector": 0.0, "detector_no_decay": 0.0}
    assert load(run.path / "spec.yaml") == spec
    trained = (run.path / "trained.txt").read_text().split()
    assert all(name.startswith("detector.") or ".adapter." in name for name in trained)
    assert len(list((run.path / "timelines").glob("*.png"))) == 2
    assert (run.path / "report.html").is_file()
    assert (run.path / "first_batch.png").is_file()
    board = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, LAST_STEP + 1))
    wanted = {"train/gradient_norm", "train/lr/adapter", "train/memory_bytes", "train/data_wait_seconds"}
    assert wanted | {"evaluation/average_mAP", "evaluation/mAP/0.5"} <= set(board.Tags()["scalars"])
    assert len(board.Tags()["images"]) == 3
    assert "annotations:" in board.Tensors("spec/text_summary")[0].tensor_proto.string_val[0].decode()
    kept = {path.name for path in all_checkpoints(run.checkpoints)}
    best = (run.checkpoints / BEST).resolve().name
    assert kept == {f"step-{LAST_STEP:08d}", best}
    assert not list(run.checkpoints.glob(".*"))
    last = score_checkpoint(spec, run.checkpoints / f"step-{LAST_STEP:08d}")
    assert last["average_mAP"] == result["average_mAP"]


def test_a_run_is_not_overwritten_by_accident(tiny_spec, monkeypatch):
    spec = load(tiny_spec, ["schedule.epochs=1"])
    train(spec)
    with pytest.raises(RunDirectoryError, match="--resume auto continues it, --id N starts another"):
        train(with_id(spec, 0))
    # Nor taken over by an attempt that torchrun started after one of the same job had been refused so.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with monkeypatch.context() as environment:
        for name, value in {**torchrun, "TORCHELASTIC_RESTART_COUNT": "1"}.items():
            environment.setenv(name, value)
        with pytest.raises(RunDirectoryError, match="already holds a run"):
            train(with_id(spec, 0))


def test_resuming_and_overwriting_contradict_one_another(tiny_spec):
    spec = load(tiny_spec, ["schedule.epochs=1"])
    train(spec)
    with pytest.raises(ResumeError, match="--force would delete what --resume goes on from"):
        train(spec, resume="auto", overwrite=True)
    assert run_directory(spec).result.is_file()


@pytest.mark.parametrize("resume", ["latest", "other model"])
def test_a_checkpoint_that_cannot_be_used_leaves_no_directory(tiny_spec, resume):
    if resume == "other model":
        other = load(tiny_spec, ["schedule.epochs=1", "model.backbone.mode=plain", "run.id=5"])
        train(other)
        resume = str(run_directory(other).checkpoints / BEST)
    spec = load(tiny_spec, ["schedule.epochs=1"])
    with pytest.raises(UserError, match=r"no such checkpoint directory; expected auto|trains other parameters"):
        train(spec, resume=resume)
    assert not run_directory(spec).path.exists()


def test_a_run_past_its_end_says_so_and_is_evaluated_as_it_stands(tiny_spec, caplog):
    spec = load(tiny_spec, ["schedule.epochs=2"])
    train(spec)
    shorter = load(tiny_spec, ["schedule.epochs=2", "schedule.end_epoch=1", "train.evaluate_every_epochs=5"])
    result = train(shorter, resume="auto")
    assert result["epochs"] == 2
    assert result == json.loads(run_directory(spec).result.read_text())
    assert "nothing to train: the run stands at epoch 2, step 0, past its end, epoch 1" in caplog.text


def test_another_model_s_checkpoint_is_refused(tiny_spec, tmp_path):
    spec = load(tiny_spec, ["schedule.epochs=1"])
    train(spec)
    checkpoint = run_directory(spec).checkpoints / BEST
    other = load(tiny_spec, ["model.backbone.mode=plain"])
    with pytest.raises(Exception, match=r"trains other parameters than this spec \(8 differ"):
        score_checkpoint(other, checkpoint)
    frozen = load(tiny_spec, ["train.seed=7"])
    with pytest.raises(Exception, match="other frozen weights"):
        score_checkpoint(frozen, checkpoint)


def test_a_changed_spec_is_said_when_resuming(tiny_spec):
    before = to_yaml(load(tiny_spec))
    assert spec_changes(before, to_yaml(load(tiny_spec, ["run.id=3"]))) == []
    lines = spec_changes(before, to_yaml(load(tiny_spec, ["train.seed=3"])))
    assert [line.split() for line in lines] == [["-", "seed:", "42"], ["+", "seed:", "3"]]


def test_accumulation_gives_the_same_run(tiny_spec, tmp_path):
    """Not bit for bit: sums are made in another order, and from a batch of one."""
    whole, split = (load(tiny_spec, [f"train.accumulation={n}", f"run.id={n}", "train.global_batch=3"]) for n in (1, 3))
    lasts = []
    for spec in (whole, split):
        train(spec)
        lasts.append(read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1]))
    for name, tensor in lasts[0].parameters.items():
        torch.testing.assert_close(lasts[1].parameters[name], tensor, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_stops_a_run_in_good_order(tiny_spec):
    """timeout, Slurm and torchrun do this; the loader processes receive it as well."""
    settings = ["data.workers=1", "schedule.epochs=100000", "train.evaluate_every_epochs=100000"]
    spec = load(tiny_spec, settings)
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(tiny_spec), "--set", *settings]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = run_directory(spec).metrics
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE_RESUME, errors
    assert "Traceback" not in errors
    assert all_checkpoints(run_directory(spec).checkpoints)


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(tiny_data, pytestconfig):
    """At random moments: in start-up, training, saving, evaluating, or in the report (tests/kill_night.py)."""
    seed = os.environ.get("ADATAD_TEST_SEED", str(time.time_ns() % 10**6))
    kills = os.environ.get("ADATAD_TEST_KILLS", "10" if pytestconfig.getoption("--full") else "2")
    command = [sys.executable, "tests/kill_night.py", "--kills", kills, "--seed", seed, "--data", str(tiny_data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}:\n{done.stdout}{done.stderr}"
    assert f"{kills} kills in" in done.stdout


def test_a_run_whose_loader_process_is_killed_saves_and_resumes_exactly(tiny_spec, whole_run, monkeypatch):
    real = loop.train_step

    def killing(parts, batches, at):
        if at == 4:
            for process in multiprocessing.active_children():
                process.kill()
        return real(parts, batches, at)

    settings = ["data.workers=1", "train.checkpoint_every_steps=100"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killing)
        with pytest.raises(SystemExit) as left:
            train(load(tiny_spec, settings))
    assert left.value.code == EXIT_CODE_RESUME
    log = (run_directory(load(tiny_spec)).path / "log.txt").read_text()
    assert re.search(r"a loader process \(pid \d+\) was killed \(SIGKILL\).*demo_training_00\d.*Lower data\.wo", log)
    saved = all_checkpoints(run_directory(load(tiny_spec)).checkpoints)[-1]
    # The next batch, which was ready, may still have come.
    assert saved.name in ("step-00000005", "step-00000006")
    train(load(tiny_spec), resume="auto")
    assert_same(last_checkpoint(load(tiny_spec)), whole_run)


def test_loader_processes_may_change_midway(tiny_spec, whole_run, monkeypatch):
    with monkeypatch.context() as patch:
        signal_in_step(patch, 4, signal.SIGUSR1)
        with pytest.raises(SystemExit) as left:
            train(load(tiny_spec, ["data.workers=1"]))
    assert left.value.code == EXIT_CODE_RESUME
    train(load(tiny_spec, ["data.workers=2"]), resume="auto")
    assert_same(last_checkpoint(load(tiny_spec)), whole_run)


def test_a_run_goes_on_without_broken_videos_up_to_a_limit(tiny_spec, tiny_data, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for file in (tiny_data / "videos").iterdir():
        (videos / file.name).symlink_to(file)
    broken = sorted(videos.iterdir())[:2] + sorted(videos.iterdir())[-1:]
    for file in broken:
        file.unlink()
        file.write_bytes(b"no video")
    overrides = [f"data.videos={videos}", "data.on_error=skip"]
    result = train(load(tiny_spec, overrides))
    spec = load(tiny_spec, overrides)
    log = (run_directory(spec).path / "log.txt").read_text()
    assert [log.count(f"{file}: ") for file in broken] == [1, 1, 1]
    detections = json.loads((run_directory(spec).path / "detections.json").read_text())["results"]
    assert set(detections) == {file.stem for file in videos.glob("*validation*")} - {broken[2].stem}
    assert result["epochs"] == 3
    with pytest.raises(VideoError, match=r"data\.skip_limit 1"):
        train(load(tiny_spec, [*overrides, "data.skip_limit=1", "run.id=1"]))
    with pytest.raises(VideoError, match=broken[0].name):
        train(load(tiny_spec, [f"data.videos={videos}", "run.id=2"]))
