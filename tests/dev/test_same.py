"""Two runs are compared bit for bit, and what differs is named."""

import json
import math

import pytest
import torch
import torch.distributed as dist
from tiny_spec import saved_state

from adatad.dev.same import same
from adatad.errors import UserError
from adatad.training.checkpoint import Checkpoint, CheckpointWriter, checkpoint_path, write_checkpoint

STEP, UP, SCALE = 3, "backbone.blocks.0.adapter.up.weight", "detector.head.scales.0"


def some_checkpoint() -> Checkpoint:
    draw = torch.Generator().manual_seed(0)
    weights = {UP: torch.randn(3, 2, generator=draw), SCALE: torch.tensor(1.5)}
    averages = {name: t + 1 for name, t in weights.items()}
    moments = {
        name: {"exp_avg": t * 0.1, "exp_avg_sq": t**2, "step": torch.tensor(float(STEP))} for name, t in weights.items()
    }
    return Checkpoint(weights, averages, moments, saved_state(STEP), "name: x\n")


def losses(**changes: float) -> list[dict[str, object]]:
    lines = [
        {"kind": "train", "step": step, "epoch": 0, "loss": 1.0 / step, "lr": {"detector": 1e-3}, "step_seconds": 0.1}
        for step in range(1, STEP + 1)
    ]
    lines[1].update(changes)
    return lines


def write_files(run, lines=None, score=0.5, average_map=0.25):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines or losses()))
    detections = {"results": {"v": [{"segment": [1.0, 2.0], "label": "spin", "score": score}]}}
    (run / "detections.json").write_text(json.dumps(detections))
    (run / "result.json").write_text(json.dumps({"average_mAP": average_map, "seconds": 1.0}))


@pytest.fixture
def make_run(tmp_path):
    def make(name, checkpoint=None, **files):
        run = tmp_path / name
        write_checkpoint(checkpoint_path(run / "checkpoints", STEP), checkpoint or some_checkpoint())
        write_files(run, **files)
        return run

    return make


def test_losses_of_a_run_of_an_earlier_version_are_compared_by_their_names_of_today(make_run):
    older = [{{"loss": "cost"}.get(key, key): value for key, value in line.items()} for line in losses()]
    assert same(make_run("a"), make_run("b", lines=older)).is_identical


def differences(comparison):
    return {part.name: [d.name for d in part.differences] for part in comparison.parts if part.differences}


def flip_last_bit(tensor, index):
    """Change one float32 value by its last bit."""
    tensor.view(-1).view(torch.int32)[index] ^= 1


def test_equal_runs_are_equal_whatever_their_clocks_say(make_run, run_command):
    checkpoint = some_checkpoint()
    checkpoint.state["progress"]["seconds"] = 9.0
    a, b = make_run("a"), make_run("b", checkpoint, lines=losses(step_seconds=7.0, memory_bytes=1))
    comparison = same(a, b)
    assert comparison.is_identical
    assert comparison.is_equal
    assert {part.name: part.values for part in comparison.parts if part.name in ("weights", "optimizer")} == {
        "weights": 7, "optimizer": 16,
    }  # fmt: skip
    assert all(part.values for part in comparison.parts)
    done = run_command("dev same", str(a), str(b))
    assert (done.returncode, "every bit" in done.stdout) == (0, True)


@pytest.mark.parametrize("part", ["weights", "averages", "optimizer"])
def test_one_bit_of_a_tensor_is_found(make_run, part, run_command):
    changed = some_checkpoint()
    tensors = {"weights": changed.parameters, "averages": changed.ema, "optimizer": changed.optimizer[UP]}[part]
    name = "exp_avg" if part == "optimizer" else UP
    flip_last_bit(tensors[name], 4)
    a, b = make_run("a"), make_run("b", changed)
    comparison = same(a, b)
    assert differences(comparison) == {part: [f"{UP}/exp_avg" if part == "optimizer" else UP]}
    found = next(p.differences[0] for p in comparison.parts if p.differences)
    assert found.values == 1
    assert 0 < found.absolute < 1e-6
    assert 0 < found.relative < 1e-6
    assert not comparison.is_equal
    assert same(a, b, within=1e-6).is_equal
    assert not same(a, b, within=1e-12).is_equal
    done = run_command("dev same", str(a), str(b))
    assert (done.returncode, name in done.stdout) == (1, True)


def test_the_sign_of_zero_is_a_difference(make_run):
    runs = []
    for sign in (0.0, -0.0):
        checkpoint = some_checkpoint()
        checkpoint.parameters[SCALE] = torch.tensor(sign)
        runs.append(make_run(f"zero{sign}", checkpoint))
    comparison = same(*runs)
    assert differences(comparison) == {"weights": [SCALE]}
    assert same(*runs, within=1e-6).is_equal


