"""Numbers in 8 bits with a scale for each row: frozen weights while no tile uses them, and kept tokens.

fp8 is float8_e4m3fn with scales that are powers of two, so that nothing but the cast rounds (by 2.6 % on average,
whatever a row's numbers are). int8 has 255 equal steps up to a row's largest number: finer where rows have no outliers,
as those of weights. Arithmetic is never done in 8 bits.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn

from adatad.memory.offload import ActivationStore
from adatad.memory.scopes import memory_scope

LARGEST = {"fp8": 448.0, "int8": 127.0}
"""Number that a row's largest becomes at most."""
SCALE = "weight_scale"
"""Name, beside its weight, of the scales of a matrix in 8 bits."""
SCALE_BYTES = 2


def encode(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return codes of x [..., columns], of its shape and one byte each, and their scales, bf16 [..., 1]."""
    scale = x.abs().amax(-1, keepdim=True).float() / LARGEST[kind]
    if kind == "fp8":
        # Up to the next power of two, but no less than a normal fp32 number. A row's largest is 448 at most, beyond
        # which e4m3fn has no number.
        scale = torch.exp2(torch.ceil(torch.log2(scale.clamp(min=2.0**-120))))
        # As bytes, since not every library that moves weights knows float8.
        return (x / scale).to(torch.float8_e4m3fn).view(torch.uint8), scale.bfloat16()
    scale = scale.clamp(min=2.0**-120).bfloat16()
    return (x / scale.float()).round_().clamp_(-LARGEST[kind], LARGEST[kind]).to(torch.int8), scale


def decode(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that `encode` wrote down, rounded to `dtype`."""
    codes = codes.view(torch.float8_e4m3fn) if codes.dtype == torch.uint8 else codes
    # fp16 tokens are scaled in fp32: the scale of a small token is below fp16's smallest number.
    return codes.to(dtype).mul_(scale.to(torch.promote_types(scale.dtype, dtype)))


# Weights


def encode_frozen_(modules: Iterable[nn.Module], kind: str) -> None:
    """Frozen matrices of some modules (not biases, nor norms) become codes, with their scales beside them: parameters
    both, so that they go wherever a model's parameters go."""
    for name, module in (named for outer in modules for named in outer.named_modules()):
        if name.startswith("adapter"):
            continue
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not weight.requires_grad and weight.dim() == 2:
            weight.data, scale = encode(weight.detach(), kind)
            module.register_parameter(SCALE, nn.Parameter(scale, requires_grad=False))


# Saved inputs


def coded_bytes(rows: int, columns: int) -> int:
    """Return the bytes of so many rows in 8 bits, with their scales."""
    return rows * (columns + SCALE_BYTES)


class EightBitStore:
    """Keeps tokens [clips, l, c] in fp8 in another store, as one piece of memory for each key."""

    def __init__(self, store: ActivationStore, dtype: torch.dtype, name: str):
        """dtype: of what is taken back; name: the scope that a meter counts what is kept under."""
        self._store, self._dtype, self._name = store, dtype, name
        self._shapes: dict[Hashable, torch.Size] = {}

    def save(self, key: Hashable, tensor: Tensor) -> None:
        """Encode a tensor and keep the codes; the tensor itself isn't held."""
        codes, scale = encode(tensor, "fp8")
        self._shapes[key] = tensor.shape
        # Codes and scales in one piece: one buffer and one copy for each key.
        with memory_scope(self._name):
            packed = torch.cat([codes.flatten(), scale.view(torch.uint8).flatten()])
        self._store.save(key, packed)

    # Codes are a copy already.
    save_copy = save

    def prefetch(self, key: Hashable) -> None:
        """Begin to bring the codes back."""
        self._store.prefetch(key)

    def pop(self, key: Hashable) -> Tensor:
        """Take a tensor out, decoded."""
        shape, packed = self._shapes.pop(key), self._store.pop(key)
        codes, scale = packed.split([shape.numel(), packed.numel() - shape.numel()])
        return decode(codes.view(shape), scale.view(torch.bfloat16).view(*shape[:-1], 1), self._dtype)
