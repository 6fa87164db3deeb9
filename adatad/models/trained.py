"""What is trained: one explicit list of parameter names, fixed before any optimizer or engine sees the model."""

from __future__ import annotations

from torch import nn

from adatad.spec.schema import BackboneSpec


def trained_names(model: nn.Module, backbone: BackboneSpec) -> list[str]:
    """Names of the parameters that training changes, in the model's order.

    Adapters and detector in the modes adapter, plain and side; the detector alone in mode frozen; all in mode full.
    (The reference freezes inside its first forward pass instead, after DDP and the optimizer were made.)
    """
    return [name for name, _ in model.named_parameters() if _is_trained(name, backbone.mode)]


def _is_trained(name: str, mode: str) -> bool:
    if not name.startswith("backbone."):
        return True
    if mode == "full":
        return True
    return mode != "frozen" and ("adapter." in name or ".side_adapters." in name)


def freeze(model: nn.Module, backbone: BackboneSpec) -> list[str]:
    """Let exactly the trained parameters require a gradient; returns their names."""
    names = trained_names(model, backbone)
    trained = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return names
