"""Make the project's own golden cases: small ones in the form of the reference's, by the implementation that agreed
with every one of those (tools/verify_golden.py on them). Run only when the form changes, never to make a test pass:

    python tests/golden/make_goldens.py tests/golden
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adatad.convert.opentad_checkpoint import opentad_name
from adatad.dev.parity.golden_cases import GoldenCase
from adatad.dev.parity.model_case import LOSSES, evaluation_losses, fresh_parts, recorded
from adatad.dev.parity.translate import batch_of, build_case_model, metas_of, spec_of
from adatad.evaluation.postprocess import WindowDetections, join_windows, window_detections
from adatad.models.actionformer import decode
from adatad.models.losses import detection_losses
from adatad.training.optimizer import learning_rate
from adatad.training.setup import TrainState
from adatad.training.step import batch_targets, train_step

CLASSES = 3
BACKBONE = {
    "patch": 8, "tubelet": 2, "clip_frames": 16, "position_grid": 3, "width": 16, "depth": 2, "heads": 2,
    "mlp_ratio": 2.0, "norm_eps": 1e-6, "adapter_blocks": [1], "adapter_ratio": 0.25, "adapter_kernel": 3,
    "adapter_dilation": 1,
}  # fmt: skip
DETECTOR = {
    "in_width": 16, "in_split_width": None, "width": 8, "heads": 2, "embed_convs": 1, "embed_kernel": 3,
    "stem_blocks": 1, "branch_blocks": 2, "attention_window": -1, "layer_scale": True, "absolute_positions": False,
    "max_length": 32, "neck": "identity", "neck_norm": False, "classes": CLASSES, "head_convs": 1,
    "regression_ranges": [[0, 4], [4, 8], [8, 10000]], "point_offset": False, "center_sampling": "radius",
    "center_radius": 1.5, "label_smoothing": 0.0, "regression_loss_weight": 1.0, "similar_segments_only": True,
    "regression_loss": "diou", "focal_alpha": 0.25, "focal_gamma": 2.0, "normalizer_start": 20,
    "normalizer_momentum": 0.9,
}  # fmt: skip
SCHEDULE = {"warmup_epochs": 1, "epochs": 4, "steps_per_epoch": 3, "recorded_steps": 6, "eta_min": 1e-8}
NMS = {"use_soft_nms": True, "sigma": 0.6, "max_seg_num": 40, "multiclass": True}
RATES = {"detector_lr": 4e-3, "weight_decay": 0.05, "adapter_lr": 8e-3, "adapter_weight_decay": 0.1}


def cases() -> list[dict[str, Any]]:
    """Return each case's options, over those above."""
    return [
        {
            "name": "adapter_padded", "seed": 1, "kind": "adapter", "backbone": BACKBONE,
            "detector": {**DETECTOR, "attention_window": 5, "label_smoothing": 0.1},
            "input": {"batch": 2, "frames": 32, "height": 24, "width": 41, "window": 32, "valid": [32, 19]},
            "optimizer": {"kind": "adapter", **RATES}, "sliding": True,
        },
        {
            "name": "side_pyramid", "seed": 2, "kind": "side",
            "backbone": {**BACKBONE, "adapter_blocks": [0, 1], "position_grid": 2},
            "detector": {
                **DETECTOR, "neck": "fpn", "neck_norm": True, "absolute_positions": True, "regression_loss": "giou",
                "max_length": 16, "point_offset": True, "regression_loss_weight": 0.5, "center_sampling": "none",
            },
            "input": {"batch": 1, "frames": 32, "height": 16, "width": 16, "window": 16, "valid": [13]},
            "optimizer": {"kind": "adapter", **RATES}, "sliding": False,
        },
        {
            "name": "full", "seed": 3, "kind": "full", "backbone": {**BACKBONE, "adapter_blocks": []},
            "detector": {**DETECTOR, "embed_convs": 2},
            "input": {"batch": 1, "frames": 32, "height": 24, "width": 24, "window": 32, "valid": [27]},
            "optimizer": {"kind": "full", "backbone_lr": 2e-3, "backbone_weight_decay": 0.05, **RATES},
            "sliding": False,
        },
    ]  # fmt: skip


