"""Where DeepSpeed keeps the trained parameters of this rank: pieces of flat fp32 tensors, one or more a group.

Everything that knows DeepSpeed's ZeRO optimizers from inside is here, for stages 1 and 2 and for stage 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """This rank's part of one parameter: consecutive values of it, in a flat tensor of DeepSpeed's."""

    flat: Tensor
    start: int
    length: int

    def of(self, flat: Tensor) -> Tensor:
        """The part's place in a tensor of the flat one's length; a view."""
        return flat.detach().narrow(0, self.start, self.length)


class Partitions:
    """Stages 1 and 2: parameters are whole on every rank, and views of one flat tensor a group."""

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str], rank: int):
        self.optimizer, self.rank = optimizer, rank
        self.pieces = {name: self.piece(parameter) for parameter, name in names.items()}

    def piece(self, parameter: nn.Parameter) -> Piece:
        flats, mapping = self.optimizer.single_partition_of_fp32_groups, parameter._hp_mapping
        if mapping is None:
            return Piece(flats[0], 0, 0)
        address = mapping.get_hp_fragment_address()
        return Piece(flats[mapping.param_group_index], address.start, address.numel)

    def spread(self) -> None:
        """After the flat tensors were written to: let the model's parameters follow, on all ranks."""
        self.optimizer.update_lp_params()

    def watch_norm(self, judge: Callable[[list[Tensor]], list[float]]) -> None:
        """Let every step show its gradients' norms to `judge`, and go on with the numbers that this returns. It refuses
        the step by infinite ones, as DeepSpeed refuses one whose gradients aren't finite: that clears the gradients
        alone. DeepSpeed gets them in host memory, where it may look at them as often as it likes."""
        norm_of = self.optimizer.scaled_global_norm

        def judged() -> Tensor:
            norm = norm_of()
            return torch.tensor(judge([norm])[0], dtype=norm.dtype)

        self.optimizer.scaled_global_norm = judged


class ShardedPartitions(Partitions):
    """Stage 3: parameters are cut over the ranks, each padded to equal parts, and gathered where they are used."""

    def piece(self, parameter: nn.Parameter) -> Piece:
        optimizer = self.optimizer
        group, start, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        length = min(max(parameter.ds_numel - self.rank * padded, 0), padded)
        return Piece(optimizer.fp32_partitioned_groups_flat[group], start, length)

    def spread(self) -> None:
        optimizer = self.optimizer
        flats = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
        for used, master in flats:
            used.data.copy_(master.data)
        # Nothing that was gathered before is right now; what persists between uses is gathered again at once.
        optimizer.parameter_offload.partition_all_parameters()
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def watch_norm(self, judge: Callable[[list[Tensor]], list[float]]) -> None:
        norms_of = self.optimizer._get_norm_groups

        def judged() -> list[Tensor]:
            norms = norms_of()
            return [torch.tensor(value, dtype=norms[0].dtype) for value in judge(norms)]

        self.optimizer._get_norm_groups = judged
