"""Golden cases from scores to detections: nms.json and post.json."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adatad.dev.parity.comparison import (
    TOLERANCES,
    Comparison,
    Detection,
    largest,
    largest_differences,
    mismatch,
    relative_to_value,
    rows_of_cases,
)
from adatad.evaluation.classifiers import Classifier, read_classifier
from adatad.evaluation.nms import METHODS, Detections, apply_nms, hard_nms, soft_nms
from adatad.evaluation.postprocess import (
    WindowDetections,
    WindowMeta,
    join_windows,
    window_detections,
    window_results,
)
from adatad.spec.schema import ClassifierSpec, NmsSpec, PostprocessSpec


def nms_spec(parameters: dict[str, Any]) -> NmsSpec:
    """Return the reference's keyword arguments in our terms, with its default for one that isn't given."""
    return NmsSpec(
        kind="soft" if parameters.get("use_soft_nms", True) else "hard",
        method=METHODS[parameters.get("method", 2)],
        sigma=parameters.get("sigma", 0.5),
        t1=parameters.get("t1", 0.0),
        t2=parameters.get("t2", 0.0),
        iou_threshold=parameters.get("iou_threshold", 0.0),
        min_score=parameters.get("min_score", 0.0),
        max_segments=parameters.get("max_seg_num", 100),
        multiclass=parameters.get("multiclass", True),
        voting_threshold=parameters.get("voting_thresh") or None,  # 0 turns voting off
    )


def run_nms(content: dict[str, Any]) -> list[Comparison]:
    """Return the comparisons of an nms.json."""
    return [
        *rows_of_cases(content.get("wrapper_cases", ()), _wrapper_rows, "wrapper case"),
        *rows_of_cases(content.get("op_cases", ()), _operator_rows, "operator case"),
    ]


def _wrapper_rows(case: dict[str, Any]) -> list[Comparison]:
    spec = nms_spec(case["params"])
    inputs = segments_of(case["segments"]), _scores(case["scores"]), np.array(case["labels"], np.int64)
    ours = apply_nms(*inputs, spec)
    expected = segments_of(case["out_segments"]), _scores(case["out_scores"]), np.array(case["out_labels"], np.int64)
    match case["compare"]:
        # Cases say where the reference leaves an order open.
        case "set":
            ours, expected = _sorted(ours), _sorted(expected)
        case "set_where_score_zero":
            ours, expected = _zeros_sorted(ours), _zeros_sorted(expected)
    # Voting sums many segments in fp32, in an order of its own.
    voting = spec.voting_threshold is not None and not spec.multiclass
    tolerance = TOLERANCES["vote" if voting else "nms"]
    return [
        Comparison(case["name"], "nms: segments", relative_to_value(ours[0], expected[0]), tolerance),
        Comparison(case["name"], "nms: scores", relative_to_value(ours[1], expected[1]), TOLERANCES["nms"]),
        Comparison(case["name"], "nms: labels", mismatch(ours[2].tolist(), expected[2].tolist()), TOLERANCES["exact"]),
    ]


def _operator_rows(case: dict[str, Any]) -> list[Comparison]:
    segments, scores, parameters = segments_of(case["segments"]), _scores(case["scores"]), case["params"]
    if case["op"] == "hard":
        kept = hard_nms(segments, scores, parameters["iou_threshold"], parameters.get("min_score", 0.0))
        return [Comparison(case["name"], "nms: kept", mismatch(kept.tolist(), case["keep"]), TOLERANCES["exact"])]
    kept, decayed = soft_nms(
        segments, scores, parameters["sigma"], parameters["min_score"], len(scores), METHODS[parameters["method"]],
        parameters["iou_threshold"], parameters["t1"], parameters["t2"],
    )  # fmt: skip
    ours, expected = np.column_stack([segments[kept], decayed]), np.array(case["out"], np.float64).reshape(-1, 3)
    return [
        Comparison(case["name"], "nms: kept", mismatch(kept.tolist(), case["keep"]), TOLERANCES["exact"]),
        Comparison(case["name"], "nms: segments and scores", relative_to_value(ours, expected), TOLERANCES["nms"]),
    ]


def segments_of(values: list[Any]) -> np.ndarray:
    """Return [start, end] pairs as float32 [n, 2], also if there are none."""
    return np.array(values, np.float32).reshape(-1, 2)


def _scores(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def _sorted(found: Detections) -> Detections:
    """Sort detections by score, then by label and segment."""
    segments, scores, labels = found
    # lexsort's last key is the first criterion.
    order = np.lexsort((segments[:, 1], segments[:, 0], labels, -scores))
    return segments[order], scores[order], labels[order]


def _zeros_sorted(found: Detections) -> Detections:
    """Keep the order of detections with a score, and put those of score 0 behind them by label and segment."""
    segments, scores, labels = found
    # Only segments whose scores decayed to 0 have an arbitrary order in the reference.
    some = scores != 0
    rest = _sorted((segments[~some], scores[~some], labels[~some]))
    return tuple(np.concatenate([mine[some], other]) for mine, other in zip(found, rest, strict=True))


def run_post(content: dict[str, Any]) -> list[Comparison]:
    """Return the comparisons of a post.json: windows, merges of ranks, external classifiers."""
    cases = content.get("cases", ())
    # Classifier cases refer to the classifier of another case, by name.
    classifiers = {case.get("name"): case.get("classifier") for case in cases if isinstance(case, dict)}

    def fixed_segments(case: dict[str, Any]) -> list[Comparison]:
        """Return the comparisons of a case with the classifier that it refers to."""
        with classifier_of(classifiers[case["classifier_of_case"]]) as classifier:
            return _classifier(case, classifier)

    return [
        *rows_of_cases(cases, _end_to_end, "post case"),
        *rows_of_cases(content.get("merge_cases", ()), _merge, "merge case"),
        *rows_of_cases(content.get("classifier_cases", ()), fixed_segments, "classifier case"),
    ]


def _end_to_end(case: dict[str, Any]) -> list[Comparison]:
    spec, sliding = post_spec(case["settings"]), case["settings"]["sliding_window"]
    before, windows = {}, []
    with classifier_of(case.get("classifier")) as classifier:
        for number, (meta, segments, scores) in enumerate(_samples(case)):
            arguments = (segments, scores, meta, case.get("classes") or (), spec, sliding, classifier)
            # Before rounding, which would hide small errors; and as they are written.
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
    """Return the rows of each rank's results from its samples, and of the results joined from the reference's own ones
    of ranks. Repeated samples count twice here, as in the reference; outside of compat each counts once."""
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
    # The reference joins files of ranks, each rounded already.
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
    """Return the reference's settings in our terms, with its default for one that isn't given."""
    threshold, top = settings.get("pre_nms_thresh"), settings.get("pre_nms_topk")
    return PostprocessSpec(
        pre_nms_threshold=0.001 if threshold is None else threshold,
        pre_nms_topk=2000 if top is None else top,
        nms=None if settings.get("nms") is None else nms_spec(settings["nms"]),
    )


@contextmanager
def classifier_of(facts: dict[str, Any] | None) -> Iterator[Classifier | None]:
    """Yield a case's external classifier, read from a file as in a run; None if it has none."""
    if facts is None:
        yield None
        return
    known = {key: facts[key] for key in ("kind", "topk", "apply_softmax", "pseudo_label") if facts.get(key) is not None}
    # Through a file, so that reading one is covered too.
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
    """Return where a sample lies, from the reference's metadata; its video may have no name."""
    name = facts.get("video_name", "")
    if "resize_length" in facts:
        return WindowMeta(name, facts["duration"], resize_grid=facts["resize_length"])
    # The offset is that of the first feature's centre.
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
    """Return the rows of rounded detections, in units of their last digits."""
    seconds, scores = largest_differences(ours, expected)
    return [
        Comparison(case, f"{what}: seconds", seconds / 0.01, TOLERANCES["last_digit"]),
        Comparison(case, f"{what}: scores", scores / 0.0001, TOLERANCES["last_digit"]),
    ]