def facts_of(case: dict[str, Any]) -> dict[str, Any]:
    meta = {"fps": 10.0, "snippet_stride": 2, "offset_frames": 0, "duration": 9.0}
    batch = case["input"]["batch"]
    metas = [{"video_name": "video", "window_start_frame": 20 * index, **meta} for index in range(batch)]
    return {
        "name": case["name"], "kind": case["kind"], "seed": case["seed"], "about": "A small case of the project's own.",
        "backbone": case["backbone"], "detector": case["detector"], "input": case["input"], "metas": metas,
        "class_names": [f"class_{number}" for number in range(CLASSES)], "external_classifier": None,
        "postprocess": {
            "sliding_window": case["sliding"], "pre_nms_thresh": None, "pre_nms_topk": 100,
            "nms": NMS if case["sliding"] else {**NMS, "use_soft_nms": False, "iou_threshold": 0.4},
        },
        "optimizer": case["optimizer"], "schedule": SCHEDULE, "clip_norm": 0.3, "ema_decay": 0.99,
    }  # fmt: skip


def rounded(array: np.ndarray, bits: int) -> np.ndarray:
    """Float32 with so many significant bits: such arrays compress well."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    return np.asarray(np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent), np.float32)


def draw_inputs(facts: dict[str, Any], draw: np.random.Generator) -> dict[str, np.ndarray]:
    size = facts["input"]
    shape = (size["batch"], 1, 3, size["frames"], size["height"], size["width"])
    inputs: dict[str, np.ndarray] = {
        # Few grey levels: they compress.
        "frames": draw.integers(0, 4, shape).astype(np.uint8) * 85,
        "masks": np.arange(size["window"])[None] < np.array(size["valid"])[:, None],
    }
    for index, valid in enumerate(size["valid"]):
        starts, lengths = draw.uniform(0, valid - 3, 5), draw.uniform(1, valid / 2, 5)
        segments = np.stack([starts, np.minimum(starts + lengths, valid)], 1)
        inputs[f"gt_segments/{index}"] = np.concatenate([segments, segments[:1]]).astype(np.float32)
        inputs[f"gt_labels/{index}"] = np.array([0, 1, 2, 0, 1, 2])
    return inputs


def draw_weights(facts: dict[str, Any], draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Every weight random, so that none is without effect."""
    empty = GoldenCase(Path(), facts, {}, {}, {}, {})
    weights = {}
    for name, parameter in build_case_model(empty, spec_of(empty)).named_parameters():
        fan_in = max(int(np.prod(parameter.shape[1:])), 1)
        value = draw.standard_normal(tuple(parameter.shape)) / np.sqrt(fan_in)
        if name.endswith(("_scale", "gamma", "norm.weight", "norm1.weight")) or "scales" in name:
            value = 1 + 0.3 * draw.standard_normal(tuple(parameter.shape))
        weights[opentad_name(name)] = rounded(np.asarray(value * (0.5 if "cls_head" in name else 1)), 8)
    return weights


def make_case(folder: Path, facts: dict[str, Any]) -> None:
    draw = np.random.default_rng(facts["seed"])
    case = GoldenCase(folder, facts, {}, draw_weights(facts, draw), draw_inputs(facts, draw), {})
    spec = spec_of(case)
    parts, arrays, expected = fresh_parts(case, spec), {}, {}
    first_steps(case, parts, arrays, expected)
    record_detections(case, parts, arrays, expected)
    record_trajectory(case, fresh_parts(case, spec), arrays, expected)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").write_text(json.dumps(facts, indent=1))
    (folder / "expected.json").write_text(json.dumps(expected, indent=0))
    for name, content in (("weights", case.weights), ("inputs", case.inputs), ("expected", arrays)):
        np.savez_compressed(folder / f"{name}.npz", **content)


def first_steps(case: GoldenCase, parts: TrainState, arrays: dict[str, Any], expected: dict[str, Any]) -> None:
    batch, model = batch_of(case), parts.model
    model.train()
    with recorded(model) as seen:
        predictions = model(batch.frames, batch.mask)
    arrays.update({name: rounded(array, 16) for name, array in seen.items()})
    for name in ("logits", "offsets"):
        for level, tensor in enumerate(getattr(predictions, name)):
            arrays[f"train/{name}/{level}"] = rounded(tensor.detach().numpy(), 16)
    arrays["train/points"] = torch.cat(predictions.points).numpy()
    arrays.update({f"train/level_mask/{level}": mask.numpy() for level, mask in enumerate(predictions.masks)})
    targets = batch_targets(parts, batch)
    for index in range(len(batch.mask)):
        arrays[f"train/target_class/{index}"] = targets.classes[index].numpy()
        arrays[f"train/target_offset/{index}"] = targets.offsets[index].numpy()
    expected["positives"] = int(targets.positive.sum())
    for call in ("first", "second"):
        normalizer = parts.normalizer.update(expected["positives"])
        losses = detection_losses(predictions, targets, normalizer, parts.spec.model.detector)
        expected[f"train_losses_{call}_call"] = {name: float(losses[name].detach()) for name in LOSSES}
        expected[f"normalizer_after_{call}_call"] = normalizer
        if call == "first":
            losses["cost"].backward(retain_graph=True)
            record_gradients(parts, arrays, expected)
    losses = evaluation_losses(case, parts, targets)
    expected["eval_losses"] = {name: float(losses[name]) for name in LOSSES}


