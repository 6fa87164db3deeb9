"""From a model to detections and mAP over the validation videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adatad.data.annotations import Annotations, load_database
from adatad.data.dataset import Batch, collate
from adatad.data.loader import Loader
from adatad.data.skipped import Skipped, SkippedVideos
from adatad.data.windows import Window
from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.evaluation.postprocess import WindowMeta, merge_windows, window_detections
from adatad.memory.arithmetic import autocast
from adatad.memory.frames import HostFrames
from adatad.models.detections import decode
from adatad.parallel.engine import autocast_dtype
from adatad.parallel.processes import Processes
from adatad.spec import Spec

Detections = dict[str, list[dict[str, Any]]]


@torch.no_grad()
def detect(
    model: nn.Module,
    loader: Loader,
    spec: Spec,
    classes: tuple[str, ...],
    processes: Processes,
    skipped: SkippedVideos,
) -> Detections:
    """Detections of every validation video, on every rank: {video: [{"segment", "label", "score"}]}, in seconds.

    Videos that couldn't be read are added to `skipped`; nothing is found in them.
    """
    training = model.training
    model.eval()
    dtype = autocast_dtype(spec.train.precision, processes.device)
    found: list[tuple[str, int, list[dict[str, Any]]]] = []
    missed: list[Skipped] = []
    for batch, counts in in_step(loader, processes):
        on_host = spec.memory.frames == "host"
        frames = (
            HostFrames(batch.frames, processes.device)
            if on_host
            else batch.frames.to(processes.device, non_blocking=True)
        )
        mask = batch.mask.to(processes.device, non_blocking=True)
        with autocast(processes.device, dtype):
            predictions = model(frames, mask)
        missed += batch.skipped
        if not counts or batch.skipped:
            continue
        for window, (segments_grid, scores) in zip(batch.windows, decode(predictions), strict=True):
            detections = window_detections(
                segments_grid.cpu().numpy(), scores.cpu().numpy(), window_meta(window, spec), classes, spec.postprocess
            )
            found.append((window.video.name, window.start_frame, detections))
    model.train(training)
    skipped.add(item for part in processes.gather(missed) for item in part)
    by_video: dict[str, list[list[dict[str, Any]]]] = {}
    everything = [item for part in processes.gather(found) for item in part]
    for name, _, detections in sorted(everything, key=lambda item: item[:2]):
        by_video.setdefault(name, []).append(detections)
    return merge_windows(by_video, spec.postprocess)


def in_step(loader: Loader, processes: Processes) -> Iterator[tuple[Batch, bool]]:
    """This rank's batches, and whether they count: ranks with fewer go on with a window of no account, because ranks
    that share weights must all run the same number of forward passes."""
    most = max(processes.gather(len(loader)))
    yield from ((batch, True) for batch in loader)
    if len(loader) < most:
        filler = collate([loader.dataset[0]])
        yield from ((filler, False) for _ in range(most - len(loader)))


def window_meta(window: Window, spec: Spec) -> WindowMeta:
    """What turns grid positions of a window into seconds of its video."""
    video = window.video
    return WindowMeta(video.name, video.duration_seconds, video.fps, spec.data.window.stride_frames, window.start_frame)


def score(detections: Detections, spec: Spec) -> MapResult:
    """mAP of detections against the annotation file of the spec."""
    ground_truth = {"database": load_database(spec.data.annotations)}
    keep_ambiguous = spec.compat == "reference"
    return evaluate(
        ground_truth, {"results": detections}, spec.data.validation_subset, spec.evaluate.tious,
        keep_ambiguous=keep_ambiguous,
    )  # fmt: skip


def summary(result: MapResult) -> dict[str, Any]:
    """A result as it stands in files: mAP by tIoU, and AP by class and tIoU."""
    return {
        "average_mAP": result.average_mAP,
        "mAP": {f"{tiou:g}": value for tiou, value in result.mAP.items()},
        "ap_per_class": {label: list(values) for label, values in result.ap_per_class.items()},
    }


def write_detections(path: Path, detections: Detections) -> None:
    path.write_text(json.dumps({"results": detections}))


def classes_of(spec: Spec, annotations: Annotations) -> tuple[str, ...]:
    """Names of the model's outputs: one if it doesn't tell classes apart."""
    return ("action",) if spec.model.detector.class_agnostic else annotations.classes
