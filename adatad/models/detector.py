"""The whole model, backbone and detector; and which of its parameters are trained.

The list of trained parameters is explicit, and fixed before any optimizer or engine sees the model.
"""

from __future__ import annotations

from torch import Tensor, nn

from adatad.models.actionformer import ActionFormer, Predictions
from adatad.models.backbone import VideoBackbone
from adatad.models.keyed_dropout import HostKeys
from adatad.spec.schema import BackboneSpec, ModelSpec


class TemporalActionDetector(nn.Module):
    """End to end: frames of a window to predictions at every point of the pyramid."""

    def __init__(self, backbone: VideoBackbone, detector: ActionFormer):
        super().__init__()
        self.backbone = backbone
        self.detector = detector

    def forward(self, frames: Tensor, mask: Tensor, keys: HostKeys | Tensor | None = None) -> Predictions:
        """Predict actions of windows.

        frames: uint8 [b, 3, frames, height, width]; mask: bool [b, window]; keys: int64 [b] in host memory, in
        training; pinned where the model is on a GPU.

        Features of padded positions aren't masked before the detector: its first convolution sees them.
        """
        # Engines move tensors to the device, and HostKeys not.
        keys = keys.keys if isinstance(keys, HostKeys) else keys
        features = self.backbone(frames, mask.shape[-1], keys)
        # The detector draws on the device, where whole rows are multiplied anyway.
        keys = None if keys is None else keys.to(features.device, non_blocking=True)
        return self.detector(features, mask, keys)


def build_model(spec: ModelSpec, num_classes: int, drawn: bool = True) -> TemporalActionDetector:
    """Build the model. drawn: False leaves the backbone's encoder to a file (`VideoBackbone`)."""
    backbone = VideoBackbone(spec.backbone, drawn)
    return TemporalActionDetector(backbone, ActionFormer(spec.detector, backbone.width, num_classes))


def trained_names(model: nn.Module, backbone: BackboneSpec) -> list[str]:
    """Return the names of the parameters that training changes, in the model's order.

    Adapters and detector in the modes adapter, plain and side; the detector alone in mode frozen; all in mode full.
    (The reference freezes inside its first forward pass instead, after DDP and the optimizer were made.)
    """
    return [name for name, _ in model.named_parameters() if _is_trained(name, backbone.mode)]


def _is_trained(name: str, mode: str) -> bool:
    # The detector is trained in every mode.
    if not name.startswith("backbone."):
        return True
    if mode == "full":
        return True
    return mode != "frozen" and ("adapter." in name or ".side_adapters." in name)


def freeze(model: nn.Module, backbone: BackboneSpec) -> list[str]:
    """Let exactly the trained parameters require a gradient; return their names."""
    names = trained_names(model, backbone)
    trained = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return names
