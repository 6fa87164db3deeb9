"""Equal numbers from equal runs: kernels that sum in one order, and steps that are computed twice and compared."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from adatad.data.dataset import Batch
from adatad.errors import UserError
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.spec.schema import TrainSpec
from adatad.training.resolve import precision_on
from adatad.training.setup import TrainState

CUBLAS_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Environment variable that torch asks for before a deterministic product on a GPU; it looks once, at a process's first
such product."""


def is_deterministic(train: TrainSpec, device: torch.device) -> bool:
    """Return whether a run's kernels sum in one order: what `train.deterministic` says; where it's null, on CPUs
    alone."""
    return device.type == "cpu" if train.deterministic is None else train.deterministic


@contextmanager
def run_arithmetic(train: TrainSpec, device: torch.device) -> Iterator[None]:
    """Set kernels and precision as a run's spec asks for; entered before its first product on a GPU. Raises UserError
    where a kernel that sums in one order is wanted and torch has none."""
    with ExitStack() as stack:
        if device.type == "cuda" and (train.deterministic or train.recheck_every):
            # A user's own workspace setting stays: torch says if it isn't one of the deterministic ones.
            variables = {name: value for name, value in CUBLAS_WORKSPACE.items() if name not in os.environ}
            stack.enter_context(patch.dict(os.environ, variables))
        if precision_on(device, train.precision) == "fp32":
            stack.enter_context(full_float32())
        if is_deterministic(train, device):
            stack.enter_context(deterministic_kernels("train.deterministic"))
        yield


@contextmanager
def deterministic_kernels(key: str) -> Iterator[None]:
    """Allow only kernels that sum in one order. Raises UserError, which names the spec's key, where torch has none."""
    settings = torch.utils.deterministic
    before, fills = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    # With `warn_only` flash attention would go on adding in any order.
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it is written, and filling it takes a launch for each tensor.
    settings.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{key} can't be used on this device: {line}; leave it out") from error
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = fills


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute convolutions and products of float32 without TF32, which keeps 10 of the 23 bits of a factor's
    fraction."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type that shows the bits of a number, by its bytes."""
MAX_LISTED_RANKS = 4


class DataCorruptionError(UserError):
    """Two computations of one step differ; the message names rank, host, device and what differs."""


class StepDifference(NamedTuple):
    """A difference between two computations of a step on one rank."""

    where: str
    """Rank, host and device."""
    own: bool
    """True if it differs in what this rank computed alone, before gradients are exchanged."""
    facts: str
    """Description of what differs."""


def is_due(state: TrainState, step: int) -> bool:
    """Return whether a step is computed twice: the first after a start, on whatever machine that is, and every n-th."""
    every = state.spec.train.recheck_every
    # A planner that counts a step without computing it has nothing to compare.
    return bool(every) and state.processes.device.type != "meta" and (step % every == 0 or state.constant_sums is None)


def compute_twice(
    state: TrainState, compute: Callable[[list[Batch]], Tensor], micro_batches: list[Batch], step: int
) -> Tensor:
    """Compute losses and, in the engine, gradients of a step twice, and compare them bit by bit.

    compute: runs forward and backward passes of all micro-batches. Returns this rank's losses [n], the one that is
    differentiated last. Raises DataCorruptionError on all ranks alike.
    """
    engine, processes = state.engine, state.processes
    # A copy before anything is computed: augmentation may change frames in place.
    again = [batch._replace(frames=batch.frames.clone()) for batch in micro_batches]
    before = state.constant_sums or constant_sums(state)
    # All kernels of a CPU sum in one order already.
    on_gpu = processes.device.type == "cuda"
    with deterministic_kernels("train.recheck_every") if on_gpu else nullcontext():
        with recorded_gradient_sums(state.model) as own_before:
            losses = compute(micro_batches)
        # In host memory: the device has room for one set of gradients.
        gradients = {name: tensor.to("cpu", copy=True) for name, tensor in engine.gradients().items()}
        engine.clear_gradients()
        with recorded_gradient_sums(state.model) as own_after:
            losses_again = compute(again)
    constants = changed_constants(before, constant_sums(state))
    changed = changed_losses(losses.tolist(), losses_again.tolist())
    own = bool(constants or changed) or sums_as_numbers(own_before) != sums_as_numbers(own_after)
    # After the exchange every rank has the sum: it shows errors of links too, but not whose they are.
    exchanged = changed_gradients(gradients, engine.gradients())
    facts = ", ".join([*constants, *changed, *exchanged])
    mine = StepDifference(describe_place(processes), own, facts or "its own gradients") if own or facts else None
    # One exchange on every rank, and a second one only if all are told that it comes.
    if processes.any(mine is not None):
        found = [difference for difference in processes.gather(mine) if difference is not None]
        raise DataCorruptionError(corruption_message(found, step, state.spec))
    state.constant_sums = before
    return losses


def changed_losses(one: list[float], other: list[float]) -> list[str]:
    """Return a line on losses that differ; [] if they are equal."""
    # NaN isn't equal to itself, but the same result here.
    same = all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True))
    return [] if same else [f"loss {one[-1]!r}, then {other[-1]!r}"]


