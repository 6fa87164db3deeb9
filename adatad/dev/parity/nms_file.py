"""Golden cases of non-maximum suppression: nms.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adatad.dev.parity.comparison import TOLERANCES, Comparison, mismatch, relative_to_value, rows_of_cases
from adatad.evaluation.nms import METHODS, Detections, apply_nms, hard_nms, soft_nms
from adatad.spec.schema import NmsSpec


def nms_spec(parameters: dict[str, Any]) -> NmsSpec:
    """The reference's keyword values, its defaults where one isn't given."""
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
        voting_threshold=parameters.get("voting_thresh") or None,
    )


def run(content: dict[str, Any], folder: Path) -> list[Comparison]:
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
        case "set":
            ours, expected = _sorted(ours), _sorted(expected)
        case "set_where_score_zero":
            ours, expected = _zeros_sorted(ours), _zeros_sorted(expected)
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
    """[start, end] pairs as float32 [n, 2], none too."""
    return np.array(values, np.float32).reshape(-1, 2)


def _scores(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def _sorted(found: Detections) -> Detections:
    """By score, then by label and segment."""
    segments, scores, labels = found
    order = np.lexsort((segments[:, 1], segments[:, 0], labels, -scores))
    return segments[order], scores[order], labels[order]


def _zeros_sorted(found: Detections) -> Detections:
    """Those with a score as they stand, then the others by label and segment."""
    segments, scores, labels = found
    some = scores != 0
    rest = _sorted((segments[~some], scores[~some], labels[~some]))
    return tuple(np.concatenate([mine[some], other]) for mine, other in zip(found, rest, strict=True))
