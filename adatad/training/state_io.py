"""A run's state on its way into a checkpoint and back: full tensors on the first rank, or each rank's own shards.

The engine has the values, in a layout of its own; `adatad.training.checkpoint` has the files. A full fine-tuning under
FSDP is saved in shards, since no rank may have room for all of it; everything else in full tensors, which any engine
can read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from adatad.spec import to_yaml
from adatad.training.checkpoint import Checkpoint, CheckpointWriter, read_own_shards
from adatad.training.checkpoint_check import MOMENTS, SHARDS, TENSOR_FILES, Progress, by_kind, by_name, split_name
from adatad.training.model_facts import FORMAT_VERSION, facts_of
from adatad.training.setup import TrainState


def submit_checkpoint(state: TrainState, progress: Progress, writer: CheckpointWriter) -> None:
    """Hand a checkpoint of this moment to the writer, which copies it before this returns. All ranks call it."""
    facts = facts_of(state.spec, state.run.annotations.classes)
    content = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(progress),
        "normalizer": state.normalizer.value,
        "scaler": state.engine.scaler_state(),
        "frozen_fingerprint": state.frozen_fingerprint,
        "model": facts.model_dump(mode="json"),
    }
    spec_yaml = to_yaml(state.run.saved_spec)
    if state.spec.model.backbone.mode == "full" and (shards := shard_tensors(state)):
        moments = state.engine.moments()
        # One number for all: shards have at least one dimension, a step has none.
        content["optimizer_step"] = float(next(iter(moments.values()))["step"]) if moments else 0.0
        shapes = {name: list(state.shapes[split_name(name)[1]]) for name in shards}
        content["tensors"] = dict(Counter(split_name(name)[0] for name in shapes))
        writer.submit_shards(progress.step, shards, shapes, content, spec_yaml)
        return
    # Gathering is a collective: the other ranks take part in it, and only the first gets something to write.
    tensors = full_tensors(state)
    if state.processes.is_main:
        checkpoint = Checkpoint(*tensors, content, spec_yaml, facts)
        kinds = Counter(split_name(name)[0] for name in checkpoint.tensors())
        content["tensors"] = {kind: kinds[kind] for kind in TENSOR_FILES}
        writer.submit(progress.step, checkpoint)


def restore_checkpoint(state: TrainState, checkpoint: Checkpoint, path: Path) -> Progress:
    """Copy a checkpoint's tensors and states into the run's state; return where the run stands. All ranks call it.

    checkpoint: what was read of `path`; meta tensors where each rank reads its own shards from there.
    """
    if next(iter(checkpoint.parameters.values())).is_meta:
        load_shards(state, path / SHARDS, checkpoint.state["optimizer_step"])
    else:
        load_full_tensors(state, checkpoint.parameters, checkpoint.ema, checkpoint.optimizer)
    state.engine.load_scaler(checkpoint.state["scaler"])
    state.normalizer.value = checkpoint.state["normalizer"]
    return Progress(**checkpoint.state["progress"])


def full_tensors(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return parameters, averages and AdamW's tensors as files hold them, in host memory on the first rank; {} on the
    others. All ranks call it."""
    engine = state.engine
    # Every call of `gather_full` is a collective: the same ones in the same order on every rank.
    parameters, averages = engine.gather_full(engine.master_parameters()), engine.gather_full(state.ema.averages)
    local = engine.moments()
    moments = {key: engine.gather_full({name: tensors[key] for name, tensors in local.items()}) for key in MOMENTS}
    optimizer = {
        name: {"step": local[name]["step"], **{key: tensors[name] for key, tensors in moments.items()}}
        for name in moments[MOMENTS[0]]
    }
    return parameters, averages, optimizer


def full_tensor_bytes(state: TrainState) -> list[int]:
    """Return bytes of each tensor of `full_tensors`, after the first update; none where every rank writes its own
    part."""
    if state.spec.model.backbone.mode == "full" and state.engine.saves_shards:
        return []
    # All fp32: parameter and average, AdamW's moments, and a step for each parameter.
    numbers = [state.shapes[name].numel() for name in state.trained]
    return [4 * count for count in numbers] * (2 + len(MOMENTS)) + [4] * len(numbers)


def shard_tensors(state: TrainState) -> dict[str, Tensor] | None:
    """Return what `full_tensors` does as DTensors, of which this rank has a part, named as `Checkpoint.tensors` names
    them; None if the engine has none.

    They share the memory of the engine's parts where these lie on the mesh's device, and are copies of parts in host
    memory. Before the first update the moments are zeros.
    """
    if not state.engine.saves_shards:
        return None
    engine, local = state.engine, state.engine.moments()
    masters = engine.master_parameters()
    shards = engine.as_dtensors(masters)
    # DTensors can't be left out on one rank: every parameter has moments, whether it had an update yet or not.
    optimizer: dict[str, dict[str, Tensor]] = {name: {} for name in masters}
    for key in MOMENTS:
        moments = {name: local[name][key] if name in local else torch.zeros_like(m) for name, m in masters.items()}
        for name, tensor in engine.as_dtensors(moments).items():
            optimizer[name][key] = tensor
    return by_name(shards, engine.as_dtensors(state.ema.averages), optimizer)


def load_shards(state: TrainState, folder: Path, optimizer_step: float) -> None:
    """Fill this rank's parts from a folder that ranks wrote, however many they were. All ranks call it."""
    tensors = shard_tensors(state)
    read_own_shards(folder, tensors)
    # Filling them isn't enough: of what waits in host memory beside a GPU, DTensors are copies.
    parameters, averages, moments = by_kind({name: tensor.to_local() for name, tensor in tensors.items()})
    step = torch.tensor(optimizer_step)
    state.engine.load(parameters, {name: {"step": step, **tensors} for name, tensors in moments.items()})
    state.ema.load(averages)


def load_full_tensors(
    state: TrainState,
    parameters: dict[str, Tensor],
    averages: dict[str, Tensor],
    optimizer: dict[str, dict[str, Tensor]],
) -> None:
    """Copy full tensors, which every rank has read, into the engine and the averages: each rank takes its part."""
    # Steps are numbers, the same on all ranks: they aren't sharded.
    engine = state.engine
    moments = {key: engine.shard({name: tensors[key] for name, tensors in optimizer.items()}) for key in MOMENTS}
    local = {
        name: {"step": tensors["step"], **{key: moments[key][name] for key in MOMENTS}}
        for name, tensors in optimizer.items()
    }
    engine.load(engine.shard(parameters), local)
    state.ema.load(engine.shard(averages))
