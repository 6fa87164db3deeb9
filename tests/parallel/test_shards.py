"""Checkpoints of which every rank writes its part: any engine on any number of ranks goes on from them."""

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from tiny_spec import TINY_SPEC

from adatad.spec import load
from adatad.training.checkpoint import MANIFEST, Checkpoint, all_checkpoints, is_sharded, read_checkpoint, why_broken
from adatad.training.run_directory import run_directory
from adatad.training.signals import EXIT_CODE_RESUME

FULL = [
    "model.backbone.mode=full", "optimizer.backbone={lr: 1e-3, custom: []}", "schedule.epochs=2",
    "train.evaluate_every_epochs=9", "train.keep_checkpoints=6",
]  # fmt: skip


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


def last(spec_file: str) -> tuple[Path, Checkpoint]:
    path = all_checkpoints(run_directory(load(spec_file, FULL)).checkpoints)[-1]
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


COURSES = {
    "fewer ranks, another engine": ((2, "fsdp", 2), (1, "fsdp", 1), (2, "zero2", 1)),
    "more ranks, and a rank alone": ((2, "fsdp", 1), (1, "fsdp", 1), (2, "fsdp", 1), (1, "ddp", 1)),
}
"""Ranks, engine and steps of the attempts of a run before its last."""
# The second course only joins the parts as the first does, for ranks and engines that take whole tensors alike.
LONG = [name if number == 0 else pytest.param(name, marks=pytest.mark.full) for number, name in enumerate(COURSES)]


@pytest.fixture(scope="module")
def alone(tiny_data, tmp_path_factory) -> list[Checkpoint]:
    """All checkpoints of a run on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    spec = folder / "tiny.yaml"
    spec.write_text(TINY_SPEC.format(data=tiny_data, runs=folder / "runs"))
    run_ranks(1, run_to_the_end, str(spec), FULL)
    return [read_checkpoint(path) for path in all_checkpoints(run_directory(load(spec, FULL)).checkpoints)]


@pytest.mark.slow
@pytest.mark.parametrize("course", LONG)
def test_a_fully_trained_model_goes_on_from_parts_on_any_engine(course, tiny_spec, alone):
    spec = str(tiny_spec)
    start, truth = alone[0], alone[-1]
    assert start.state["progress"]["step"] == 1
    for world, engine, steps in (*COURSES[course], (2, "fsdp", None)):
        run_ranks(world, run_to_the_end, spec, [*FULL, f"parallel.engine={engine}"], steps)
        path, ours = last(spec)
        assert is_sharded(path) == (engine == "fsdp")
    parts = [name for name in json.loads((path / MANIFEST).read_text()) if name.endswith(".safetensors")]
    assert len(parts) == 2
    assert ours.state["progress"]["step"] == truth.state["progress"]["step"]
    assert difference(ours, truth, start) < 1e-5
    (path / parts[1]).write_bytes((path / parts[1]).read_bytes()[:-1])
    assert "shards/" in why_broken(path)
