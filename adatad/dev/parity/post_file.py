"""Golden cases from scores to detections: post.json."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adatad.dev.parity.comparison import TOLERANCES, Comparison, largest, mismatch, relative_to_value, rows_of_cases
from adatad.dev.parity.detection_differences import Detection, largest_differences
from adatad.dev.parity.nms_file import nms_spec, segments_of
from adatad.evaluation.classifiers import Classifier, read_classifier
from adatad.evaluation.postprocess import (
    WindowDetections,
    WindowMeta,
    join_windows,
    window_detections,
    window_results,
)
from adatad.spec.schema import ClassifierSpec, PostprocessSpec


def run(content: dict[str, Any], folder: Path) -> list[Comparison]:
    cases = content.get("cases", ())
    classifiers = {case.get("name"): case.get("classifier") for case in cases if isinstance(case, dict)}

    def fixed_segments(case: dict[str, Any]) -> list[Comparison]:
        with classifier_of(classifiers[case["classifier_of_case"]]) as classifier:
            return _classifier(case, classifier)

    return [
        *rows_of_cases(cases, _end_to_end, "post case"),
        *rows_of_cases(content.get("merge_cases", ()), _merge, "merge case"),
        *rows_of_cases(content.get("classifier_cases", ()), fixed_segments, "classifier case"),
    ]


def _end_to_end(case: dict[str, Any]) -> list[Comparison]:
    with classifier_of(case.get("classifier")) as classifier:
        return _detections(case, classifier)


def _detections(case: dict[str, Any], classifier: Classifier | None) -> list[Comparison]:
    spec, sliding = post_spec(case["settings"]), case["settings"]["sliding_window"]
    before, windows = {}, []
    for number, (meta, segments, scores) in enumerate(_samples(case)):
        arguments = (segments, scores, meta, case.get("classes") or (), spec, sliding, classifier)
        before.setdefault(meta.video, []).extend(_as_items(*window_results(*arguments)))
        windows.append(WindowDetections(meta.video, number, sliding, window_detections(*arguments)))
    expected = {
        video: _as_items(np.array(e["segments"]).reshape(-1, 2), e["scores"], e["labels"])
        for video, e in case["unrounded"].items()
    }
    unrounded = largest(largest_differences(before, expected))
    return [
        Comparison(case["name"], "before rounding", unrounded, TOLERANCES["unrounded"]),
        *_of_results(case["name"], "results", join_windows(windows, spec), case["results"]),
    ]


def _merge(case: dict[str, Any]) -> list[Comparison]:
    """Processes' results from their samples, and what is joined from the reference's own results of processes. One that
    repeats a sample is as the reference has it; mended, each is there once."""
    spec, sliding, rows = post_spec(case["settings"]), case["settings"]["sliding_window"], []
    samples = list(_samples(case))
    order = [[number for batch in batches for number in batch] for batches in case["processes"]]
    for process, numbers in enumerate(order):
        windows = []
        for number in numbers:
            meta, segments, scores = samples[number]
            found = window_detections(segments, scores, meta, case["classes"], spec, sliding)
            windows.append(WindowDetections(meta.video, number, False, found))
        ours = join_windows(windows, spec, repeat_windows=True)
        rows += _of_results(case["name"], f"process {process}", ours, case["per_process_results"][process])
    parts = [
        WindowDetections(video, process, sliding, items)
        for process, results in enumerate(case["per_process_results"])
        for video, items in results.items()
    ]
    rows += _of_results(case["name"], "joined", join_windows(parts, spec, repeat_windows=True), case["merged"])
    return rows


def _classifier(case: dict[str, Any], classifier: Classifier) -> list[Comparison]:
    segments, scores, labels = classifier.label(
        "v_test_0003", segments_of(case["segments"]), np.array(case["scores"], np.float32)
    )
    tolerance = TOLERANCES["fused"]
    expected = np.array(case["out_segments"], np.float64).reshape(-1, 2), np.array(case["out_scores"], np.float64)
    return [
        Comparison(case["name"], "classifier: segments", relative_to_value(segments, expected[0]), tolerance),
        Comparison(case["name"], "classifier: scores", relative_to_value(scores, expected[1]), tolerance),
        Comparison(case["name"], "classifier: labels", mismatch(labels, case["out_labels"]), TOLERANCES["exact"]),
    ]


def post_spec(settings: dict[str, Any]) -> PostprocessSpec:
    """The reference's settings, its defaults where one isn't given."""
    threshold, top = settings.get("pre_nms_thresh"), settings.get("pre_nms_topk")
    return PostprocessSpec(
        pre_nms_threshold=0.001 if threshold is None else threshold,
        pre_nms_topk=2000 if top is None else top,
        nms=None if settings.get("nms") is None else nms_spec(settings["nms"]),
    )


@contextmanager
def classifier_of(facts: dict[str, Any] | None) -> Iterator[Classifier | None]:
    """A case's classifier, read from a file as it is in a run."""
    if facts is None:
        yield None
        return
    known = {key: facts[key] for key in ("kind", "topk", "apply_softmax", "pseudo_label") if facts.get(key) is not None}
    with tempfile.TemporaryDirectory() as folder:
        match facts["kind"]:
            case "pseudo":
                spec = ClassifierSpec(**known)
            case "untrimmednet_thumos":
                path = Path(folder) / "scores.npy"
                np.save(path, np.array(facts["matrix"]))
                spec = ClassifierSpec(**known, file=str(path))
            case _:
                path = Path(folder) / "scores.json"
                path.write_text(json.dumps(facts["file_content"]))
                spec = ClassifierSpec(**known, file=str(path))
        yield read_classifier(spec)


def _samples(case: dict[str, Any]) -> Iterator[tuple[WindowMeta, np.ndarray, np.ndarray]]:
    for facts, segments, scores in zip(case["metas"], case["proposals"], case["scores"], strict=True):
        # A sample without proposals doesn't say how many classes there are, and it doesn't matter.
        rows = np.array(scores, np.float32) if scores else np.zeros((0, 2), np.float32)
        yield window_meta_of(facts), segments_of(segments), rows


def window_meta_of(facts: dict[str, Any]) -> WindowMeta:
    """The reference's meta data of a sample, of a video that may have no name."""
    name = facts.get("video_name", "")
    if "resize_length" in facts:
        return WindowMeta(name, facts["duration"], resize_grid=facts["resize_length"])
    start = facts.get("window_start_frame", 0) + facts.get("offset_frames", 0)
    return WindowMeta(name, facts["duration"], facts["fps"], facts["snippet_stride"], start)


def _as_items(segments: np.ndarray, scores: Any, labels: list[str]) -> list[Detection]:
    return [
        {"segment": [float(start), float(end)], "label": label, "score": float(score)}
        for (start, end), score, label in zip(segments, scores, labels, strict=True)
    ]


def _of_results(
    case: str, what: str, ours: dict[str, list[Detection]], expected: dict[str, list[Detection]]
) -> list[Comparison]:
    """Rounded detections, in units of their last digits."""
    seconds, scores = largest_differences(ours, expected)
    return [
        Comparison(case, f"{what}: seconds", seconds / 0.01, TOLERANCES["last_digit"]),
        Comparison(case, f"{what}: scores", scores / 0.0001, TOLERANCES["last_digit"]),
    ]