def changed_gradients(before: dict[str, Tensor], now: dict[str, Tensor]) -> list[str]:
    """Return a line on gradients whose bits differ; [] if none do. before: in host memory."""
    both = [name for name in before if name in now]
    changed = [name for name in before if name not in now] + [name for name in now if name not in before]
    changed += [name for name in both if not same_bits(before[name].to(now[name].device), now[name])]
    if not changed:
        return []
    sizes = [largest_difference(before[name], now[name].cpu()) for name in changed if name in both]
    finite = [size for size in sizes if math.isfinite(size)]
    by = f"by up to {max(finite):.3g}" if len(finite) == len(sizes) > 0 else "by more than any number"
    names = f"{changed[0]} (the first of {len(changed)}, of {len(before)})" if len(changed) > 1 else changed[0]
    return [f"the gradient of {names} {by}"]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape and bits."""
    return one.shape == other.shape and torch.equal(bits(one), bits(other))


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference of two tensors' numbers; infinity if their shapes differ."""
    if one.shape != other.shape:
        return math.inf
    difference = (one.double() - other.double()).abs()
    return float(difference.max()) if difference.numel() else 0.0


def bits(tensor: Tensor) -> Tensor:
    """Return the same memory as whole numbers: -0 isn't 0 there, and NaN is itself."""
    return tensor.detach().contiguous().view(BITS[tensor.element_size()])


def bit_sum(tensor: Tensor) -> Tensor:
    """Return a sum that any single flipped bit changes, in any order of summation: int64 []."""
    return bits(tensor).sum(dtype=torch.int64)


@contextmanager
def recorded_gradient_sums(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record bit sums of the gradients as this rank computes them, before any exchange, by parameter and micro-batch.

    Yields a mapping that is filled during backward passes; it stays empty where an engine puts other tensors in the
    parameters' place.
    """
    sums: dict[str, list[Tensor]] = {}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # A hook of the tensor sees each gradient before it is added to .grad, and before DDP's own hook exchanges it. Sums
    # stay on the device: reading them would make the host wait in the middle of the backward pass.
    hooks = [
        parameter.register_hook(lambda gradient, name=name: sums.setdefault(name, []).append(bit_sum(gradient)))
        for name, parameter in trained
    ]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def sums_as_numbers(sums: dict[str, list[Tensor]]) -> dict[str, list[int]]:
    """Read recorded sums from the device."""
    return {name: [int(value) for value in values] for name, values in sums.items()}


def constant_sums(state: TrainState) -> dict[str, int]:
    """Return bit sums of all that training never changes, by name: frozen weights, where this rank holds them in full
    on its device, and the model's tables."""
    # Other engines may shard frozen weights.
    if state.spec.parallel.engine != "ddp":
        return {}
    constants = [(name, p) for name, p in state.model.named_parameters() if not p.requires_grad]
    sums = [(name, bit_sum(tensor)) for name, tensor in (*constants, *state.model.named_buffers())]
    return {name: int(value) for name, value in sums}


def changed_constants(before: dict[str, int], now: dict[str, int]) -> list[str]:
    """Return a line on constants whose bit sums differ; [] if none do."""
    changed = [name for name in before if before[name] != now[name]]
    if not changed:
        return []
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return [f"{changed[0]}{more}, which training never changes, isn't what it was"]


def corruption_message(found: list[StepDifference], step: int, spec: Spec) -> str:
    """Return the message of a DataCorruptionError, with the ranks to blame and what to do."""
    # Exchanged gradients are sums over ranks and differ everywhere: ranks whose own part differs are to blame, if any.
    own = [difference for difference in found if difference.own]
    blamed = own or found
    listed = "; ".join(f"on {difference.where}: {difference.facts}" for difference in blamed[:MAX_LISTED_RANKS])
    more = f"; and on {len(blamed) - MAX_LISTED_RANKS} more ranks" if len(blamed) > MAX_LISTED_RANKS else ""
    several = len(found) > 1
    if len(own) == 1 or not several:
        advice = "take this GPU (or this machine's memory) out"
    elif own:
        advice = "ranks that share windows pass errors on: test each of these GPUs, and take the bad one out"
    else:
        advice = "no rank's own part tells which of them erred: test each GPU and their links, and take the bad one out"
    every = spec.train.recheck_every
    return (
        f"silent data corruption: step {step} was computed twice and differs {listed}{more}. The step wasn't applied "
        f"and nothing of it is saved; {advice}, and go on with --resume elsewhere. The last step that was compared "
        f"before is {max(step - every, 0)} or later (train.recheck_every {every}): a checkpoint of then is safest"
    )


def describe_place(processes: Processes) -> str:
    """Return rank, host and device of this process; of a GPU with its UUID, by which an operator finds it."""
    device = str(processes.device)
    if processes.device.type == "cuda":
        facts = torch.cuda.get_device_properties(processes.device)
        device += f" {facts.name} {getattr(facts, 'uuid', '')}".rstrip()
    return f"rank {processes.rank}, host {socket.gethostname()}, device {device}"
