"""Translation of a golden case into our own terms: its spec, its model with the reference's weights, its batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adatad.convert.opentad_checkpoint import name_map
from adatad.data.dataset import Batch
from adatad.dev.parity.golden_cases import CaseError, GoldenCase
from adatad.dev.parity.post_file import post_spec, window_meta_of
from adatad.evaluation.classifiers import Classifier
from adatad.evaluation.postprocess import WindowMeta
from adatad.models.actionformer import ActionFormer, Predictions
from adatad.models.detector import build_model
from adatad.spec.data_sections import DataSpec
from adatad.spec.model_sections import AdapterSpec, BackboneSpec, DetectorSpec, ModelSpec
from adatad.spec.schema import (
    BackboneOptimizerSpec,
    ClassifierSpec,
    EmaSpec,
    OptimizerSpec,
    ParameterGroup,
    ScheduleSpec,
    Spec,
    TrainSpec,
)


class FeatureDetector(nn.Module):
    """A detector alone, called like a model with a backbone."""

    backbone = None

    def __init__(self, detector: ActionFormer):
        super().__init__()
        self.detector = detector

    def forward(self, features: Tensor, mask: Tensor, keys: Tensor | None = None) -> Predictions:
        """Return the detector's predictions of features [batch, channels, time]."""
        return self.detector(features, mask, keys)


def spec_of(case: GoldenCase) -> Spec:
    """Return the case's spec, with the reference's quirks."""
    facts = case.facts
    return Spec(
        name=case.name,
        data=DataSpec(annotations="", videos=""),
        model=ModelSpec(backbone=_backbone(facts), detector=_detector(facts["detector"])),
        optimizer=_optimizer(facts["optimizer"]),
        schedule=ScheduleSpec(
            warmup_epochs=facts["schedule"]["warmup_epochs"],
            epochs=facts["schedule"]["epochs"],
            eta_min=facts["schedule"]["eta_min"],
        ),
        ema=EmaSpec(decay=facts["ema_decay"]),
        train=TrainSpec(clip_norm=facts["clip_norm"], precision="fp32", global_batch=facts["input"]["batch"]),
        postprocess=post_spec(facts["postprocess"]),
        compat="reference",
    )


def _backbone(facts: dict[str, Any]) -> BackboneSpec:
    backbone = facts["backbone"]
    if backbone is None:
        return BackboneSpec(mode="frozen")
    # Not a setting of ours: another value would compare two different models.
    if backbone["norm_eps"] != 1e-6:
        raise CaseError(f"case {facts['name']}: backbone.norm_eps {backbone['norm_eps']} isn't 1e-6, the model's own")
    adapter = AdapterSpec(
        blocks=tuple(backbone["adapter_blocks"]),
        ratio=backbone["adapter_ratio"],
        kernel=backbone["adapter_kernel"],
        dilation=backbone["adapter_dilation"],
    )
    # Called alike in cases and in our spec.
    same = ("width", "depth", "heads", "patch", "mlp_ratio", "position_grid", "tubelet", "clip_frames")
    return BackboneSpec(**{name: backbone[name] for name in same}, mode=facts["kind"], adapter=adapter, drop_path=0.0)


def _detector(facts: dict[str, Any]) -> DetectorSpec:
    same = (
        "width", "heads", "embed_convs", "embed_kernel", "stem_blocks", "branch_blocks", "layer_scale",
        "absolute_positions", "max_length", "neck", "neck_norm", "head_convs", "point_offset", "center_sampling",
        "center_radius", "similar_segments_only", "label_smoothing", "focal_alpha", "focal_gamma", "regression_loss",
        "normalizer_start", "normalizer_momentum",
    )  # fmt: skip
    values = {name: facts[name] for name in same}
    window, split = facts["attention_window"], facts["in_split_width"]
    return DetectorSpec(
        **values,
        attention_window=tuple(window) if isinstance(window, list) else window,
        split_width=None if split is None else tuple(split),
        regression_ranges=tuple(tuple(bounds) for bounds in facts["regression_ranges"]),
        regression_weight=facts["regression_loss_weight"],
        class_agnostic=facts["classes"] == 1,
        drop_path=0.0,
    )


def _optimizer(facts: dict[str, Any]) -> OptimizerSpec:
    backbone = None
    match facts["kind"]:
        case "adapter":
            group = ParameterGroup(name="adapter", lr=facts["adapter_lr"], weight_decay=facts["adapter_weight_decay"])
            backbone = BackboneOptimizerSpec(custom=(group,))
        case "full":
            backbone = BackboneOptimizerSpec(lr=facts["backbone_lr"], weight_decay=facts["backbone_weight_decay"])
    # Cases list it always; the reference reads it in this kind alone.
    layer_decay = facts["layer_decay"] if facts["kind"] == "layer_decay" else None
    return OptimizerSpec(
        lr=facts["detector_lr"], weight_decay=facts["weight_decay"], backbone=backbone, layer_decay=layer_decay
    )


def build_case_model(case: GoldenCase, spec: Spec) -> nn.Module:
    """Return the case's model with random weights."""
    facts = case.facts["detector"]
    if case.facts["backbone"] is not None:
        return build_model(spec.model, facts["classes"])
    in_width = facts["in_width"]
    widths = tuple(in_width) if isinstance(in_width, list) else in_width
    return FeatureDetector(ActionFormer(spec.model.detector, widths, facts["classes"]))


def model_of(case: GoldenCase, spec: Spec) -> nn.Module:
    """Return the model with the case's weights. Raises CaseError for entries and parameters without a partner."""
    model = build_case_model(case, spec)
    try:
        names = name_map(case.weights)
        model.load_state_dict({ours: torch.from_numpy(case.weights[theirs]) for theirs, ours in names.items()})
    except (KeyError, RuntimeError) as error:
        raise CaseError(f"{case.folder / 'weights.npz'}: {error}") from error
    return model


def batch_of(case: GoldenCase) -> Batch:
    """Return the training batch; for a detector alone, features take the place of frames."""
    inputs = case.inputs
    # The reference has an axis of crops, of which there is one.
    frames = torch.from_numpy(inputs["frames"][:, 0] if "frames" in inputs else inputs["features"])
    mask = torch.from_numpy(inputs["masks"])
    labels = [label.long() for label in case.samples("gt_labels")]
    # Keys of random draws, of which a case has none.
    keys = torch.zeros(len(mask), dtype=torch.int64)
    return Batch(frames, mask, keys, case.samples("gt_segments"), labels, windows=[], augmentations=[None] * len(mask))


def metas_of(case: GoldenCase) -> list[WindowMeta]:
    """Return where the case's samples lie."""
    return [window_meta_of(facts) for facts in case.facts["metas"]]


def classifier_of(case: GoldenCase) -> Classifier | None:
    """Return the case's external classifier, if it has one."""
    facts = case.facts["external_classifier"]
    if facts is None:
        return None
    # The reference's fusions are those of its classifiers, by which ours are called.
    if facts["fusion"] == "constant":
        return Classifier(ClassifierSpec(kind="pseudo", pseudo_label=facts["label"]), (), None)
    kind = "standard" if facts["fusion"] == "sqrt" else "cuhk"
    spec = ClassifierSpec(kind=kind, topk=facts["top"], apply_softmax=facts["softmax"])
    return Classifier(spec, tuple(facts["classes"]), facts["scores"])
