"""Summary of trained weights of any kind: a model file, trained tensors alone, a run, a checkpoint, or a
checkpoint of OpenTAD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adatad.convert.backbone_weights import sizes_of
from adatad.convert.licences import UNKNOWN, licence_of
from adatad.convert.opentad_checkpoint import is_dropped, our_name
from adatad.convert.weight_file import WeightsError, is_own_safetensors, read_header, read_weight_file
from adatad.detect.model_file import read_model_file, shapes_of_model
from adatad.spec import Spec
from adatad.spec.downloads import data_licence
from adatad.spec.sizes import PRESETS, resolve_backbone
from adatad.training.checkpoint_check import read_state
from adatad.training.export import POSITIONS, find_checkpoint, own_spec, read_trained_file
from adatad.training.model_export import which_checkpoint
from adatad.training.model_facts import TRAINED, ModelFacts, number_of_outputs
from adatad.training.model_scores import recorded_scores

Summary = dict[str, Any]
"""Facts by name, as JSON takes them; None for what isn't known. `describe` says which there are."""
NAMES = (
    "file", "kind", "size_bytes", "dtype", "classes", "outputs", "backbone", "mode", "parameters",
    "backbone_parameters", "window", "frame_rate", "training_fps", "size_pixels", "scores", "thresholds",
    "thresholds_from", "weights", "chosen", "checkpoint", "epoch", "step", "licence", "data_licence", "fingerprint",
    "frozen_fingerprint", "adatad_version", "format_version", "experiment", "classifier",
)  # fmt: skip


def describe(named: Path) -> tuple[Summary, list[str]]:
    """Return what is known of trained weights, under every name of `NAMES`, and lines on what was chosen of a run.

    window: positions, frames that they reach over, frames that are decoded of them, their duration in seconds where
    the rate is known, and the share that the next one repeats; kind resize: the whole video. Raises UserError for what
    is none.
    """
    path, notes = find_checkpoint(named)
    if path.is_dir():
        found = _of_checkpoint(path)
    # By content: a file may have been renamed.
    elif not is_own_safetensors(path):
        found = _of_opentad(path)
    elif read_header(path)[1].get("content") == TRAINED:
        found = _of_trained_tensors(path)
    else:
        found = _of_model_file(path)
    return {**dict.fromkeys(NAMES), "file": str(path), **found}, notes


def _of_model_file(path: Path) -> Summary:
    model = read_model_file(path)
    record = model.record.model_dump(mode="json")
    return {
        # The record comes last: what the file says of itself goes before what follows from its spec.
        "kind": "model file",
        "size_bytes": model.size_bytes,
        "weights": model.weights,
        "step": model.step,
        **_of_spec(model.spec, model.facts, record["training_fps"]),
        **record,
        # Files of before it was recorded: what their spec tells.
        "data_licence": record["data_licence"] or data_licence(model.spec.data.videos),
    }


def _of_trained_tensors(path: Path) -> Summary:
    trained, header = read_trained_file(path), read_header(path)[1]
    spec = own_spec(path, check_files=False) if trained.spec_yaml else None
    step = header.get("step", "")
    return {
        "kind": "trained tensors alone, without the backbone's",
        "size_bytes": path.stat().st_size,
        "weights": header.get("weights"),
        "step": int(step) if step.isascii() and step.isdigit() and len(step) < 20 else None,
        "frozen_fingerprint": header.get("frozen_fingerprint"),
        **(_of_spec(spec, trained.facts) if spec else {}),
        **_licence(spec),
    }


def _of_checkpoint(path: Path) -> Summary:
    trained = read_trained_file(path)
    spec, state = own_spec(path, check_files=False), read_state(path)[0]
    scores = recorded_scores(path, state["progress"]["step"])
    return {
        "kind": "checkpoint of a run",
        "size_bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "scores": scores.model_dump(mode="json") if scores else None,
        "weights": "moving averages and parameters of the last step",
        "chosen": which_checkpoint(path),
        "checkpoint": path.resolve().name,
        "epoch": state["progress"]["epoch"],
        "step": state["progress"]["step"],
        "frozen_fingerprint": state["frozen_fingerprint"],
        **_of_spec(spec, trained.facts),
        **_licence(spec),
    }


