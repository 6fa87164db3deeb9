"""`adatad train --profile`: files and a table of a few steps, whose numbers are those of any other run."""

import gzip
import json
import signal
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks

from adatad.errors import UserError
from adatad.files import FileError
from adatad.memory import scopes
from adatad.memory.scopes import memory_scope, show_ranges, timed_part
from adatad.models.detector import build_model
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training import loop, step_profile
from adatad.training.part_times import PREFIX
from adatad.training.resolve import resolve_model
from adatad.training.run import train, train_run
from adatad.training.run_directory import RUN_FILES, run_directory
from adatad.training.signals import EXIT_CODE_RESUME
from adatad.training.step_profile import WARMUP_STEPS, StepProfiler, check_files
from adatad.training.throughput import StepFlops, Throughput

TILE = ["memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=2"]
STEPS = 6
"""Of two epochs."""


AGAIN = {"backward: blocks, recomputed", "backward: adapters, recomputed"}


def run_folder(spec_file: Path, number: int = 0) -> Path:
    return spec_file.parent / "runs" / "tiny" / f"id{number}"


def trained(folder: Path) -> list[dict]:
    """Return the logged lines of a run's steps, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "class_loss", "segment_loss", "gradient_norm", "normalizer")
    return [{name: line[name] for name in names} for line in lines if line["kind"] == "train"]


def parts_in(folder: Path) -> set[str]:
    return {row["part"] for row in json.loads((folder / "profile.json").read_text())["parts"]}


def test_a_profile_says_where_time_goes_and_changes_no_number(tiny_spec, run_command):
    done = run_command("train", tiny_spec, "--profile", STEPS - WARMUP_STEPS, "--set", *TILE)
    assert done.returncode == 0, done.stderr
    folder = run_folder(tiny_spec)
    content = json.loads((folder / "profile.json").read_text())
    assert sum(row["share"] for row in content["parts"]) == pytest.approx(1, abs=0.05)
    assert content["parts"] == sorted(content["parts"], key=lambda row: -row["milliseconds"])
    assert (content["steps"], content["warmup_steps"], content["ranks"]) == (STEPS - WARMUP_STEPS, WARMUP_STEPS, 1)
    assert content["executed_flops"] > content["useful_flops"] > 0
    assert content["tflops_per_second"] == pytest.approx(content["executed_flops"] / content["step_seconds"] / 1e12)
    assert content["torch"] == torch.__version__
    assert "mfu" not in content
    assert {
        "wait for data", "frames", "embedding", "blocks", "adapters", "detector", "losses", "backward: detector",
        "backward: blocks", "backward: blocks, recomputed", "backward: adapters", "backward: adapters, recomputed",
        "optimizer", "moving average", "communication",
    } <= parts_in(folder)  # fmt: skip
    for said in ("wait for data", "ms", "TFLOP/s", str(folder / "profile.json"), "no snapshot", "claims no result"):
        assert said in done.stdout
    events = json.loads(gzip.decompress((folder / content["trace"]).read_bytes()))["traceEvents"]
    assert {f"{PREFIX}tile", f"{PREFIX}recomputation"} <= {event.get("name") for event in events}
    assert not list((folder / "checkpoints").iterdir())
    assert not any((folder / name).exists() for name in ("result.json", "detections.json"))
    assert scopes._open_range is None

    train(load(tiny_spec, [*TILE, "run.id=1", "schedule.end_epoch=2", "train.evaluate_from_epoch=100"]))
    assert trained(folder) == trained(run_folder(tiny_spec, 1))
    # --force deletes a run that holds nothing else.
    assert all(RUN_FILES.fullmatch(path.name) for path in folder.iterdir())


@pytest.mark.parametrize(
    ("policy", "again"),
    [
        ("none", set()),
        ("selective", AGAIN),
        # The contexts of selective's checkpoints hold these, too.
        pytest.param("block", AGAIN, marks=pytest.mark.full),
    ],
)
def test_modules_are_parts_in_forward_and_in_backward(tiny_spec, policy, again):
    content, _ = train_run(load(tiny_spec, [f"memory.policy={policy}"]), profile_steps=1)
    parts = {row["part"] for row in content["parts"]}
    assert {"backbone", "blocks", "adapters", "detector", "backward: adapters", "backward: losses"} <= parts
    assert {part for part in parts if part.endswith("recomputed")} >= again
    assert bool(again) == any(part.endswith("recomputed") for part in parts)


def test_a_resumed_run_is_profiled_at_its_checkpoint_and_can_still_go_on(tiny_spec):
    stopped = load(tiny_spec, ["schedule.end_epoch=1", "train.evaluate_untrained=false"])
    train(stopped)
    train_run(load(tiny_spec), resume="auto", profile_steps=1)
    folder = run_folder(tiny_spec)
    assert [line["step"] for line in trained(folder)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*"))[-1] == "step-00000003"


def test_what_makes_no_sense_together_is_refused(tiny_spec, run_command):
    for option in (("--folds", 2), ("--overfit", 2)):
        refused = run_command("train", tiny_spec, "--profile", 2, *option)
        assert refused.returncode == 2
        assert "leave out --folds and --overfit" in refused.stderr
    for count in (0, 101, "many"):
        assert run_command("train", tiny_spec, "--profile", count).returncode == 2


def test_more_steps_than_a_run_has_are_refused_before_anything_is_written(tiny_spec):
    with pytest.raises(UserError, match="--profile 6: takes 10 steps, 4 of them to warm up; 9 are left"):
        train_run(load(tiny_spec), profile_steps=6)
    assert not run_folder(tiny_spec).exists()


@pytest.mark.parametrize("name", ["profile.json", "profile_trace_rank0.json.gz"])
def test_a_file_that_cannot_be_written_is_named_before_the_first_step(tiny_spec, monkeypatch, name):
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("a step was trained"))
    (run_folder(tiny_spec) / name).mkdir(parents=True)
    with pytest.raises(FileError, match=rf"{name}: is no regular file, but a folder"):
        train_run(load(tiny_spec, ["run.id=0"]), profile_steps=1)


def test_a_full_disk_is_said_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(step_profile.shutil, "disk_usage", lambda _: usage(2**40, 2**40, 1000))
    with pytest.raises(FileError, match=r"a file may have 1 kB there; those of --profile need up to 67\.1 MB"):
        check_files(tmp_path, 1, snapshots=True)
    assert not list(tmp_path.iterdir())


def test_a_trace_that_torch_has_not_finished_leaves_no_file(tmp_path):
    recorded = SimpleNamespace(export_chrome_trace=lambda path: Path(path).write_text('{"traceEvents": ['))
    with pytest.raises(FileError, match=r"trace\.json\.gz: torch wrote no whole trace"):
        step_profile.write_trace(recorded, tmp_path / "trace.json.gz")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_profiling_saves_and_leaves_as_training_does(tiny_spec, run_command, monkeypatch):
    real = loop.train_step

    def interrupted(state, batches, step):
        if step == WARMUP_STEPS:
            signal.raise_signal(signal.SIGINT)
        return real(state, batches, step)

    monkeypatch.setattr(loop, "train_step", interrupted)
    assert run_command("train", tiny_spec, "--profile", 3).returncode == EXIT_CODE_RESUME
    folder = run_folder(tiny_spec)
    assert (folder / "checkpoints" / f"step-{WARMUP_STEPS + 1:08d}").is_dir()
    assert not (folder / "profile.json").exists()
    assert scopes._open_range is None


@pytest.mark.parametrize("name", step_profile.SNAPSHOT_NAMES)
def test_a_torch_without_the_history_of_memory_is_named_at_the_start(name, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.cuda.memory, name)
    state = SimpleNamespace(processes=Processes(0, 1, torch.device("cuda")))
    with pytest.raises(UserError, match=rf"torch [0-9.]+\S* lacks {name} of torch.cuda.memory"):
        StepProfiler(1, state, tmp_path)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_gpu_has_a_snapshot_of_the_profiled_steps_and_a_share_of_its_peak(tiny_spec, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    history = lambda **options: called.append((options.get("enabled", "on"), len(profiler.seconds)))  # noqa: E731
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", history)
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"allocations"))
    meta = Processes(0, 1, torch.device("meta"))
    run = resolve_model(load(tiny_spec, ["train.precision=bf16"]), meta, 6)
    with torch.device("meta"):
        model = build_model(run.spec.model, 6)
    state = SimpleNamespace(processes=Processes(0, 1, torch.device("cuda")), model=model, run=run, spec=run.spec)
    profiler = StepProfiler(2, state, tmp_path)
    while not profiler.is_complete:
        profiler.begin_step()
        with memory_scope("optimizer state"):
            torch.ones(3).sum()
        profiler.end_step(0.5, 0.1)
    content = profiler.write(Throughput(StepFlops(4 * 10**12, 3 * 10**12), peak_tflops=100.0))
    profiler.close()
    assert called == [("on", WARMUP_STEPS), (None, WARMUP_STEPS + 2), (None, WARMUP_STEPS + 2)]
    assert (tmp_path / content["memory_snapshot"]).read_bytes() == b"allocations"
    assert (content["device"], content["times_of"], content["mfu"]) == ("NVIDIA H200", "device", pytest.approx(0.06))
    # No kernel ran.
    assert [row["part"] for row in content["parts"]] == ["device idle"]


def test_scopes_open_ranges_only_while_they_are_shown():
    opened = []

    class Noted:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            opened.append(self.name)

        def __exit__(self, *_):
            opened.append(f"end of {self.name}")

    try:
        with memory_scope("before"):
            show_ranges(Noted)
            with memory_scope("tile"), timed_part("losses"):
                # A timed part takes no tensor from its scope.
                assert scopes.scope_path() == "before > tile"
        show_ranges(None)
        with memory_scope("after"), timed_part("after"):
            pass
    finally:
        show_ranges(None)
    assert opened == ["tile", "losses", "end of losses", "end of tile"]


def profiled_rank(spec_file: str, runs: str) -> dict:
    return train_run(load(spec_file, [f"run.root={runs}", "train.global_batch=2"]), profile_steps=1)[0]


@pytest.mark.slow
def test_each_rank_leaves_a_trace_and_the_first_one_the_table(shared_spec, tmp_path):
    content, nothing = run_ranks(2, profiled_rank, shared_spec, str(tmp_path / "runs"))
    assert nothing == {}
    assert (content["ranks"], content["rank"]) == (2, 0)
    assert len(content["profiled_step_seconds_by_rank"]) == 2
    folder = run_directory(load(shared_spec, [f"run.root={tmp_path / 'runs'}"])).path
    assert sorted(path.name for path in folder.glob("profile*")) == [
        "profile.json", "profile_trace_rank0.json.gz", "profile_trace_rank1.json.gz",
    ]  # fmt: skip
