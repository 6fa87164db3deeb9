"""Private parts of DeepSpeed that are used: where its ZeRO optimizers keep this rank's trained parameters.

Every private name that this folder uses is in PRIVATE_NAMES, and looked for when a run starts.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adatad.errors import UserError
from adatad.parallel.base import require_names
from adatad.parallel.processes import Processes, ensure_group

WORKS_WITH = ">=0.19.8,<0.20"
"""Versions of DeepSpeed that have the private names, as in setup.cfg."""
PRIVATE_NAMES = {
    "deepspeed.ops": ("__compatible_ops__",),
    "deepspeed.runtime.zero.partition_parameters": ("ZeroParamStatus",),
    "the optimizer of stages 1 and 2": (
        "clip_grad",
        "scaled_global_norm",
        "single_partition_of_fp32_groups",
        "update_lp_params",
    ),
    "the parameters of stages 1 and 2": ("_hp_mapping",),
    "the optimizer of stage 3": (
        "_get_norm_groups",
        "_grad_acc_hooks",
        "_leaf_module_hooks",
        "clip_grad",
        "create_reduce_and_remove_grad_hooks",
        "fp16_groups",
        "fp16_partitioned_groups_flat",
        "fp32_partitioned_groups_flat",
        "get_param_id",
        "grad_position",
        "parameter_offload",
        "persistent_parameters",
    ),
    # Also `ds_z3_leaf_module`, which parameters of units alone have.
    "the parameters of stage 3": (
        "all_gather",
        "all_gather_coalesced",
        "ds_numel",
        "ds_persist",
        "ds_status",
        "partition",
    ),
}
"""Names that are used of DeepSpeed and that it doesn't document, by module or by what `deepspeed.initialize` makes."""


def start_deepspeed(processes: Processes) -> Any:
    """Return the library, started on the process group there is, or on a group of this process alone.

    Raises UserError if it isn't installed, or lacks a private name.
    """
    if processes.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise UserError(
            f"engines zero1, zero2 and zero3 need DeepSpeed: bash launch/setup.sh deepspeed installs it ({error})"
        ) from error
    for module in ("deepspeed.ops", "deepspeed.runtime.zero.partition_parameters"):
        require_private_names(module, importlib.import_module(module))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It calls collectives by the names that torch 2.13 is about to give up.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Its shared-memory collectives for CPUs would be compiled at the first run, and took part in wrong results then.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    ensure_group(processes)
    # A process alone has it from no launcher, and DeepSpeed asks for it.
    os.environ.setdefault("LOCAL_RANK", str(processes.device.index or 0))
    deepspeed.init_distributed(verbose=False)
    return deepspeed


def require_private_names(part: str, owner: object) -> None:
    """Raise UserError unless a part of DeepSpeed has the names that PRIVATE_NAMES lists for it."""
    require_names("deepspeed", WORKS_WITH, part, owner, PRIVATE_NAMES[part])


@dataclass(frozen=True)
class FlatSlice:
    """This rank's part of one parameter: consecutive values of it, in a flat tensor of DeepSpeed's."""

    flat: Tensor
    start: int
    length: int

    def of(self, flat: Tensor) -> Tensor:
        """Return the part's place in a tensor of the flat one's length; a view."""
        return flat.detach().narrow(0, self.start, self.length)


class Partitions:
    """Trained parameters under stages 1 and 2: whole on every rank, and views of one flat tensor a group."""

    stages = "stages 1 and 2"

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str], rank: int):
        require_private_names(f"the optimizer of {self.stages}", optimizer)
        for parameter in names:
            require_private_names(f"the parameters of {self.stages}", parameter)
        self.optimizer, self.rank = optimizer, rank
        self.slices = {name: self.slice_of(parameter) for parameter, name in names.items()}

    def slice_of(self, parameter: nn.Parameter) -> FlatSlice:
        """Return where this rank's fp32 part of a parameter lies; it may be empty."""
        # hp: high precision, DeepSpeed's word for its fp32 masters.
        flats, mapping = self.optimizer.single_partition_of_fp32_groups, parameter._hp_mapping
        # Parameters of which this rank has no value at all.
        if mapping is None:
            return FlatSlice(flats[0], 0, 0)
        address = mapping.get_hp_fragment_address()
        return FlatSlice(flats[mapping.param_group_index], address.start, address.numel)

    def update_model(self) -> None:
        """Let the model's parameters follow the flat tensors, which were written to. All ranks call it."""
        self.optimizer.update_lp_params()

    def watch_norm(self, judge: Callable[[list[Tensor]], list[float]]) -> None:
        """Let every step show its gradients' norms to `judge`, and go on with the numbers that this returns.

        Infinite ones refuse the step, as DeepSpeed refuses one whose gradients aren't finite: that clears the gradients
        alone. DeepSpeed gets the numbers in host memory, where it may look at them as often as it likes. It has no hook
        for this, so its method is replaced on this one optimizer.
        """
        # The bound method, kept before the name is taken over.
        norm_of = self.optimizer.scaled_global_norm

        def judged() -> Tensor:
            """Return the norm that the step goes on with."""
            norm = norm_of()
            return torch.tensor(judge([norm])[0], dtype=norm.dtype)

        self.optimizer.scaled_global_norm = judged


class ShardedPartitions(Partitions):
    """Trained parameters under stage 3: cut over the ranks, padded to equal parts each, and gathered where they are
    used."""

    stages = "stage 3"

    def slice_of(self, parameter: nn.Parameter) -> FlatSlice:
        """Return where this rank's fp32 part of a parameter lies, without padding; it may be empty."""
        optimizer = self.optimizer
        group, start, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        # The last rank's part may be padding in part, or altogether.
        length = min(max(parameter.ds_numel - self.rank * padded, 0), padded)
        return FlatSlice(optimizer.fp32_partitioned_groups_flat[group], start, length)

    def update_model(self) -> None:
        """Let the model's parameters follow the flat tensors, which were written to. All ranks call it."""
        optimizer = self.optimizer
        # Names from when the model was always fp16: here both are fp32.
        flats = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
        for used, master in flats:
            used.data.copy_(master.data)
        # What was gathered before has the old values; what persists between uses is gathered again at once.
        optimizer.parameter_offload.partition_all_parameters()
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def watch_norm(self, judge: Callable[[list[Tensor]], list[float]]) -> None:
        """Let every step show its norms, here one a group, to `judge`; the rest as under stages 1 and 2."""
        norms_of = self.optimizer._get_norm_groups

        def judged() -> list[Tensor]:
            """Return the groups' norms that the step goes on with."""
            norms = norms_of()
            return [torch.tensor(value, dtype=norms[0].dtype) for value in judge(norms)]

        self.optimizer._get_norm_groups = judged
