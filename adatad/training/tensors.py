"""A run's tensors on their way between engine and checkpoint: whole on the first rank, or each rank's own parts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from adatad.training.checkpoint import read_own_shards
from adatad.training.checkpoint_check import MOMENTS, by_kind, by_name
from adatad.training.setup import TrainState


def whole_tensors(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Parameters, averages and AdamW's tensors as files hold them, on the first rank; {} on the others."""
    engine = state.engine
    parameters, averages = engine.gather_full(engine.master_parameters()), engine.gather_full(state.ema.averages)
    local = engine.moments()
    moments = {key: engine.gather_full({name: tensors[key] for name, tensors in local.items()}) for key in MOMENTS}
    optimizer = {
        name: {"step": local[name]["step"], **{key: tensors[name] for key, tensors in moments.items()}}
        for name in moments[MOMENTS[0]]
    }
    return parameters, averages, optimizer


def whole_sizes(state: TrainState) -> list[int]:
    """Return bytes of each tensor of `whole_tensors`, after the first update; none where every rank writes its own
    part."""
    if state.spec.model.backbone.mode == "full" and state.engine.saves_shards:
        return []
    numbers = [state.shapes[name].numel() for name in state.trained]
    return [4 * count for count in numbers] * (2 + len(MOMENTS)) + [4] * len(numbers)


def shard_tensors(state: TrainState) -> dict[str, Tensor] | None:
    """Return the same as this rank's parts of DTensors, named as `Checkpoint.tensors` names them; None if the engine
    has none. The memory is that of the parts where these lie on the mesh's device. Before the first update the moments
    are zeros."""
    if not state.engine.saves_shards:
        return None
    engine, local = state.engine, state.engine.moments()
    masters = engine.master_parameters()
    shards = engine.as_dtensors(masters)
    optimizer: dict[str, dict[str, Tensor]] = {name: {} for name in masters}
    for key in MOMENTS:
        moments = {name: local[name][key] if name in local else torch.zeros_like(m) for name, m in masters.items()}
        for name, tensor in engine.as_dtensors(moments).items():
            optimizer[name][key] = tensor
    return by_name(shards, engine.as_dtensors(state.ema.averages), optimizer)


def load_shards(state: TrainState, folder: Path, optimizer_step: float) -> None:
    """Fill this rank's parts from a folder that ranks wrote, however many they were."""
    tensors = shard_tensors(state)
    read_own_shards(folder, tensors)
    # Of what waits in host memory beside a GPU, DTensors are copies.
    parameters, averages, moments = by_kind({name: tensor.to_local() for name, tensor in tensors.items()})
    step = torch.tensor(optimizer_step)
    state.engine.load(parameters, {name: {"step": step, **tensors} for name, tensors in moments.items()})
    state.ema.load(averages)


def load_whole_tensors(
    state: TrainState,
    parameters: dict[str, Tensor],
    averages: dict[str, Tensor],
    optimizer: dict[str, dict[str, Tensor]],
) -> None:
    """The reverse, on every rank."""
    engine = state.engine
    moments = {key: engine.shard({name: tensors[key] for name, tensors in optimizer.items()}) for key in MOMENTS}
    local = {
        name: {"step": tensors["step"], **{key: moments[key][name] for key in MOMENTS}}
        for name, tensors in optimizer.items()
    }
    engine.load(engine.shard(parameters), local)
    state.ema.load(engine.shard(averages))
