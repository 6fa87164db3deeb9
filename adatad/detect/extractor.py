"""What computes features: the backbone of a trained model with its adapters, or a bare one with pretrained weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from adatad.detect.known_model import KnownModel, examine
from adatad.errors import UserError
from adatad.files import shown
from adatad.library import Detector, build_detector, load_detector
from adatad.spec import Spec, load
from adatad.spec.experiments import find_spec_path
from adatad.spec.model_sections import RANDOM, BackboneSpec

PRESETS = get_args(BackboneSpec.model_fields["preset"].annotation)
PRESET_PIXELS = 224
"""Size of frames of a preset without a spec: that of all published pretraining."""


@dataclass(frozen=True)
class Extractor:
    """A backbone that can be loaded. spec: whose backbone and preprocessing it has; trained: the model that it is part
    of, None for a bare one; name: as it was named; sha256: of weights and settings; notes: lines for the user."""

    name: str
    spec: Spec
    trained: KnownModel | None
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def has_adapters(self) -> bool:
        """True if trained adapters are in the backbone."""
        return self.trained is not None and self.spec.model.backbone.mode in ("adapter", "plain", "side")

    def load(self, device: torch.device) -> Detector:
        """Return the model with its weights; of a bare backbone the detector behind it is random."""
        if self.trained is not None:
            return load_detector(self.trained.checkpoint, self.spec, self.trained.outputs, device)
        return build_detector(self.spec, ("none",), device)


def find_extractor(named: Path, spec: str | None, weights: Path | None, fps: float | None) -> Extractor:
    """Return what a name means: a trained model as `adatad detect` takes it, a spec (of its bare backbone), or a preset
    with its weights. fps: rate at which frames are counted, None for the model's own rule. Raises UserError."""
    text = str(named)
    is_spec = text.endswith((".yaml", ".yml")) and not named.is_dir()
    if named.exists() and not is_spec:
        if weights is not None:
            raise UserError(f"--weights: {shown(text)} holds its own weights; leave --weights out")
        known = examine(named, spec)
        return Extractor(text, _for_extraction(known.spec, fps), known, known.fingerprint, known.notes)
    if spec is not None:
        raise UserError(f"--spec: is for a trained file that holds none; {shown(text)} is no such file")
    settings = _of_preset(text) if text in PRESETS else load(find_spec_path(text)[0], check_files=False)
    backbone = settings.model.backbone
    file = str(weights) if weights is not None else backbone.weights
    if file is None:
        raise UserError(f"{shown(text)}: names no weights of its backbone; give --weights FILE, or --weights {RANDOM}")
    if file != RANDOM and not Path(file).is_file():
        raise UserError(f"weights: there is no file {shown(file)}; give --weights FILE")
    # Nobody has trained adapters of a bare backbone.
    bare = backbone.model_copy(update={"mode": "frozen", "weights": file})
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"backbone": bare})})
    settings = _for_extraction(settings, fps)
    return Extractor(text, settings, None, _sha256(settings, file))


def _of_preset(preset: str) -> Spec:
    """Return a spec of a preset, every frame in a row."""
    return Spec.model_validate(
        {
            "name": preset,
            "data": {"annotations": "", "videos": "", "window": {"stride_frames": 1}, "size_pixels": PRESET_PIXELS},
            "model": {"backbone": {"preset": preset}},
        }
    )


def _for_extraction(spec: Spec, fps: float | None) -> Spec:
    """Return a spec with frames numbered evenly in time, also where the model's windows are whole videos."""
    if spec.model.backbone.mode == "features":
        raise UserError("this detector takes features and has no backbone; name the one that made its features")
    window = spec.data.window.model_copy(update={"kind": "sliding"})
    data = {"window": window, **({"fps": fps} if fps is not None else {})}
    return spec.model_copy(update={"data": spec.data.model_copy(update=data)})


def _sha256(spec: Spec, file: str) -> str:
    """Return SHA-256 of the weights of a bare backbone and of its settings."""
    settings = spec.model.backbone.model_copy(update={"weights": None})
    digest = hashlib.sha256(settings.model_dump_json().encode())
    if file == RANDOM:
        digest.update(str(spec.train.seed).encode())
    else:
        with open(file, "rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()