def test_the_first_step_whose_loss_differs_comes_first(make_run):
    changed = losses(loss=math.nextafter(0.5, 1))
    changed[2]["lr"] = {"detector": 2e-3}
    comparison = same(make_run("a"), make_run("b", lines=changed))
    assert differences(comparison) == {"metrics": ["step 2 train loss", "step 3 train lr/detector"]}


def test_losses_that_are_not_numbers_equal_themselves(make_run):
    a, b = (make_run(name, lines=losses(loss=math.nan)) for name in "ab")
    assert same(a, b).is_identical
    assert math.isinf(same(a, make_run("c")).parts[4].differences[0].relative)


def test_the_last_line_of_a_repeated_step_counts(make_run):
    lines = losses()
    assert same(make_run("a"), make_run("b", lines=[*lines[:2], {**lines[1], "cost": 9.0}, *lines[1:]])).is_identical


def test_detection_scores_and_map_are_compared(make_run):
    comparison = same(make_run("a"), make_run("b", score=0.5001, average_map=0.26))
    assert differences(comparison) == {"detections": ["results/v/0/score"], "mAP": ["average_mAP"]}


def test_a_video_without_detections_is_not_a_missing_video_and_its_name_is_not_ignored(make_run):
    a, b, c = (make_run(name) for name in "abc")
    for run, results in ((a, {}), (b, {"v_seconds": []}), (c, {"v_seconds": [{"score": 0.5}]})):
        (run / "detections.json").write_text(json.dumps({"results": results}))
    assert "detections" in differences(same(a, b))
    assert "detections" in differences(same(b, c))


def test_missing_tensors_steps_and_detections_are_differences(make_run):
    smaller = some_checkpoint()
    for tensors in (smaller.parameters, smaller.ema, smaller.optimizer):
        del tensors[SCALE]
    a, b = make_run("a"), make_run("b", smaller, lines=losses()[:2])
    (b / "detections.json").unlink()
    found = differences(same(a, b, within=1.0))
    assert found["weights"] == found["averages"] == [SCALE]
    assert "step 3 train loss" in found["metrics"]
    assert len(found["detections"]) == 4
    assert not same(a, b, within=1.0).is_equal


def test_another_shape_is_a_difference(make_run):
    other = some_checkpoint()
    for tensors in (other.parameters, other.ema, other.optimizer[UP]):
        tensors.update({name: t.reshape(2, 3) for name, t in tensors.items() if t.ndim == 2})
    assert differences(same(make_run("a"), make_run("b", other)))["weights"] == [UP]


def test_a_sharded_checkpoint_is_compared_with_a_whole_one(make_run, tmp_path):
    checkpoint, run = some_checkpoint(), tmp_path / "sharded"
    tensors = {name: t for name, t in checkpoint.tensors().items() if not name.endswith("/step")}
    shapes = {name: list(t.shape) for name, t in tensors.items()}
    # A shard has a dimension where a number has none.
    parts = {name: t.reshape(t.shape or 1).clone() for name, t in tensors.items()}
    flip_last_bit(parts[f"parameters/{UP}"], 0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        writer = CheckpointWriter(run / "checkpoints", keep=1)
        writer.submit_shards(STEP, parts, shapes, {**checkpoint.state, "optimizer_step": float(STEP)}, "name: x\n")
        writer.wait()
    finally:
        dist.destroy_process_group()
    write_files(run)
    assert differences(same(make_run("whole"), run)) == {"weights": [UP]}


def test_runs_that_cannot_be_compared_are_refused_with_their_names(make_run, tmp_path):
    a, later = make_run("a"), tmp_path / "later"
    (later / "checkpoints").mkdir(parents=True)
    write_files(later)
    newer = some_checkpoint()
    newer.state["progress"].update(step=STEP + 1, step_in_epoch=STEP + 1)
    with pytest.raises(UserError, match=r"later: has no checkpoint"):
        same(a, later)
    write_checkpoint(checkpoint_path(later / "checkpoints", STEP + 1), newer)
    with pytest.raises(UserError, match=r"a .*step 3, .*later .*step 4"):
        same(a, later)
    with pytest.raises(UserError, match="nowhere: is no run"):
        same(a, tmp_path / "nowhere")
    with pytest.raises(UserError, match="two runs"):
        same(a, a)
    (later / "metrics.jsonl").write_text('{"cost": 1.0}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1"):
        same(a, later)
    weights = later / "checkpoints" / f"step-{STEP + 1:08d}" / "parameters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"parameters\.safetensors"):
        same(a, later)
