"""What ranks of the tests of ZeRO do."""

from __future__ import annotations

from typing import Any

import numpy as np
from steps import Outcome, Run, numpy_of


def hand_over(spec_file: str, chain: list[list[str]], steps_each: int) -> Outcome:
    """One training whose every few steps another engine does, from what the one before would write to a file."""
    from adatad.parallel.processes import start_processes
    from adatad.training.state_io import full_tensors, load_full_tensors

    values, saved, start = [], None, {}
    with start_processes() as processes:
        for number, overrides in enumerate(chain):
            run = Run(spec_file, overrides, processes)
            if saved is None:
                start = run.whole_parameters()
            else:
                tensors, run.parts.normalizer.value = saved
                load_full_tensors(run.parts, *tensors)
            run.done = number * steps_each
            values += run.train(steps_each)
            whole = full_tensors(run.parts)
            assert processes.is_main == bool(whole[0])
            assert all(tensor.device.type == "cpu" for tensor in whole[0].values())
            saved = processes.gather(whole)[0], run.parts.normalizer.value
        averages = numpy_of(run.parts.engine.gather_full(run.parts.ema.averages))
        return Outcome(values, start, run.whole_parameters(), averages)


def refuse_steps(spec_file: str, cases: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Norms of a step, of one with NaN on the last rank, of one with a loss of NaN there, and of one more; and whether
    the middle two changed parameters and moments."""
    from adatad.parallel.processes import start_processes

    with start_processes() as processes:
        return {name: _refuse_steps(Run(spec_file, overrides, processes)) for name, overrides in cases.items()}


def _refuse_steps(run: Run) -> dict[str, Any]:
    import torch

    from adatad.training.loaders import training_loader
    from adatad.training.state_io import full_tensors
    from adatad.training.step import batch_targets, forward

    run.parts.engine.model.train()
    batches = iter(training_loader(run.parts.run, (0, 0)))
    last_rank = run.processes.rank == run.processes.world - 1

    def step(factor: float, loss: float = 1.0) -> float:
        batch = next(batches)
        with run.parts.engine.micro_batch(last=True):
            cost = forward(run.parts, batch, batch_targets(run.parts, batch), 10.0)["cost"]
            run.parts.engine.backward(cost * factor)
        norm, sums = run.parts.engine.update(0.5, torch.tensor([loss, 2.0], dtype=torch.float64))
        assert sums[1] == 2.0 * run.processes.world
        return norm

    for group in run.parts.engine.groups:
        group["lr"] = 1e-3
    first = step(1.0)
    before = full_tensors(run.parts)
    norms = [first, step(float("nan") if last_rank else 1.0), step(1.0, float("nan") if last_rank else 1.0)]
    after = full_tensors(run.parts)
    norms.append(step(1.0))
    same = [np.array_equal(a, b) for a, b in zip(_flat(before), _flat(after), strict=True)]
    return {"norms": norms, "unchanged": all(same), "compared": len(same), "end": run.whole_parameters()}


def _flat(whole: tuple[dict, dict, dict]) -> list[np.ndarray]:
    parameters, _, optimizer = whole
    return [t.numpy() for t in parameters.values()] + [t.numpy() for ts in optimizer.values() for t in ts.values()]


def hold_averages(spec_file: str, overrides: list[str]) -> dict[str, Any]:
    """Outputs of the model with its own parameters, while it holds others, and afterwards; and all steps' values."""
    import torch

    from adatad.parallel.processes import start_processes

    with start_processes() as processes:
        run = Run(spec_file, overrides, processes)
        values = run.train(2)
        frames = torch.randint(0, 255, (1, 3, 32, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
        mask = torch.ones(1, 32, dtype=torch.bool)

        def output() -> np.ndarray:
            run.parts.engine.model.eval()
            with torch.no_grad():
                logits = run.parts.engine.model(frames, mask).logits[0].numpy().copy()
            run.parts.engine.model.train()
            return logits

        own = output()
        with run.parts.engine.swapped_parameters(run.parts.ema.averages):
            held = output()
        return {"own": own, "held": held, "back": output(), "values": values + run.train(2)}


def watch_gathered(spec_file: str, overrides: list[str], steps: int) -> dict[str, Any]:
    """Bytes of frozen weights that are whole: at most, at any operation of any step; and after the last."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from torch.utils._python_dispatch import TorchDispatchMode

    from adatad.parallel.processes import start_processes

    with start_processes() as processes:
        run = Run(spec_file, overrides, processes)
        frozen = [(n, p) for n, p in run.parts.model.named_parameters() if not p.requires_grad]
        size = {name: p.ds_numel * p.element_size() for name, p in frozen}

        def held() -> int:
            return sum(size[name] for name, p in frozen if p.ds_status != ZeroParamStatus.NOT_AVAILABLE)

        samples = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                samples.append(held())
                return function(*args, **(kwargs or {}))

        with Watch():
            run.train(steps)
        block = sum(bytes_ for name, bytes_ in size.items() if name.startswith("backbone.blocks.0."))
        return {
            "peak": max(samples), "after": held(), "block": block, "all": sum(size.values()),
            "root": sum(bytes_ for name, bytes_ in size.items() if ".blocks." not in name),
        }  # fmt: skip
