"""Checkpoints of which every rank writes its part: any engine on any number of ranks goes on from them."""

import json

import pytest
import torch
from ranks import run_ranks

from adatad.spec import load
from adatad.training.checkpoint import MANIFEST, all_checkpoints, is_sharded, read_checkpoint, why_broken
from adatad.training.run_directory import run_directory
from adatad.training.signals import EXIT_CODE_RESUME

FULL = ["model.backbone.mode=full", "optimizer.backbone={lr: 1e-3, custom: []}", "train.evaluate_every_epochs=9"]


def run_to_the_end(spec_file: str, overrides: list[str], stop_after: int | None = None) -> None:
    """A run as tools/train.py makes it, resumed where it can be; it leaves after so many more steps."""
    import os
    import signal

    import adatad.training.loop as loop
    from adatad.training.run import train

    real, steps = loop.train_step, []

    def counted(*arguments):
        steps.append(1)
        if len(steps) == stop_after:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(*arguments)

    loop.train_step = counted
    try:
        train(load(spec_file, overrides), resume="auto")
    except SystemExit as left:
        if left.code != EXIT_CODE_RESUME:
            raise


def last(spec_file, overrides):
    path = all_checkpoints(run_directory(load(spec_file, overrides)).checkpoints)[-1]
    return path, read_checkpoint(path)


def difference(ours, truth, start) -> float:
    def joint(pairs):
        return torch.stack([(a - b).double().norm() for a, b in pairs]).norm()

    names = [name for name in truth.parameters if not name.endswith(("attn.key.bias", "attn.key_norm.bias"))]
    change = joint((truth.parameters[n], start.parameters[n]) for n in names)
    return max(
        float(joint((a[n], b[n]) for n in names) / change)
        for a, b in ((ours.parameters, truth.parameters), (ours.ema, truth.ema))
    )


@pytest.mark.slow
def test_a_fully_trained_model_goes_on_from_parts_on_any_engine(tiny_spec):
    spec, alone = str(tiny_spec), [*FULL, "run.id=1"]
    run_ranks(1, run_to_the_end, spec, alone)
    _, truth = last(spec, alone)
    run_ranks(1, run_to_the_end, spec, [*FULL, "run.id=2"], 1)
    _, start = last(spec, [*FULL, "run.id=2"])
    split = [*FULL, "run.id=3"]
    course = ((2, "fsdp", 2), (1, "fsdp", 1), (2, "fsdp", 1), (1, "ddp", 1), (2, "fsdp", 1), (2, "zero2", 1))
    for world, engine, steps in (*course, (2, "fsdp", None)):
        run_ranks(world, run_to_the_end, spec, [*split, f"parallel.engine={engine}"], steps)
        path, _ = last(spec, split)
        assert is_sharded(path) == (engine == "fsdp")
    path, ours = last(spec, split)
    parts = [name for name in json.loads((path / MANIFEST).read_text()) if name.endswith(".safetensors")]
    assert len(parts) == 2
    assert ours.state["progress"]["step"] == truth.state["progress"]["step"]
    assert difference(ours, truth, start) < 1e-5
    (path / parts[1]).write_bytes((path / parts[1]).read_bytes()[:-1])
    assert "shards/" in why_broken(path)
