"""ZeRO stage 3's units: a block of the backbone is gathered and freed as one, in ordinary forward passes and in waves.

Before DeepSpeed wraps the model, `mark_units` makes every block a unit and gives the wave's weight modules a place in
the model, where DeepSpeed's hooks find them. Afterwards `reduce_by_parameter` changes how gradients of units are
reduced, and the waves get their blocks from `Zero3Weights`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from adatad.memory.weights import WeightProvider
from adatad.models.backbone import VideoBackbone
from adatad.models.sequence import SequenceAttention
from adatad.models.vit import Block
from adatad.parallel.deepspeed.internals import require_private_names


def mark_units(model: nn.Module) -> None:
    """Make every block a unit. Called before `deepspeed.initialize`."""
    from deepspeed.utils import set_z3_leaf_module

    # Attention of the detector reads weights of parts that it doesn't call.
    for unit in (module for module in model.modules() if isinstance(module, Block | SequenceAttention)):
        set_z3_leaf_module(unit, True)
    if model.backbone is not None:
        for number, weights in enumerate(model.backbone.executor.weight_modules()):
            weights.adopt()
            model.backbone.add_module(f"wave_weights_{number}", weights)


def reduce_by_parameter(optimizer: Any) -> None:
    """Let every trained parameter's gradient be reduced when it has come, also those of units.

    DeepSpeed reduces a unit's gradients in a backward hook of the module. That hook comes too early where nothing
    before the unit is differentiated, as at the first block, and never where the wave runs the unit's parts.
    """
    require_private_names("the optimizer of stage 3", optimizer)
    for hook in (*optimizer._leaf_module_hooks, *optimizer._grad_acc_hooks):
        hook.remove()
    optimizer._leaf_module_hooks.clear()
    optimizer._grad_acc_hooks.clear()
    for parameter in (parameter for group in optimizer.fp16_groups for parameter in group):
        if hasattr(parameter, "ds_z3_leaf_module"):
            # Hooks are set by parameter only where this mark is missing.
            del parameter.ds_z3_leaf_module
    optimizer.create_reduce_and_remove_grad_hooks()


def gather_for_waves(model: nn.Module) -> None:
    """Let waves ask for the blocks that they need. Called after `deepspeed.initialize`."""
    if model.backbone is not None:
        model.backbone.executor = model.backbone.executor.with_weights(Zero3Weights(model.backbone))


class Zero3Weights(WeightProvider):
    """Provider of a wave's weights: blocks are gathered while it is in them, the next ones on their way meanwhile.

    The adapters' weights aren't among them: they reach the wave through its weight module.
    """

    def __init__(self, backbone: VideoBackbone):
        self.parameters = [
            [parameter for name, parameter in block.named_parameters() if not name.startswith("adapter.")]
            for block in backbone.blocks
        ]
        self.fetches: dict[int, tuple[Any, list[nn.Parameter]]] = {}
        """Gathers on their way, by block: DeepSpeed's handle, and what is gathered."""

    @contextmanager
    def materialized(self, blocks: range, following: range) -> Iterator[None]:
        """Gather blocks for the context, and begin to gather those that follow; free the blocks after it."""
        # Every rank asks in the same order: gathers are collectives.
        for index in (*blocks, *following):
            self._fetch(index)
        gathered = []
        for index in blocks:
            handle, parameters = self.fetches.pop(index)
            handle.wait()
            gathered += parameters
        try:
            yield
        finally:
            # DeepSpeed keeps small parameters whole until the next update (stage3_param_persistence_threshold).
            passing = [parameter for parameter in gathered if not parameter.ds_persist]
            if passing:
                passing[0].partition(param_list=passing)

    def _fetch(self, index: int) -> None:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        if index in self.fetches:
            return
        missing = [p for p in self.parameters[index] if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        self.fetches[index] = self.parameters[index][0].all_gather_coalesced(missing), missing