def record_gradients(parts: TrainState, arrays: dict[str, Any], expected: dict[str, Any]) -> None:
    gradients = {opentad_name(n): p.grad.numpy() for n, p in parts.model.named_parameters() if p.grad is not None}
    joint = float(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values())))
    arrays.update({f"gradient/{name}": rounded(gradient, 16) for name, gradient in gradients.items()})
    expected["gradient_norm"] = joint
    expected["rounding_noise_gradients"] = [n for n, g in gradients.items() if np.linalg.norm(g) < 2e-6 * joint]
    expected["requires_gradient_after_forward"] = sorted(gradients)
    expected["requires_gradient_but_never_gets_one"] = []
    parts.model.zero_grad()


@torch.no_grad()
def record_detections(case: GoldenCase, parts: TrainState, arrays: dict[str, Any], expected: dict[str, Any]) -> None:
    parts.model.eval()
    batch, sliding = batch_of(case), case.facts["postprocess"]["sliding_window"]
    windows = []
    for index, ((segments, scores), meta) in enumerate(
        zip(decode(parts.model(batch.frames, batch.mask)), metas_of(case), strict=True)
    ):
        arrays[f"eval/proposals/{index}"], arrays[f"eval/scores/{index}"] = segments.numpy(), scores.numpy()
        spec = parts.spec.postprocess
        found = window_detections(segments.numpy(), scores.numpy(), meta, case.facts["class_names"], spec, sliding)
        windows.append(WindowDetections(meta.video, index, sliding, found))
    if sliding:
        alone = [replace(window, sliding=False) for window in windows]
        expected["detections_per_window"] = join_windows(alone, parts.spec.postprocess)
    expected["detections"] = join_windows(windows, parts.spec.postprocess)


def record_trajectory(case: GoldenCase, parts: TrainState, arrays: dict[str, Any], expected: dict[str, Any]) -> None:
    batch, schedule = batch_of(case), parts.spec.schedule
    groups = parts.engine.groups
    expected["optimizer_groups"] = [
        {
            "weight_decay": g["weight_decay"],
            "base_lr": g["base_lr"],
            "parameters": [opentad_name(n) for n in g["parameter_names"]],
        }
        for g in groups
    ]
    before = {name: p.detach().clone().numpy() for name, p in parts.model.named_parameters()}
    parts.model.train()
    expected["trajectory"] = []
    for step in range(SCHEDULE["recorded_steps"]):
        values = train_step(parts, [batch], step)
        expected["trajectory"].append({
            "losses": {name: values[name] for name in LOSSES}, "gradient_norm": values["gradient_norm"],
            "group_lrs": list(values["lr"].values()), "normalizer": values["normalizer"],
        })  # fmt: skip
    steps = SCHEDULE["steps_per_epoch"]
    expected["lr_after_last_step"] = [
        learning_rate(
            SCHEDULE["recorded_steps"], g["base_lr"], schedule.warmup_epochs * steps, schedule.epochs * steps,
            schedule.eta_min,
        )
        for g in groups
    ]  # fmt: skip
    losses = evaluation_losses(case, parts, batch_targets(parts, batch))
    expected["eval_losses_after_trajectory"] = {name: float(losses[name]) for name in LOSSES}
    after = {name: p.detach().numpy() for name, p in parts.model.named_parameters()}
    averages = {name: tensor.numpy() for name, tensor in parts.ema.averages.items()}
    for kind, values in (("weight", after), ("ema", averages)):
        change = {name: values[name] - before[name] for name in parts.trained}
        expected[f"{kind}_change_l2_and_sum"] = {
            opentad_name(name): [float(np.linalg.norm(array)), float(array.sum())] for name, array in change.items()
        }
        prefix = "final" if kind == "weight" else "ema_final"
        for name in [n for n in parts.trained if after[n].size <= 32][::4]:
            arrays[f"{prefix}/{opentad_name(name)}"] = values[name]
    expected["unchanged_tensors"] = [opentad_name(n) for n in after if n not in parts.trained]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for case in cases():
        make_case(folder / case["name"], facts_of(case))


if __name__ == "__main__":
    main()
