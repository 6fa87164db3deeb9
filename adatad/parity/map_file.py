"""Golden cases of scoring: map.json, map_epic.json and recall.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.evaluation.epic_map import evaluate_epic
from adatad.evaluation.proposal_recall import evaluate_recall
from adatad.parity.compare import TOLERANCES, Row, largest, mismatch


def run(content: dict[str, Any], folder: Path) -> list[Row]:
    """map.json. Equal scores are decided by a stable order, which cases with ties have figures for."""
    rows = []
    for case in content["cases"] + content.get("tie_cases", []):
        result = evaluate(
            case["ground_truth"], case["detections"], case["subset"], case["tious"],
            case["blocked_videos"] or (), True, case["top_k"] or (),
        )  # fmt: skip
        expected = case["expected"]
        if "tie_orders" in case:
            stable = case["tie_orders"]["later_first"]
            by_tiou = {f"mAP@{tiou}": value for tiou, value in zip(case["tious"], stable["mAP"], strict=True)}
            metrics = {"average_mAP": stable["average_mAP"], **by_tiou}
            expected = {**expected, "metrics": metrics, "ap_per_class": stable["ap_per_class"]}
        rows += _result_rows(case["name"], "map", result, expected)
        rows.append(_exact(case["name"], "map: instances", result.num_ground_truth, expected["num_gt"]))
        rows.append(_exact(case["name"], "map: detections", result.num_detections, expected["num_pred"]))
        if case["top_k"]:
            per_class = np.array(list(result.recall_per_class.values())).transpose(1, 2, 0)
            error = _difference(per_class, expected["recall_per_class"])
            rows.append(Row(case["name"], "map: recall of classes", error, TOLERANCES["map"]))
    return rows


def run_epic(content: dict[str, Any], folder: Path) -> list[Row]:
    """map_epic.json: the mended way, and the reference's with its quirk."""
    rows = []
    for case in content["cases"]:
        for reference in (False, True):
            task, nouns = case["task"], case["noun_classes"]
            result = evaluate_epic(
                case["ground_truth"], case["detections"], case["subset"], case["tious"], task, nouns,
                case.get("blocked_videos") or (), reference,
            )  # fmt: skip
            expected = case["expected"] if reference else case.get("mended", case["expected"])
            names = [f"{number // nouns},{number % nouns}" if task == "action" else str(number)
                     for number in expected["classes"]]  # fmt: skip
            what = "epic, reference" if reference else "epic, mended"
            rows += _result_rows(case["name"], what, result, {**expected, "classes": names})
    return rows


def run_recall(content: dict[str, Any], folder: Path) -> list[Row]:
    """recall.json."""
    rows = []
    for case in content["cases"]:
        result = evaluate_recall(
            case["ground_truth"], case["detections"], case["subset"], case["tious"], case["max_avg_nr_proposals"],
            case.get("blocked_videos") or (), True,
        )  # fmt: skip
        expected = case["expected"]
        ours = {"AUC": result.auc, **{f"AR@{k}": result.at(k) for k in case["topk"]}}
        errors = {
            "metrics": _of_metrics(ours, expected["metrics"]),
            "curve": _difference(result.average_recall, expected["avg_recall"]),
            "proposals": _difference(result.proposals_per_video, expected["proposals_per_video"]),
        }
        rows += [Row(case["name"], f"recall: {what}", error, TOLERANCES["map"]) for what, error in errors.items()]
    return rows


def _result_rows(case: str, what: str, result: MapResult, expected: dict[str, Any]) -> list[Row]:
    """The metrics under the reference's names, the classes and their AP."""
    ours = {"average_mAP": result.average_mAP}
    ours |= {f"mAP@{tiou}": value for tiou, value in result.mAP.items()}
    ours |= {f"recall@{tiou}@{k}": value for tiou, by_k in result.recall.items() for k, value in by_k.items()}
    per_class = np.array(list(result.ap_per_class.values())).T
    return [
        Row(case, f"{what}: metrics", _of_metrics(ours, expected["metrics"]), TOLERANCES["map"]),
        _exact(case, f"{what}: classes", list(result.ap_per_class), expected["classes"]),
        Row(case, f"{what}: AP of classes", _difference(per_class, expected["ap_per_class"]), TOLERANCES["map"]),
    ]


def _of_metrics(ours: dict[str, float], expected: dict[str, float]) -> float:
    if ours.keys() != expected.keys():
        return float("inf")
    return largest(abs(ours[name] - value) for name, value in expected.items())


def _difference(ours: np.ndarray, expected: list[Any]) -> float:
    wanted = np.array(expected, np.float64)
    return float("inf") if ours.shape != wanted.shape else largest(np.abs(ours - wanted).ravel())


def _exact(case: str, what: str, ours: Any, expected: Any) -> Row:
    return Row(case, what, mismatch(ours, expected), TOLERANCES["exact"])
