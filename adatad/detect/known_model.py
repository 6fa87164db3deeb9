"""Facts on a trained model before any of its weights is loaded: classes, thresholds, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from adatad.convert.weight_file import is_own_safetensors, read_header
from adatad.data.annotation_file import load_database
from adatad.data.classes import read_classes
from adatad.detect.model_file import read_model_file
from adatad.errors import UserError
from adatad.evaluation.classifiers import read_classifier
from adatad.files import read_bytes, shown
from adatad.spec import Spec, load, to_yaml
from adatad.spec.experiments import find_spec_path
from adatad.training.checkpoint_check import MANIFEST, read_state
from adatad.training.export import find_checkpoint, holds_frozen_weights, own_spec, read_trained_file
from adatad.training.model_facts import AGNOSTIC_OUTPUTS, ModelFacts
from adatad.training.model_record import RECORD, ModelRecord
from adatad.training.model_scores import measure


@dataclass(frozen=True)
class KnownModel:
    """A model that can be loaded. name: as it was named; checkpoint: directory or file that is loaded; outputs: names
    of its outputs; labels: those that detections may have, the same unless an external classifier gives them;
    thresholds: least score of each class with the best F1, None where nobody chose them; no_thresholds: why;
    fingerprint: of weights and spec, as text; notes: lines on what was chosen."""

    name: str
    checkpoint: Path
    spec: Spec
    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    thresholds: dict[str, float] | None
    no_thresholds: str
    fingerprint: str
    notes: tuple[str, ...]


def examine(path: Path, spec: str | None = None) -> KnownModel:
    """Return what is known of the model that a path means: a model file, a run (its best checkpoint), a checkpoint, or
    a checkpoint of OpenTAD.

    spec: file or name of the experiment, for a file that holds none. Raises UserError.
    """
    checkpoint, notes = find_checkpoint(path)
    trained = read_trained_file(checkpoint)
    # Nothing of a pretrained file would be left; it needn't be there.
    overrides = ["model.backbone.weights=random"] if holds_frozen_weights(checkpoint) else []
    if spec is not None and trained.spec_yaml is not None:
        raise UserError(f"--spec: {shown(path)} holds the spec that it was trained by; leave --spec out")
    if spec is None and trained.spec_yaml is None:
        raise UserError(
            f"{shown(path)}: doesn't hold the spec that it was trained by, as OpenTAD's files don't; name it with "
            "--spec"
        )
    if spec is None:
        settings = own_spec(checkpoint, overrides, check_files=False)
    else:
        settings = load(find_spec_path(spec)[0], overrides, check_files=False)
    outputs = trained.facts.outputs if trained.facts else _outputs_of(settings)
    thresholds, why_none = own_thresholds(checkpoint, settings, trained.facts)
    # As it was saved: written out anew, a later version with more keys would call it another model.
    text = trained.spec_yaml or to_yaml(settings)
    return KnownModel(
        str(path), checkpoint, settings, outputs, _labels(settings, outputs), thresholds, why_none,
        _fingerprint(checkpoint, text), tuple(notes),
    )  # fmt: skip


def own_thresholds(checkpoint: Path, spec: Spec, facts: ModelFacts | None) -> tuple[dict[str, float] | None, str]:
    """Return the thresholds of a model file, or those that a run's last detections on its validation videos give, as
    `adatad export` would choose them; and why there are none."""
    # A run has none stored: they are chosen as at export.
    if checkpoint.is_dir() and facts is not None:
        step = read_state(checkpoint)[0]["progress"]["step"]
        measured = measure(spec, facts, checkpoint, step)
        stored, why_none = measured.thresholds, measured.thresholds_from
    else:
        record = _record(checkpoint)
        stored, why_none = (record.thresholds, record.thresholds_from) if record else (None, "")
    if stored is None:
        return None, why_none
    return {name: one.threshold for name, one in stored.by_class.items()}, ""


def _record(checkpoint: Path) -> ModelRecord | None:
    """Return the record of a model file; None for other files and for checkpoints."""
    if not is_own_safetensors(checkpoint):
        return None
    header = read_header(checkpoint)[1]
    # Checks all that it says, tensors' shapes among it.
    return read_model_file(checkpoint).record if RECORD in header else None


def _outputs_of(spec: Spec) -> tuple[str, ...]:
    """Return the names of outputs, in the order of the spec's class list or annotation file. Raises UserError."""
    if spec.model.detector.class_agnostic:
        return AGNOSTIC_OUTPUTS
    # A class list of its own needs no annotations.
    database = load_database(spec.data.annotations) if spec.data.classes is None else {}
    return read_classes(spec.data, database).names


def _labels(spec: Spec, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels that detections may have."""
    if spec.postprocess.classifier is None:
        return outputs
    classifier = read_classifier(spec.postprocess.classifier)
    return classifier.names or (classifier.spec.pseudo_label,)


def _fingerprint(checkpoint: Path, spec_yaml: str) -> str:
    """Return SHA-256 of a checkpoint's content and its spec: equal ones give the same detections."""
    digest = hashlib.sha256(spec_yaml.encode())
    record = _record(checkpoint)
    if record is not None:
        digest.update(record.fingerprint.encode())
    elif checkpoint.is_dir():
        # It holds the sum of every file of the checkpoint.
        digest.update(read_bytes(checkpoint / MANIFEST))
    else:
        with checkpoint.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
