"""Checkpoints: whole or absent, never half-made; broken ones are noticed and skipped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_spec import saved_state

from adatad.memory.meta import gpu_like_meta
from adatad.spec import load
from adatad.training import checkpoint
from adatad.training.checkpoint import (
    BEST,
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    HostCopies,
    all_checkpoints,
    checkpoint_path,
    mark_best,
    newest_checkpoint,
    read_checkpoint,
    why_broken,
    write_checkpoint,
    writing,
)
from adatad.training.loop import Training
from adatad.training.metered import make_optimizer_state, meta_parts
from adatad.training.ownership import resume_arguments
from adatad.training.run_directory import RunDirectory
from adatad.training.state_io import full_tensor_bytes, full_tensors


def some_checkpoint(step: int = 0) -> Checkpoint:
    weights = {"backbone.blocks.0.adapter.up.weight": torch.randn(3, 2), "detector.head.scales.0": torch.tensor(1.5)}
    moments = {
        name: {"exp_avg": t * 0.1, "exp_avg_sq": t**2, "step": torch.tensor(float(step))} for name, t in weights.items()
    }
    ema = {name: t + 1 for name, t in weights.items()}
    return Checkpoint(weights, ema, moments, saved_state(step), "name: x\n")


def test_what_is_written_is_read(tmp_path):
    written = some_checkpoint(7)
    write_checkpoint(tmp_path / "step-00000007", written)
    read = read_checkpoint(tmp_path / "step-00000007")
    assert read.state == written.state
    assert read.spec_yaml == written.spec_yaml
    for name, tensor in written.parameters.items():
        assert torch.equal(read.parameters[name], tensor)
        assert torch.equal(read.ema[name], written.ema[name])
        assert {key: t.tolist() for key, t in read.optimizer[name].items()} == {
            key: t.tolist() for key, t in written.optimizer[name].items()
        }


@pytest.mark.parametrize("name", ["parameters.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damage_is_noticed_and_the_one_before_is_taken(tmp_path, name, damage):
    for step in (1, 2):
        write_checkpoint(checkpoint_path(tmp_path, step), some_checkpoint(step))
    file = checkpoint_path(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "flipped" else content[:-1])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_checkpoint(checkpoint_path(tmp_path, 2))
    newest, skipped = newest_checkpoint(tmp_path)
    assert newest == checkpoint_path(tmp_path, 1)
    assert len(skipped) == 1
    assert "step-00000002" in skipped[0]
    assert name in skipped[0]


def test_a_manifest_that_is_gone_is_noticed(tmp_path):
    write_checkpoint(checkpoint_path(tmp_path, 1), some_checkpoint(1))
    (checkpoint_path(tmp_path, 1) / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path)[0] is None


def test_a_flipped_bit_anywhere_in_a_manifest_is_noticed(tmp_path):
    write_checkpoint(checkpoint_path(tmp_path, 1), some_checkpoint(1))
    manifest = checkpoint_path(tmp_path, 1) / "manifest.json"
    written = manifest.read_bytes()
    for place in range(len(written)):
        content = bytearray(written)
        content[place] ^= 1 << place % 8
        manifest.write_bytes(content)
        assert why_broken(manifest.parent), place


def test_the_newest_and_the_best_are_kept(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in range(1, 7):
        path = writer.submit(step, some_checkpoint(step))
        if step == 3:
            writer.wait()
            mark_best(tmp_path, path)
    writer.close()
    assert [path.name for path in all_checkpoints(tmp_path)] == ["step-00000003", "step-00000005", "step-00000006"]
    assert read_checkpoint(tmp_path / BEST).state["progress"]["step"] == 3


def test_a_broken_later_checkpoint_does_not_push_out_what_is_written(tmp_path):
    """Training goes on from the whole one before it, and its steps come again."""
    for step in (4, 9):
        write_checkpoint(checkpoint_path(tmp_path, step), some_checkpoint(step))
    (checkpoint_path(tmp_path, 9) / "manifest.json").unlink()
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.submit(5, some_checkpoint(5))
    writer.close()
    assert newest_checkpoint(tmp_path)[0] == checkpoint_path(tmp_path, 5)


def test_training_may_go_on_while_a_checkpoint_is_written(tmp_path):
    checkpoint = some_checkpoint(1)
    before = {name: tensor.clone() for name, tensor in checkpoint.parameters.items()}
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.submit(1, checkpoint)
    for tensor in checkpoint.parameters.values():
        tensor.add_(1)
    writer.close()
    for name, tensor in read_checkpoint(checkpoint_path(tmp_path, 1)).parameters.items():
        assert torch.equal(tensor, before[name])


def test_copies_for_a_checkpoint_lie_in_memory_that_was_reserved_and_do_not_overlap(monkeypatch):
    asked = []

    def rows(count, size_bytes, device, what):
        asked.append((count, size_bytes))
        return [torch.empty(size_bytes, dtype=torch.uint8) for _ in range(count)]

    monkeypatch.setattr(checkpoint, "pinned_rows", rows)
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 4096)
    shapes = [(), (3,), (1000,), (900,), (30, 10), (0,)] * 2
    kinds = [torch.float32] * 6 + [torch.bfloat16] * 6
    tensors = {f"{n}": torch.randn(shape).to(kind) for n, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))}
    copies = HostCopies()
    copies.reserve([tensor.nbytes for tensor in tensors.values()], torch.device("cpu"))
    assert len(asked) == 1
    assert asked[0][1] == 4096
    for _ in range(2):
        found = copies.of(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype
        tensors = {name: tensor + 1 for name, tensor in tensors.items()}
    # A tensor that is larger than a row asks for larger rows.
    larger = {**tensors, "larger": torch.ones(2000)}
    assert torch.equal(copies.of(larger)["larger"], larger["larger"])
    assert len(asked) == 2


def test_a_run_whose_ranks_write_their_own_parts_reserves_nothing(monkeypatch):
    monkeypatch.setattr(checkpoint, "pinned_rows", lambda *arguments: pytest.fail("memory was taken"))
    spec = load("configs/demo/tia.yaml", ["model.backbone.mode=full", "optimizer.backbone.lr=1e-5"], check_files=False)
    parts = SimpleNamespace(spec=spec, engine=SimpleNamespace(saves_shards=True))
    HostCopies().reserve(full_tensor_bytes(parts), torch.device("cpu"))


def test_what_a_run_reserves_is_what_it_saves():
    spec = load("configs/demo/tia.yaml", ["model.backbone.depth=1"], check_files=False)
    with gpu_like_meta():
        parts = meta_parts(spec, num_classes=6)
        make_optimizer_state(parts)
    parameters, averages, optimizer = full_tensors(parts)
    flat = [*parameters.values(), *averages.values(), *(t for ts in optimizer.values() for t in ts.values())]
    assert sorted(full_tensor_bytes(parts)) == sorted(tensor.nbytes for tensor in flat)


def test_a_failed_write_is_reported(tmp_path):
    writer = CheckpointWriter(tmp_path / "gone", keep=1)
    (tmp_path / "gone").write_text("a file where the directory should be")
    writer.submit(1, some_checkpoint(1))
    with pytest.raises(CheckpointError, match=r"gone/step-00000001: can't be written: .*Not a directory"):
        writer.close()


WITH_TESTS = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
SMALL_DISK_WRITER = """
import resource, signal, sys, torch
from pathlib import Path
from types import SimpleNamespace
from tiny_spec import saved_state
from adatad.training.checkpoint import Checkpoint, checkpoint_path, write_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for step, size in enumerate((10_000, 100_000)):
    weights = {"x": torch.ones(size)}
    checkpoint = Checkpoint(weights, weights, {}, saved_state(step), "name: x")
    write_checkpoint(checkpoint_path(Path(sys.argv[1]), step), checkpoint)
