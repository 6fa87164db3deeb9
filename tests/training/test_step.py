"""A step waits for the device once, and refuses what isn't finite with what it read then."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adatad.memory.inputs import InputCopies
from adatad.memory.meta import MetaResults, gpu_like_meta
from adatad.parallel import ddp
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training.loaders import TargetMaker, training_loader
from adatad.training.metered import meta_parts, random_batch
from adatad.training.resolve import resolve_run
from adatad.training.setup import initial_state
from adatad.training.step import batch_targets, train_step

TINY = [
    "data.window.size_grid=32", "data.size_pixels=32", "model.detector.width=32", "model.detector.max_length=32",
    "model.backbone.depth=2", "model.backbone.width=96", "model.backbone.heads=2", "train.global_batch=2",
]  # fmt: skip
POLICIES = {
    "block, two micro-batches": ["memory.policy=block", "train.accumulation=2"],
    "tile, all on the host": [
        "memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=1",
        *(f"memory.{what}=host" for what in ("saved_inputs", "halos", "optimizer_state", "moving_average")),
    ],
}  # fmt: skip


class Reads(TorchDispatchMode):
    """Counts what takes values from the meta device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._run = MetaResults()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in ("_local_scalar_dense", "equal", "nonzero") and args[0].is_meta:
            self.count[name] += 1
        return self._run(operator, args, kwargs or {})


@pytest.mark.parametrize("policy", POLICIES)
def test_the_host_reads_the_norm_and_all_losses_at_once(monkeypatch, policy):
    spec = load("configs/thumos/s_768x160_adapter.yaml", [*TINY, *POLICIES[policy]], check_files=False)
    read = []
    real = ddp.read_together
    monkeypatch.setattr(ddp, "read_together", lambda *tensors: read.append(tensors) or real(*tensors))
    with gpu_like_meta(), Reads() as reads:
        parts = meta_parts(spec)
        windows = spec.train.global_batch // spec.train.accumulation
        batch = random_batch(spec, windows, 20, torch.device("meta"))
        values = train_step(parts, [batch] * spec.train.accumulation, step=1)
    assert not reads.count
    ((norm, losses),) = read
    assert (norm.shape, losses.shape, losses.dtype) == ((), (3,), torch.float64)
    assert values["applied"]


def test_values_are_sums_over_micro_batches_in_float64(tiny_spec):
    values, costs = {}, []
    for accumulation in (1, 2):
        spec = load(tiny_spec, [f"train.accumulation={accumulation}"])
        processes = Processes(0, 1, torch.device("cpu"))
        parts = initial_state(resolve_run(spec, processes), processes)
        backward = parts.engine.backward
        parts.engine.backward = lambda loss, run=backward: (costs.append(float(loss.detach())), run(loss))
        batches = iter(training_loader(parts.run, (0, 0)))
        values[accumulation] = train_step(parts, [next(batches) for _ in range(accumulation)], 0)
    assert values[1]["cost"] == costs[0]
    assert values[2]["cost"] == costs[1] + costs[2]
    assert values[2]["cost"] == pytest.approx(values[1]["cost"], rel=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_with_the_targets_that_a_step_would_make(tiny_spec, workers):
    spec = load(tiny_spec, [f"data.workers={workers}"])
    processes = Processes(0, 1, torch.device("cpu"))
    parts = initial_state(resolve_run(spec, processes), processes)
    batch = next(iter(training_loader(parts.run, (0, 0))))
    assert batch_targets(parts, batch) is batch.targets
    detector = parts.model.detector
    own = TargetMaker(detector.spec, parts.run.num_classes).targets(batch)
    assert own.positive.sum() > 0
    assert all(torch.equal(one, other) for one, other in zip(batch.targets, own, strict=True))
    assert torch.equal(own.valid, torch.cat(detector.level_masks(batch.mask), dim=1))


def test_inputs_are_one_copy_and_no_buffer_is_written_to_twice_in_a_step():
    copies = InputCopies(torch.device("meta"))
    tensors = [torch.ones(3, 5, dtype=torch.bool), torch.rand(2, 7, 3), torch.arange(4)]
    sent = copies.send(tensors)
    assert [(t.shape, t.dtype, t.device.type) for t in sent] == [(t.shape, t.dtype, "meta") for t in tensors]
    assert len({id(t.untyped_storage()) for t in sent}) == 1
    (first,) = copies._used
    assert torch.equal(first[16 : 16 + 168].view(torch.float32).view(2, 7, 3), tensors[1])
    copies.send(tensors)
    second = copies._used[1]
    assert second is not first
    copies.next_step()
    copies.send(tensors)
    copies.send(tensors[:1])
    assert [id(buffer) for buffer in copies._used] == [id(first), id(second)], "nothing is pinned after the first step"
