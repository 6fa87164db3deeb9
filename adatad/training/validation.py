"""Detections of a model in the validation videos, and their mAP.

Each rank detects in windows of its own; afterwards every rank has all detections, in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adatad.data.annotations import EVALUATED, Annotations
from adatad.data.dataset import Batch, Skipped, SkippedVideos, collate
from adatad.data.loader import Loader
from adatad.data.time_check import TimeLog
from adatad.data.windows import Window
from adatad.evaluation.classifiers import Classifier, ClassifierError, read_classifier
from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.evaluation.groups import evaluate_groups
from adatad.evaluation.postprocess import WindowDetections, WindowMeta, join_windows, window_detections
from adatad.evaluation.score_warnings import score_warnings
from adatad.files import write_json
from adatad.memory.arithmetic import autocast
from adatad.memory.inputs import place_frames
from adatad.memory.results import ResultCopies, Results
from adatad.models.actionformer import decode_all, only_valid
from adatad.parallel.processes import Processes
from adatad.progress_bar import progress
from adatad.spec import Spec
from adatad.spec.data_sections import DataSpec
from adatad.training.model_facts import list_names
from adatad.training.resolve import ResolvedRun, outputs_of

Detections = dict[str, list[dict[str, Any]]]


@torch.no_grad()
def detect(
    model: nn.Module,
    loader: Loader,
    run: ResolvedRun,
    processes: Processes,
    skipped: SkippedVideos,
    after_window: Callable[[], None] | None = None,
    times: TimeLog | None = None,
    copies: ResultCopies | None = None,
) -> Detections:
    """Return the detections of every validation video, on every rank: {video: [{"segment", "label", "score"}]}, in
    seconds. All ranks call it.

    Videos that couldn't be read are added to `skipped`; nothing is found in them. What files and annotations differ in
    is added to `times`. after_window: called on all ranks after each forward pass; what it raises ends the evaluation.
    copies: an earlier evaluation's, to use its pinned memory again.
    """
    spec, training = run.spec, model.training
    model.eval()
    classifier = read_classifier(spec.postprocess.classifier) if spec.postprocess.classifier else None
    found: list[WindowDetections] = []
    missed: list[Skipped] = []
    # Ranks that share a window all find the same in it: one of them reports it.
    reports = run.mesh.clip_rank == 0
    copies = copies or ResultCopies(processes.device)
    before: tuple[list[Window], Results] | None = None
    for batch, counts in batches_in_step(loader, processes):
        frames = place_frames(batch.frames, spec.memory, processes.device)
        mask = batch.mask.to(processes.device, non_blocking=True)
        with autocast(processes.device, run.arithmetic):
            predictions = model(frames, mask)
        if after_window:
            after_window()
        # An unreadable video has a window of zeros in the batch, whose detections are dropped below.
        missed += batch.skipped
        if times:
            times.add(batch.times)
        queued = (batch.windows, copies.start(decode_all(predictions))) if counts and reports else None
        # The device computes this window while the host works on what it found in the one before: without this the GPU
        # would wait for NMS.
        if before:
            found += detections_in(*before, run, classifier)
        before = queued
    if before:
        found += detections_in(*before, run, classifier)
    # Evaluations come between epochs: the model goes back to the mode that it had.
    model.train(training)
    unread = [item for part in processes.gather(missed) for item in part]
    skipped.add(unread)
    if times:
        times.share(processes.gather)
    nothing_in = {item.video for item in unread}
    everything = [w for part in processes.gather(found) for w in part if w.video not in nothing_in]
    # In an order that doesn't depend on the number of ranks: equal scores are ranked by it.
    everything.sort(key=lambda window: (window.video, window.start_frame))
    return join_windows(everything, spec.postprocess, run.quirks.repeat_windows)


def detections_in(
    windows: list[Window], results: Results, run: ResolvedRun, classifier: Classifier | None
) -> Iterator[WindowDetections]:
    """Yield the detections of each window, in seconds of its video. results: of `decode_all`, waited for here."""
    for window, (segments_grid, scores) in zip(windows, only_valid(*results.wait()), strict=True):
        meta = window_meta(window, run.spec.data)
        sliding = meta.resize_grid is None
        detections = window_detections(
            segments_grid.numpy(), scores.numpy(), meta, run.outputs, run.spec.postprocess, sliding, classifier
        )
        yield WindowDetections(meta.video, window.start_frame, sliding, detections)


def batches_in_step(loader: Loader, processes: Processes) -> Iterator[tuple[Batch, bool]]:
    """Yield this rank's batches, and whether they count: ranks with fewer go on with a window whose detections are
    thrown away."""
    # Ranks that share weights gather them in each forward pass: all must run the same number of them.
    most = max(processes.gather(len(loader)))
    with progress("windows evaluated", len(loader), quiet=not processes.is_main) as bar:
        for batch in loader:
            yield batch, True
            bar.advance()
    # Any window will do; the first one is read again.
    if len(loader) < most:
        filler = collate([loader.dataset[0]])
        yield from ((filler, False) for _ in range(most - len(loader)))


def window_meta(window: Window, data: DataSpec) -> WindowMeta:
    """Return what turns grid positions of a window into seconds of its video."""
    video, spec = window.video, data.window
    match spec.kind:
        case "sliding":
            start_frame = window.start_frame + spec.offset_frames
            return WindowMeta(video.name, video.duration_seconds, video.fps, spec.stride_frames, start_frame)
        case "resize":
            return WindowMeta(video.name, video.duration_seconds, resize_grid=spec.size_grid)


def score(detections: Detections, run: ResolvedRun) -> MapResult:
    """Return the mAP of detections against the run's ground truth."""
    return evaluate(**_to_evaluate(detections, run))


