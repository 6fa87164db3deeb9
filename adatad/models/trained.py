"""What is trained: one explicit list of parameter names, fixed before any optimizer or engine sees the model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from adatad.errors import UserError
from adatad.spec.schema import BackboneSpec

MAX_NEAR = 3
"""Parameter names that a message proposes for a pattern that matches none."""


def trained_names(model: nn.Module, backbone: BackboneSpec, frozen: Sequence[str] = ()) -> list[str]:
    """Return the names of the parameters that training changes, in the model's order.

    Adapters and detector in the modes adapter, plain and side; the detector alone in mode frozen; all in mode full;
    and of these none that matches one of the patterns `frozen` (`model.freeze`). (The reference freezes inside its
    first forward pass instead, after DDP and the optimizer were made.)
    """
    return [
        name
        for name, _ in model.named_parameters()
        if _learns(name, backbone.mode) and not any(fnmatchcase(name, pattern) for pattern in frozen)
    ]


def _learns(name: str, mode: str) -> bool:
    if not name.startswith("backbone.") or mode == "full":
        return True
    return mode != "frozen" and ("adapter." in name or ".side_adapters." in name)


def freeze(model: nn.Module, backbone: BackboneSpec, frozen: Sequence[str] = ()) -> list[str]:
    """Let exactly the trained parameters require a gradient; return their names.

    Raises UserError for a pattern that matches no parameter, and if nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in frozen:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            # Numbers of blocks aside, names are few: a near one says more than a list of all.
            known = list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in parameters))
            near = difflib.get_close_matches(pattern, known, n=MAX_NEAR, cutoff=0.3)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"model.freeze: {pattern} matches no parameter{meant}")
    names = trained_names(model, backbone, frozen)
    if frozen and not names:
        raise UserError(f"model.freeze: {', '.join(frozen)} leave nothing to train; take out one of them")
    trained = set(names)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    return names
