"""A model file of an untrained model, in a moment, for tests that detect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_spec import TINY_SPEC

import adatad
from adatad.convert.weight_file import OWN_META, write_safetensors
from adatad.training.model_facts import MERGED, facts_of
from adatad.training.model_record import RECORD, ModelRecord, StoredThreshold, StoredThresholds, fingerprint_of

CLASSES = ("pour", "stir")


def write_model(path: Path, thresholds: Sequence[float] | None = None) -> Path:
    """A file of a detector that tells "pour" from "stir" by chance. thresholds: stored ones, of the two classes."""
    spec_yaml = TINY_SPEC.format(data=path.parent, runs=path.parent / "runs")
    path.with_suffix(".yaml").write_text(spec_yaml)
    detector = adatad.build_detector(adatad.load_spec(path.with_suffix(".yaml")), CLASSES, "cpu")
    with torch.no_grad():
        # Scores around a half, which the input decides, in the place of the small ones of a training's start.
        detector.module.detector.head.cls_head.weight.mul_(4)
        detector.module.detector.head.cls_head.bias.zero_()
    tensors = {name: parameter.detach() for name, parameter in detector.module.named_parameters()}
    stored = None
    if thresholds is not None:
        chosen = [StoredThreshold(threshold=value, precision=1, recall=1, f1=1) for value in thresholds]
        by_class = dict(zip(CLASSES, chosen, strict=True))
        stored = StoredThresholds(tiou=0.5, overall=chosen[0], by_class=by_class)
    record = ModelRecord(
        adatad_version="0", fingerprint=fingerprint_of(tensors), dtype="float32", chosen="named", checkpoint="none",
        licence="", thresholds=stored,
    )  # fmt: skip
    facts = facts_of(detector.spec, CLASSES).header(spec_yaml)
    header = {"content": MERGED, "weights": "random", **facts, RECORD: record.model_dump_json()}
    write_safetensors(path, tensors, {OWN_META: json.dumps(header)})
    return path