def _of_opentad(path: Path) -> Summary:
    """Return what names and shapes of OpenTAD's checkpoint tell, and more if it was written here."""
    file = read_weight_file(path)
    shapes: dict[str, Sequence[int]] = {}
    for name, tensor in file.tensors.items():
        # Entries that no feature depends on are no parameters here.
        if is_dropped(name):
            continue
        try:
            shapes[our_name(name)] = tensor.shape
        except KeyError as error:
            raise WeightsError(f"{path}: is no checkpoint of a detector that is known here: {error.args[0]}") from error
    outputs = number_of_outputs(shapes)
    if outputs is None:
        raise WeightsError(f"{path}: holds no detector; model.backbone.weights takes pretrained weights as they are")
    facts = read_trained_file(path)
    known = {}
    if facts.spec_yaml:
        spec = own_spec(path, check_files=False)
        known = {**_of_spec(spec, facts.facts), **_licence(spec)}
    return {
        "kind": "checkpoint of OpenTAD",
        "size_bytes": path.stat().st_size,
        "dtype": str(next(iter(file.tensors.values())).dtype).removeprefix("torch."),
        "weights": "moving averages" if file.averaged else "parameters",
        "outputs": [None] * outputs,
        **_of_shapes(shapes),
        "licence": UNKNOWN,
        **known,
    }


def _of_shapes(shapes: Mapping[str, Sequence[int]]) -> Summary:
    """Return backbone, mode and parameters as names and shapes of OpenTAD's tensors tell them."""
    encoder = {name.removeprefix("backbone."): shape for name, shape in shapes.items() if name.startswith("backbone.")}
    sizes = sizes_of(encoder)
    four = (sizes["width"], sizes["depth"], sizes["MLP width"], sizes["patch"])
    # A preset is a set of sizes, and OpenTAD's files say nothing but sizes.
    fitting = [n for n, p in PRESETS.items() if (p.width, p.depth, int(p.width * p.mlp_ratio), p.patch) == four]
    adapters = [name for name in encoder if "adapter" in name]
    mode = "side" if any("side_adapters" in name for name in adapters) else "adapter" if adapters else None
    return {
        "backbone": {"preset": fitting[0] if fitting else None, "width": sizes["width"], "depth": sizes["depth"]},
        "mode": mode,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "backbone_parameters": sum(math.prod(shape) for shape in encoder.values()),
    }


def _licence(spec: Spec | None) -> Summary:
    if spec is None:
        return {"licence": UNKNOWN}
    return {"licence": licence_of(spec.model.backbone.weights), "data_licence": data_licence(spec.data.videos)}


def _of_spec(spec: Spec, facts: ModelFacts | None, training_fps: float | None = None) -> Summary:
    """Return what a spec says of the model and its input. facts: names of the outputs, None in older files."""
    backbone, sizes = spec.model.backbone, resolve_backbone(spec.model.backbone)
    # Without names nobody knows here how many outputs there are.
    shapes = shapes_of_model(spec.model, len(facts.outputs)) if facts else {}
    numbers = {name: math.prod(shape) for name, shape in shapes.items() if name != POSITIONS}
    # A preset whose sizes are set otherwise is no preset any more.
    own_sizes = any(getattr(backbone, name) for name in ("width", "depth", "heads", "patch", "mlp_ratio"))
    classifier = spec.postprocess.classifier
    return {
        "classes": list(facts.classes) if facts else None,
        "outputs": list(facts.outputs) if facts else None,
        "backbone": {
            "preset": None if own_sizes else backbone.preset, "width": sizes.width, "depth": sizes.depth
        },
        "mode": backbone.mode,
        "parameters": sum(numbers.values()) or None,
        "backbone_parameters": sum(count for name, count in numbers.items() if name.startswith("backbone.")) or None,
        "window": _window(spec, training_fps),
        "frame_rate": {"fps": spec.data.fps, "time": spec.data.time},
        "size_pixels": spec.data.size_pixels,
        "experiment": spec.name,
        "classifier": classifier.file if classifier else None,
        "format_version": facts.format_version if facts else None,
    }  # fmt: skip


def _window(spec: Spec, training_fps: float | None) -> Summary:
    window, fps = spec.data.window, spec.data.fps or training_fps
    # A window of kind resize is as long as its video.
    frames = window.size_grid * window.stride_frames if window.kind == "sliding" else None
    return {
        "kind": window.kind,
        "positions": window.size_grid,
        "frames": frames,
        "decoded_frames": window.size_grid * window.frames_per_position,
        "seconds": frames / fps if frames and fps else None,
        "overlap": window.overlap if window.kind == "sliding" else None,
    }
