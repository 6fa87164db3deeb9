"""What happens when a rank fails: real processes of a whole run, with faults planted in them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faulty import NO_FAULT, QUICK, run_all
from ranks import run_ranks

from adatad.data.dataset import SkippedVideos
from adatad.spec import load
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.run_directory import run_directory

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def last_step(spec: Path) -> int:
    return read_checkpoint(all_checkpoints(run_directory(load(spec)).checkpoints)[-1]).state["progress"]["step"]


def run_log(spec: Path) -> str:
    return (run_directory(load(spec)).path / "log.txt").read_text()


# Another rank than the first is killed by test_torchrun_continues_by_itself; what zero3 saves goes on under other
# engines in test_zero.py.
@pytest.mark.parametrize(
    ("rank", "engine", "then"),
    [(0, "ddp", "fsdp"), pytest.param(1, "zero3", "fairscale", marks=pytest.mark.full)],
)
def test_a_killed_rank_is_named_and_the_run_resumes_on_any_engine(rank, engine, then, tiny_spec):
    left = run_all(tiny_spec, ("kill", rank, 4), "--engine", engine)
    assert left.codes[rank] == -9
    assert left.codes[1 - rank] == 1
    assert re.match(rf"rank {rank} on \S+ \(pid \d+\): died without an error message", left.lines()[0])
    assert left.log.index(left.lines()[0]) < left.log.index("Traceback")
    # The first rank may have been writing the last one.
    saved = last_step(tiny_spec)
    assert saved in ((3, 4) if rank == 0 else (4,))
    resumed = run_all(tiny_spec, NO_FAULT, "--resume", "auto", "--engine", then)
    assert resumed.codes == [0, 0], resumed.log
    assert f"step-{saved:08d}: epoch 1, step {saved}" in run_log(tiny_spec)
    assert last_step(tiny_spec) == 6


def test_a_rank_with_an_error_is_named_with_it(tiny_spec):
    left = run_all(tiny_spec, ("fail", 1, 2))
    assert left.codes == [1, 1]
    first = left.lines()[0]
    assert re.fullmatch(r"rank 1 on \S+ \(pid \d+\): ValueError: planted in a step", first)
    assert left.log.index(first) < left.log.index("Traceback")
    assert first in run_log(tiny_spec)


# Which rank is named is decided by what they write down: the watchdog's own tests try others than the first.
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_hanging_rank_is_named_and_all_stacks_are_written(rank, tiny_spec):
    left = run_all(tiny_spec, ("hang", rank, 2), "--set", "train.hang_seconds=8")
    assert left.codes == [1, 1]
    assert re.match(rf"rank {rank} on \S+ \(pid \d+\): doesn't answer", left.lines()[0])
    stacks = [(run_directory(load(tiny_spec)).path / "stacks" / f"rank-{n}.txt").read_text() for n in range(2)]
    assert "in hang" in stacks[rank]
    assert "in hang" not in stacks[1 - rank]
    assert "train_step" in stacks[1 - rank]


def test_torchrun_continues_by_itself(tiny_spec):
    """Also with --force, which is for what lay there before the job."""
    for old in ("metrics.jsonl", "checkpoints/step-00000009/state.json"):
        file = run_directory(load(tiny_spec)).path / old
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("of another run")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    faulty = [str(ROOT / "tests" / "parallel" / "faulty.py"), "kill", "1", "4"]
    command = [sys.executable, *torchrun, *faulty, str(tiny_spec), *QUICK, "--force"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr
    named = [line for line in run.stderr.splitlines() if line.startswith("rank 1 on ")]
    assert len(named) == 1, "the culprit is printed once"
    log = run_log(tiny_spec)
    assert log.count(named[0]) == 1
    assert log.count("step-00000004: epoch 1, step 4") == 1
    assert last_step(tiny_spec) == 6


# A loss that isn't finite on one of two ranks is met on both in the test after this one.
@pytest.mark.parametrize(
    ("kind", "world"),
    [
        ("nan loss", 1), ("nan gradient", 2),
        *(pytest.param(*case, marks=pytest.mark.full) for case in (("nan loss", 2), ("nan gradient", 1))),
    ],
)  # fmt: skip
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(kind, world, tiny_spec):
    left = run_all(tiny_spec, (kind, world - 1, 4), world=world)
    assert left.codes == [0] * world, left.log
    run = run_directory(load(tiny_spec))
    skipped = [line for line in run_log(tiny_spec).splitlines() if "skipped on all ranks" in line]
    assert len(skipped) == 1
    assert re.search(r"step 4 skipped on all ranks: loss \S+, gradient norm nan; its videos: \S+, \S+$", skipped[0])
    assert read_checkpoint(all_checkpoints(run.checkpoints)[-1]).state["progress"]["bad_steps"] == 1
    metrics = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [m["step"] for m in metrics if m["kind"] == "train" and not m["applied"]] == [5]
    left_batches = sorted(path.name for path in (run.path / "bad_batches").iterdir())
    assert left_batches == [f"step4_rank{rank}.safetensors" for rank in range(world)]


def test_several_in_a_row_stop_the_run(tiny_spec):
    left = run_all(tiny_spec, ("nan loss", 1, 1), "--set", "train.stop_after_bad_steps=1")
    assert left.codes == [2, 2]
    assert "1 steps in a row had a loss or gradients that aren't finite" in left.log
    assert len(all_checkpoints(run_directory(load(tiny_spec)).checkpoints)) == 1


ALL_RANKS_WRITE = ("--engine", "fsdp", "--set", "model.backbone.mode=full", "optimizer.backbone={lr: 1e-3, custom: []}")


@pytest.mark.parametrize(("rank", "settings"), [(0, ()), (1, ALL_RANKS_WRITE)])
def test_a_full_disk_ends_the_run_and_spoils_nothing(rank, settings, tiny_spec):
    left = run_all(tiny_spec, ("full disk", rank, 4), *settings)
    assert left.codes[rank] == 2
    assert left.codes[1 - rank] in (1, 2)
    said = re.search(r"rank \d on \S+ .*CheckpointError: .*step-0000000(\d): can't be written: ", left.lines()[0])
    # The one before may have been on its way still.
    assert said[1] in "45"
    if settings:
        assert "can't be written: rank 1: " in left.log
    folder = run_directory(load(tiny_spec)).checkpoints
    assert last_step(tiny_spec) == int(said[1]) - 1
    assert not list(folder.glob(".*unfinished"))
    assert run_all(tiny_spec, NO_FAULT, "--resume", "auto", *settings).codes == [0, 0]


def test_resuming_skips_a_damaged_checkpoint_by_name(tiny_spec):
    kept = ("--set", "train.keep_checkpoints=4")
    assert run_all(tiny_spec, NO_FAULT, *kept).codes == [0, 0]
    run = run_directory(load(tiny_spec)).path
    damages = {6: "half-written", 5: "truncated", 4: "flipped"}
    for step, damage in damages.items():
        spoil(run / "checkpoints" / f"step-0000000{step}", damage)
    resumed = run_all(tiny_spec, NO_FAULT, *kept, "--resume", "auto")
    assert resumed.codes == [0, 0], resumed.log
    log = run_log(tiny_spec)
    for step, damage in damages.items():
        named = f"step-0000000{step}: optimizer.safetensors isn't what was written" in log
        assert named == (damage != "half-written"), step
        assert read_checkpoint(run / "checkpoints" / f"step-0000000{step}").state["progress"]["step"] == step
    assert f"resumed from {run}/checkpoints/step-00000003: epoch 1, step 3" in log


def spoil(checkpoint: Path, damage: str) -> None:
    file = checkpoint / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "half-written":
        (checkpoint / "manifest.json").unlink()
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.unfinished"))
        return
    content[len(content) // 2] ^= 1
    file.write_bytes(content[:-1] if damage == "truncated" else content)


def evaluate(spec_file: str, cases: list[list[str]]) -> list[tuple[int, dict]]:
    """For each list of overrides, this rank's own windows, and everybody's detections."""
    from adatad.parallel.processes import start_processes
    from adatad.training.loaders import validation_loader
    from adatad.training.resolve import resolve_run
    from adatad.training.setup import initial_state
    from adatad.training.validation import detect

    results = []
    with start_processes() as processes:
        for overrides in cases:
            run = resolve_run(load(spec_file, overrides), processes)
            parts, loader = initial_state(run, processes), validation_loader(run)
            skipped = SkippedVideos(0, print)
            own = len(range(processes.rank, len(loader.dataset), processes.world))
            results.append((own, detect(parts.engine.model, loader, run, processes, skipped)))
    return results


def test_ranks_with_unequal_shares_of_windows_evaluate_together(tiny_spec):
    window = [
        "train.global_batch=4",
        "data.window.size_grid=64",
        "data.window.overlap=0.0",
        "model.detector.max_length=64",
    ]
    ((windows, truth),) = run_ranks(1, evaluate, str(tiny_spec), [window])[0]
    assert sum(map(len, truth.values())) > 0
    engines = ("ddp", "fairscale", "zero3")
    cases = [[*window, f"parallel.engine={engine}"] for engine in engines]
    ranks = run_ranks(4, evaluate, str(tiny_spec), cases)
    for engine, found_by_ranks in zip(engines, zip(*ranks, strict=True), strict=True):
        shares = [own for own, _ in found_by_ranks]
        assert sum(shares) == windows, engine
        assert len(set(shares)) == 2, engine
        assert all(found == truth for _, found in found_by_ranks), engine