"""


def test_a_disk_that_takes_no_more_leaves_what_was_there(tmp_path):
    """The system itself refuses the bytes here, by a limit on the size of files."""
    run = subprocess.run(
        [sys.executable, "-c", SMALL_DISK_WRITER, str(tmp_path)], capture_output=True, text=True, env=WITH_TESTS
    )
    assert "CheckpointError" in run.stderr
    assert "step-00000001: can't be written" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]
    assert len(read_checkpoint(tmp_path / "step-00000000").parameters["x"]) == 10_000


ENDLESS_WRITER = """
import sys, torch
from pathlib import Path
from types import SimpleNamespace
from tiny_spec import saved_state
from adatad.training.checkpoint import Checkpoint, checkpoint_path, write_checkpoint
weights = {str(i): torch.full((100_000,), float(i)) for i in range(8)}
for step in range(10_000):
    checkpoint = Checkpoint(weights, weights, {}, saved_state(step), "name: x")
    write_checkpoint(checkpoint_path(Path(sys.argv[1]), step), checkpoint)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_only_whole_checkpoints(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=WITH_TESTS
    )
    for _ in range(3):
        assert process.stdout.readline()
    time.sleep(0.013)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = all_checkpoints(tmp_path)
    assert len(found) >= 3
    for path in found:
        assert json.loads((path / "state.json").read_text())["progress"]["step"] == int(path.name[5:])
        assert set(read_checkpoint(path).parameters) == {str(i) for i in range(8)}


def test_a_full_disk_and_a_run_that_is_stopped_are_told_what_was_saved(tmp_path):
    training = object.__new__(Training)
    training.directory = RunDirectory(tmp_path / "id2")
    training.writer = CheckpointWriter(training.directory.checkpoints, keep=1)
    first, second = (checkpoint_path(training.directory.checkpoints, step) for step in (1, 2))
    assert training.what_is_saved() == f"nothing was saved of {tmp_path / 'id2'}"
    with pytest.raises(CheckpointError, match=r"No checkpoint was saved before it: .*, and start"), writing(first):
        raise OSError("full")
    first.mkdir(parents=True)
    goes_on = "--resume auto --id 2 goes on from"
    with pytest.raises(CheckpointError, match=f"as they were: .*, and {goes_on} the last"), writing(second):
        raise OSError("full")
    training.writer = CheckpointWriter(training.directory.checkpoints, keep=1)
    assert training.what_is_saved() == f"what was saved before is whole, {goes_on} it"
    assert resume_arguments(tmp_path / "id0") == resume_arguments(tmp_path / "run") == "--resume auto"
