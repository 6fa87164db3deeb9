"""Steps that are computed twice: a planted flip of one bit ends the run before its step, and nothing else changes."""

from types import SimpleNamespace

import pytest
import torch

from adatad.errors import UserError
from adatad.parallel.processes import Processes
from adatad.spec import SpecError, load
from adatad.training import determinism
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.determinism import (
    DataCorruptionError,
    StepDifference,
    bit_sum,
    corruption_message,
    is_due,
    same_bits,
)
from adatad.training.loaders import training_loader
from adatad.training.resolve import resolve_run
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.setup import initial_state
from adatad.training.step import train_step

POLICIES = {
    "none": ["memory.policy=none"],
    "block": ["memory.policy=block"],
    "tile": ["memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=1"],
    "side": ["model.backbone.mode=side"],
    "two micro-batches": ["train.accumulation=2"],
    "augmented": ["data.augment.flip=0.5", "data.augment.crop_short_side_pixels=40"],
}


def flip_bit(tensor: torch.Tensor, bit: int = 22) -> None:
    """Flip a bit of the largest number, by default the highest of its fraction."""
    values = tensor.detach().view(-1)
    values.view(torch.int32)[int(values.abs().argmax())] ^= 1 << bit


def between_the_two(monkeypatch, parts, fault) -> None:
    """Let the fault happen after the first computation of a step."""
    real = parts.engine.clear_gradients

    def clear_gradients():
        real()
        fault()

    monkeypatch.setattr(parts.engine, "clear_gradients", clear_gradients)


def parts_of(spec_file, *overrides):
    spec = load(spec_file, ["train.recheck_every=2", *overrides])
    processes = Processes(0, 1, torch.device("cpu"))
    parts = initial_state(resolve_run(spec, processes), processes)
    parts.engine.model.train()
    batches = iter(training_loader(parts.run, (0, 0)))
    return parts, lambda: [next(batches) for _ in range(spec.train.accumulation)]


def frozen_weight(parts):
    return next(p for name, p in parts.model.named_parameters() if name.endswith("blocks.0.mlp.fc1.weight"))


def flip_activation(parts):
    """Flip a value of the next forward pass, once: a logit of the first position, which no mask or dropout hides."""

    def hook(module, inputs, logits):
        handle.remove()
        logits = logits.clone()
        flip_bit(logits[:1, :1, :1], bit=30)
        return logits

    handle = parts.model.detector.head.cls_head.register_forward_hook(hook)


def flip_gradient(parts):
    """Flip a bit in the gradient of the class head's weight, once."""

    def hook(gradient):
        handle.remove()
        gradient = gradient.clone()
        flip_bit(gradient)
        return gradient

    handle = parts.model.detector.head.cls_head.weight.register_hook(hook)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_flipped_bit_ends_the_run_before_its_step(tiny_spec, monkeypatch, policy):
    parts, batches = parts_of(tiny_spec, *POLICIES[policy])
    train_step(parts, batches(), 0)
    weights = {name: tensor.clone() for name, tensor in parts.engine.master_parameters().items()}
    same = batches()
    for plant, says in (
        (lambda: flip_activation(parts), "loss "),
        (lambda: flip_gradient(parts), "the gradient of "),
        (lambda: flip_bit(frozen_weight(parts)), "which training never changes, isn't what it was"),
    ):
        again = [batch._replace(frames=batch.frames.clone()) for batch in same]
        with monkeypatch.context() as patch:
            between_the_two(patch, parts, plant)
            with pytest.raises(DataCorruptionError, match=says) as error:
                train_step(parts, again, 2)
        assert "step 2 was computed twice and differs on rank 0, host " in str(error.value)
        assert "device cpu" in str(error.value)
        assert "\n" not in str(error.value)
        assert all(torch.equal(weights[name], tensor) for name, tensor in parts.engine.master_parameters().items())
        parts.engine.clear_gradients()


