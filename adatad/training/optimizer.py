"""AdamW's parameter groups, in the reference's order, and the schedule of their rates."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

from adatad.errors import UserError
from adatad.spec.schema import OptimizerSpec

Group = dict[str, Any]


class OptimizerError(UserError):
    """A trained parameter that no group of the spec takes; the message names it and the key that would."""


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[Group]:
    """Return the groups of the parameters in `model.backbone` and `model.detector` that require a gradient.

    First the backbone's: those that no `custom` entry takes, then a group for each entry. Then the detector's, with and
    without decay. In the backbone everything in a group decays, biases and norms too, as in the reference. Raises
    OptimizerError.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    backbone = {name: p for name, p in trained.items() if name.startswith("backbone.")}
    groups = _backbone_groups(model, backbone, spec)
    decaying = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d))
    }
    # Sorted, as in the reference: torch's optimizer state goes by a parameter's place in its group.
    rest = sorted(trained.keys() - backbone.keys())
    for name, decays, weight_decay in (("detector", True, spec.weight_decay), ("detector_no_decay", False, 0.0)):
        names = [parameter for parameter in rest if (parameter in decaying) == decays]
        groups.append(_group(name, names, trained, spec.lr, weight_decay))
    # A group without parameters would be an entry of logs and checkpoints that means nothing.
    return [group for group in groups if group["params"]]


def _backbone_groups(model: nn.Module, trained: dict[str, nn.Parameter], spec: OptimizerSpec) -> list[Group]:
    if not trained:
        return []
    # By depth alone: such groups are for mode full, where `custom` has no meaning.
    if spec.layer_decay is not None:
        return _layer_decay_groups(model, trained, spec)
    if spec.backbone is None:
        raise OptimizerError(f"optimizer.backbone is missing, but {next(iter(trained))} is trained")
    custom: dict[str, list[str]] = {entry.name: [] for entry in spec.backbone.custom}
    rest: list[str] = []
    for name in trained:
        # The first entry whose name is contained in the parameter's takes it.
        taker = next((entry for entry in custom if entry in name), None)
        (rest if taker is None else custom[taker]).append(name)
    # A rate of 0 would train nothing without a word; mostly a pattern of `custom` was mistyped.
    if rest and spec.backbone.lr == 0:
        raise OptimizerError(
            f"{rest[0]} is trained, but no entry of optimizer.backbone.custom names it and optimizer.backbone.lr is 0"
        )
    groups = [_group("backbone", rest, trained, spec.backbone.lr, spec.backbone.weight_decay)]
    for entry in spec.backbone.custom:
        groups.append(_group(entry.name, custom[entry.name], trained, entry.lr, entry.weight_decay))
    return groups


def _layer_decay_groups(model: nn.Module, trained: dict[str, nn.Parameter], spec: OptimizerSpec) -> list[Group]:
    """Return groups whose rates fall by `layer_decay` with every block below the top, in the model's order of names.

    Layer 0 is the patch embedding, layer i + 1 block i, the last one all else. Norms inside blocks don't decay.
    """
    depth = len(model.backbone.blocks)
    groups: dict[str, Group] = {}
    for name, parameter in trained.items():
        block = re.match(r"backbone\.blocks\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else 0 if name.startswith("backbone.patch_embed.") else depth + 1
        decays = not (block and "norm" in name)
        # 1 for what lies above the blocks, and the smallest rate for the patch embedding.
        scale = spec.layer_decay ** (depth + 1 - layer)
        key = f"layer_{layer}" + ("" if decays else "_no_decay")
        decay = spec.weight_decay if decays else 0.0
        group = groups.setdefault(key, _group(key, [], trained, spec.lr * scale, decay))
        group["params"].append(parameter)
        group["parameter_names"].append(name)
    return list(groups.values())


def _group(name: str, names: list[str], trained: dict[str, nn.Parameter], lr: float, weight_decay: float) -> Group:
    """Return a group as torch's optimizers take it. `base_lr` is what the schedule scales; `lr` is used next."""
    params = [trained[parameter] for parameter in names]
    return {
        "name": name, "params": params, "parameter_names": list(names),
        "lr": lr, "base_lr": lr, "weight_decay": weight_decay,
    }  # fmt: skip


def learning_rate(step: int, base: float, warmup_steps: int, total_steps: int, eta_min: float) -> float:
    """Return the rate of the 0-based optimizer step `step` of a group with rate `base`.

    The warm-up starts at 0, so that the first step changes nothing, and reaches `base` at its last step, number
    warmup_steps - 1. The cosine ends at `eta_min`, the same for all groups.
    """
    if step < warmup_steps:
        return base * step / max(warmup_steps - 1, 1)
    done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return eta_min + (base - eta_min) * 0.5 * (1 + math.cos(math.pi * done))
