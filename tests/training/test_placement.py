"""A run whose state waits in host memory ends with the same bits as one that keeps all on the device."""

import torch
from interrupted import train_until_interrupted

from adatad.spec import load
from adatad.training.checkpoint import Checkpoint, all_checkpoints, read_checkpoint
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.score import score_checkpoint

TILE = ["memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=1", "memory.order=blocks"]
HOST = [
    "memory.saved_inputs=host", "memory.halos=host", "memory.frames=host", "memory.optimizer_state=host",
    "memory.moving_average=host", "memory.frozen_weights=stream",
]  # fmt: skip


def end_of(spec) -> Checkpoint:
    return read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1])


def test_everything_on_the_host_trains_resumes_and_scores_as_on_the_device(tiny_spec, monkeypatch):
    usual = [*TILE, "train.evaluate_every_epochs=3"]
    plain, placed = load(tiny_spec, [*usual, "run.id=1"]), load(tiny_spec, [*usual, *HOST, "run.id=2"])
    expected_result = train(plain)
    expected = end_of(plain)
    train_until_interrupted(placed, 4, monkeypatch)
    result = train(placed, resume="auto")
    ours = end_of(placed)
    for mine, theirs in ((ours.parameters, expected.parameters), (ours.ema, expected.ema)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for name, tensors in expected.optimizer.items():
        assert all(torch.equal(ours.optimizer[name][key], tensor) for key, tensor in tensors.items())
    assert result["ap_per_class"] == expected_result["ap_per_class"]
    last = all_checkpoints(run_directory(placed).checkpoints)[-1]
    assert score_checkpoint(placed, last)["mAP"] == expected_result["mAP"]