def test_a_frozen_weight_that_changed_since_the_last_comparison_is_found(tiny_spec):
    parts, batches = parts_of(tiny_spec)
    train_step(parts, batches(), 0)
    flip_bit(frozen_weight(parts), bit=0)
    train_step(parts, batches(), 1)
    with pytest.raises(DataCorruptionError, match=r"blocks\.0\.mlp\.fc1\.weight, which training never changes"):
        train_step(parts, batches(), 2)


def test_the_first_step_of_a_start_and_every_nth_are_computed_twice(tiny_spec, monkeypatch):
    parts, batches = parts_of(tiny_spec)
    twice = []
    between_the_two(monkeypatch, parts, lambda: twice.append(at))
    for at in range(1, 5):
        train_step(parts, batches(), at)
    assert twice == [1, 2, 4]
    assert not is_due(SimpleNamespace(spec=load(tiny_spec), constant_sums=None), 0)


ENGINES = {
    "ddp": ("ddp", POLICIES["augmented"]),
    "fsdp": ("fsdp", [*POLICIES["tile"], *POLICIES["two micro-batches"]]),
    "fairscale": ("fairscale", [*POLICIES["tile"], *POLICIES["two micro-batches"]]),
}


@pytest.mark.parametrize(("engine", "overrides"), ENGINES.values(), ids=ENGINES)
def test_a_run_that_compares_ends_with_the_same_bits(shared_spec, engine, overrides):
    ends = []
    for every in ("null", "1"):
        options = (*overrides, f"parallel.engine={engine}", f"train.recheck_every={every}")
        parts, batches = parts_of(shared_spec, *options)
        values = [train_step(parts, batches(), step)["gradient_norm"] for step in range(2)]
        ends.append((values, {name: tensor.clone() for name, tensor in parts.engine.master_parameters().items()}))
    assert ends[0][0] == ends[1][0]
    assert all(same_bits(ends[0][1][name], tensor) for name, tensor in ends[1][1].items())


def test_a_whole_run_stops_and_keeps_what_was_saved_before(tiny_spec, monkeypatch):
    spec = load(tiny_spec, ["train.recheck_every=2"])
    real = determinism.compute_twice

    def compute_twice(parts, compute, batches, step):
        if step == 2:
            between_the_two(monkeypatch, parts, lambda: flip_gradient(parts))
        return real(parts, compute, batches, step)

    monkeypatch.setattr("adatad.training.step.compute_twice", compute_twice)
    with pytest.raises(UserError, match=r"silent data corruption: step 2 .* take this GPU"):
        train(spec)
    newest = all_checkpoints(run_directory(spec).checkpoints)[-1]
    assert read_checkpoint(newest).state["progress"]["step"] == 2


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_engines_that_show_no_gradients_are_refused(tiny_spec, engine):
    with pytest.raises(SpecError, match=r"train\.recheck_every: engine zero\d shows no gradients"):
        load(tiny_spec, [f"parallel.engine={engine}", "train.recheck_every=5"])


def test_bits_are_compared_not_values():
    zeros, nan = torch.zeros(3), torch.tensor([float("nan")])
    assert not same_bits(zeros, -zeros)
    assert same_bits(nan, nan.clone())
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool):
        one = torch.ones(8).to(dtype)
        other = one.clone()
        other.view(torch.uint8)[3] ^= 1
        assert bit_sum(one) != bit_sum(other)


def test_ranks_are_blamed_by_what_they_computed_alone(tiny_spec):
    spec = load(tiny_spec, ["train.recheck_every=10"])
    exchanged = [
        StepDifference(f"rank {rank}, host h, device d", False, "the gradient of w by up to 1") for rank in (0, 1)
    ]
    guilty = exchanged[1]._replace(own=True)
    message = corruption_message([exchanged[0], guilty], 30, spec)
    assert "on rank 1" in message
    assert "rank 0" not in message
    assert "compared before is 20 or later" in message
    assert "no rank's own part tells" in corruption_message(exchanged, 30, spec)
    assert "share windows" in corruption_message([guilty, guilty], 30, spec)
