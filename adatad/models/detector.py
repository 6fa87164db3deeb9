"""The whole model, backbone and detector; and which of its parameters are trained.

The list of trained parameters is explicit, and fixed before any optimizer or engine sees the model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from adatad.errors import UserError
from adatad.models.actionformer import ActionFormer, Predictions
from adatad.models.backbone import VideoBackbone
from adatad.models.families import build_backbone
from adatad.models.keyed_dropout import HostKeys
from adatad.spec.model_sections import BackboneSpec, ModelSpec

MAX_NEAR = 3
"""Parameter names that a message proposes for a pattern that matches none."""


class TemporalActionDetector(nn.Module):
    """Frames of a window, or its features without a backbone, to predictions at every point of the pyramid."""

    def __init__(self, backbone: VideoBackbone | None, detector: ActionFormer):
        super().__init__()
        self.backbone = backbone
        self.detector = detector

    def forward(self, frames: Tensor, mask: Tensor, keys: HostKeys | Tensor | None = None) -> Predictions:
        """Predict actions of windows.

        frames: uint8 [b, 3, frames, height, width], or features, float32 [b, c, window], without a backbone; mask:
        bool [b, window]; keys: int64 [b] in host memory, in
        training; pinned where the model is on a GPU.

        Features of padded positions aren't masked before the detector: its first convolution sees them.
        """
        # Engines move tensors to the device, and HostKeys not.
        keys = keys.keys if isinstance(keys, HostKeys) else keys
        # Keys still in host memory: the backbone decides there what to drop.
        features = frames if self.backbone is None else self.backbone(frames, mask.shape[-1], keys)
        # The detector draws on the device, where whole rows are multiplied anyway.
        keys = None if keys is None else keys.to(features.device, non_blocking=True)
        return self.detector(features, mask, keys)


def build_model(spec: ModelSpec, num_classes: int, drawn: bool = True) -> TemporalActionDetector:
    """Build the model. drawn: False leaves the backbone's encoder to a file (`VideoBackbone`)."""
    if spec.backbone.mode == "features":
        if spec.backbone.width is None:
            raise UserError("model.backbone.width: nobody says how many channels the features of data.features have")
        return TemporalActionDetector(None, ActionFormer(spec.detector, spec.backbone.width, num_classes))
    backbone = build_backbone(spec.backbone, drawn)
    return TemporalActionDetector(backbone, ActionFormer(spec.detector, backbone.width, num_classes))


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
    # The detector is trained in every mode.
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
