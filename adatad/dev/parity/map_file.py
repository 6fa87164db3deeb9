"""Golden cases of scoring: map.json, map_epic.json and recall.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adatad.dev.parity.comparison import TOLERANCES, Comparison, largest, mismatch, rows_of_cases
from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.evaluation.epic_map import evaluate_epic
from adatad.evaluation.proposal_recall import evaluate_recall


def run(content: dict[str, Any], folder: Path) -> list[Comparison]:
    """map.json. Equal scores are decided by a stable order, which cases with ties have figures for."""
    cases = *content.get("cases", ()), *content.get("tie_cases", ())
    return rows_of_cases(cases, _map_rows, "map case")


def _map_rows(case: dict[str, Any]) -> Iterator[Comparison]:
    top_k = case.get("top_k") or ()
    result = evaluate(
        case["ground_truth"], case["detections"], case["subset"], case["tious"],
        case.get("blocked_videos") or (), True, top_k,
    )  # fmt: skip
    expected = _with_stable_ties(case)
    yield from _result_rows(case["name"], "map", result, expected)
    yield _exact(case["name"], "map: instances", result.num_ground_truth, expected["num_gt"])
    yield _exact(case["name"], "map: detections", result.num_detections, expected["num_pred"])
    if top_k:
        shape = len(case["tious"]), len(top_k), len(result.recall_per_class)
        per_class = np.array(list(result.recall_per_class.values())).reshape(shape[2], *shape[:2]).transpose(1, 2, 0)
        error = _difference(per_class, np.array(expected["recall_per_class"], np.float64).reshape(shape))
        yield Comparison(case["name"], "map: recall of classes", error, TOLERANCES["map"])


def _with_stable_ties(case: dict[str, Any]) -> dict[str, Any]:
    """What is expected of a case, with the figures of our order where scores are equal."""
    expected = case["expected"]
    if "tie_orders" not in case:
        return expected
    stable = case["tie_orders"]["later_first"]
    by_tiou = {f"mAP@{tiou}": value for tiou, value in zip(case["tious"], stable["mAP"], strict=True)}
    metrics = {**expected["metrics"], "average_mAP": stable["average_mAP"], **by_tiou}
    return {**expected, "metrics": metrics, "ap_per_class": stable["ap_per_class"]}


def run_epic(content: dict[str, Any], folder: Path) -> list[Comparison]:
    """map_epic.json: the mended way, and the reference's with its quirk."""
    return rows_of_cases(content.get("cases", ()), _epic_rows, "EPIC case")


def _epic_rows(case: dict[str, Any]) -> Iterator[Comparison]:
    task, nouns = case["task"], case["noun_classes"]
    for reference in (False, True):
        result = evaluate_epic(
            case["ground_truth"], case["detections"], case["subset"], case["tious"], task, nouns,
            case.get("blocked_videos") or (), reference,
        )  # fmt: skip
        expected = case["expected"] if reference else case.get("mended", case["expected"])
        names = [f"{number // nouns},{number % nouns}" if task == "action" else str(number)
                 for number in expected["classes"]]  # fmt: skip
        what = "epic, reference" if reference else "epic, mended"
        yield from _result_rows(case["name"], what, result, {**expected, "classes": names})


def run_recall(content: dict[str, Any], folder: Path) -> list[Comparison]:
    """recall.json."""
    return rows_of_cases(content.get("cases", ()), _recall_rows, "recall case")


def _recall_rows(case: dict[str, Any]) -> Iterator[Comparison]:
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
    for what, error in errors.items():
        yield Comparison(case["name"], f"recall: {what}", error, TOLERANCES["map"])


def _result_rows(case: str, what: str, result: MapResult, expected: dict[str, Any]) -> list[Comparison]:
    """The metrics under the reference's names, the classes and their AP."""
    ours = {"average_mAP": result.average_mAP}
    ours |= {f"mAP@{tiou}": value for tiou, value in result.mAP.items()}
    ours |= {f"recall@{tiou}@{k}": value for tiou, by_k in result.recall.items() for k, value in by_k.items()}
    shape = len(result.mAP), len(result.ap_per_class)
    per_class = np.array(list(result.ap_per_class.values()), np.float64).T.reshape(shape)
    return [
        Comparison(case, f"{what}: metrics", _of_metrics(ours, expected["metrics"]), TOLERANCES["map"]),
        _exact(case, f"{what}: classes", list(result.ap_per_class), expected["classes"]),
        Comparison(case, f"{what}: AP of classes", _difference(per_class, expected["ap_per_class"]), TOLERANCES["map"]),
    ]


def _of_metrics(ours: dict[str, float], expected: dict[str, float]) -> float:
    if ours.keys() != expected.keys():
        return float("inf")
    return largest(abs(ours[name] - value) for name, value in expected.items())


def _difference(ours: np.ndarray, expected: list[Any]) -> float:
    wanted = np.array(expected, np.float64)
    return float("inf") if ours.shape != wanted.shape else largest(np.abs(ours - wanted).ravel())


def _exact(case: str, what: str, ours: Any, expected: Any) -> Comparison:
    return Comparison(case, what, mismatch(ours, expected), TOLERANCES["exact"])
