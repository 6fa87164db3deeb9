"""A watch over a model's modules during one forward and backward pass: the first one whose output, or whose gradient,
isn't finite, and the largest number that any of them gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adatad.models.actionformer import Predictions

MODEL = "the model"
"""Name of the module that holds all others."""


class BadModule(NamedTuple):
    """The first module that went bad in a pass.

    kind: its class. fed_finite: whether what it got, its input or in backward the gradient of its output, was finite;
    False means that code between modules, the losses among it, made the first bad number.
    """

    name: str
    kind: str
    fed_finite: bool


class Largest(NamedTuple):
    """Largest absolute finite number in the outputs of all modules, and the module that gave it first."""

    value: float
    name: str


class ModuleWatch:
    """Hooks of all modules, while the context lasts. They change no number."""

    def __init__(self, model: nn.Module):
        self._modules = [(name or MODEL, module) for name, module in model.named_modules()]
        self.forward: BadModule | None = None
        self.backward: BadModule | None = None
        self.largest = Largest(0.0, MODEL)
        self._handles: list[Any] = []

    def __enter__(self) -> ModuleWatch:
        for name, module in self._modules:
            self._watch(name, module)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, module: nn.Module) -> None:
        kind = type(module).__name__

        def after_forward(_: nn.Module, inputs: tuple, keywords: dict, output: Any) -> None:
            """Look at an output. Modules inside of others end first, so that the first bad one is the innermost."""
            self._measure(name, output)
            if self.forward is None and not is_finite(output):
                self.forward = BadModule(name, kind, is_finite((inputs, keywords)))

        def before_backward(_: nn.Module, of_output: Any) -> None:
            """Look at the gradient that arrives at an output."""
            if self.backward is None and not is_finite(of_output):
                self.backward = BadModule(name, kind, fed_finite=False)

        def after_backward(_: nn.Module, of_input: Any, of_output: Any) -> None:
            """Look at the gradient that a module hands on."""
            if self.backward is None and not is_finite(of_input):
                self.backward = BadModule(name, kind, is_finite(of_output))

        def of_parameter(gradient: Tensor) -> None:
            """Look at the gradient of one of the module's own parameters."""
            if self.backward is None and not is_finite(gradient):
                # What arrived was looked at before, and was finite.
                self.backward = BadModule(name, kind, fed_finite=True)

        self._handles += [
            module.register_forward_hook(after_forward, with_kwargs=True),
            module.register_full_backward_pre_hook(before_backward),
            module.register_full_backward_hook(after_backward),
            *(p.register_hook(of_parameter) for p in module.parameters(recurse=False) if p.requires_grad),
        ]

    @torch.no_grad()
    def _measure(self, name: str, output: Any) -> None:
        # Its logits and offsets are the head's; its points are constants.
        if isinstance(output, Predictions):
            return
        for tensor in floats_in(output):
            sizes = tensor.detach().abs()
            size = float(torch.where(sizes.isfinite(), sizes, 0).max()) if sizes.numel() else 0.0
            if size > self.largest.value:
                self.largest = Largest(size, name)


def floats_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of floats in a module's inputs or outputs, also inside of lists and mappings."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from floats_in(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from floats_in(inner)


def is_finite(value: Any) -> bool:
    """Return whether no number in a value is NaN or infinite."""
    return all(bool(tensor.detach().isfinite().all()) for tensor in floats_in(value))