def score_summary(detections: Detections, run: ResolvedRun) -> dict[str, Any]:
    """Return the mAP of detections as result.json has it: of all instances and, if the spec divides them, "groups" by
    name."""
    everything, key = score(detections, run).summary(), run.spec.evaluate.groups_by
    if key is None:
        return everything
    groups = evaluate_groups(key, **_to_evaluate(detections, run))
    by_name = {name: {**result.summary(), "instances": result.num_ground_truth} for name, result in groups.items()}
    return {**everything, "groups": by_name}


def _to_evaluate(detections: Detections, run: ResolvedRun) -> dict[str, Any]:
    """Return the arguments of `evaluate`, by name."""
    return {
        "ground_truth": run.ground_truth,
        "detections": {"results": detections},
        "subset": EVALUATED,
        "tious": run.spec.evaluate.tious,
        "blocked_videos": run.unscored_videos,
        "keep_ambiguous": True,
        "top_k": run.spec.evaluate.top_k,
    }


def warnings_of(detections: Detections, run: ResolvedRun) -> list[str]:
    """Return what is suspicious about the score of these detections, a line each."""
    content = run.ground_truth, {"results": detections}, EVALUATED
    return score_warnings(*content, run.unscored_videos, keep_ambiguous=True)


def write_detections(path: Path, detections: Detections) -> None:
    """Write detections in the ActivityNet form, atomically. Raises FileError."""
    write_json(path, {"results": detections}, indent=None)


def check_classifier(spec: Spec, annotations: Annotations) -> list[str]:
    """Return lines on classes that no detection will have. Raises ClassifierError, before hours are spent, if the
    external classifier lacks a video that it must label, or knows none of the classes."""
    where, classes = spec.data.annotations, annotations.classes
    if spec.postprocess.classifier is None:
        outputs = outputs_of(spec, annotations)
        if not classes or not set(outputs).isdisjoint(classes):
            return []
        return [
            f"model.detector.class_agnostic without postprocess.classifier: all that is found is labelled "
            f"{outputs[0]!r}, which is no class of {where} ({list_names(classes)}), so that evaluations give 0 %; "
            "postprocess.classifier says which classes a video has"
        ]
    classifier = read_classifier(spec.postprocess.classifier)
    classifier.check(video.name for video in annotations.validation)
    label = spec.postprocess.classifier.pseudo_label
    # Names that match nothing would give 0 % after hours of training, without an error.
    if label is not None and classes and label not in classes:
        raise ClassifierError(
            f"postprocess.classifier.pseudo_label: {label!r} is no class of {where} ({list_names(classes)}): nothing "
            "would be found"
        )
    if classifier.names and set(classifier.names).isdisjoint(classes):
        raise ClassifierError(
            f"{spec.postprocess.classifier.file}: has other classes ({classifier.names[0]!r} and so on) than "
            f"{where} ({classes[0]!r} and so on): nothing would be found"
        )
    unknown = [name for name in classes if name not in classifier.names] if classifier.names else []
    if not unknown:
        return []
    foreign = [name for name in classifier.names if name not in classes]
    return [
        f"{spec.postprocess.classifier.file}: doesn't know {list_names(unknown)} of {where}, so that nothing will be "
        "found of them" + (f"; {where} doesn't know its {list_names(foreign)}" if foreign else "")
    ]
