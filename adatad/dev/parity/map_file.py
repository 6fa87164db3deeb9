"""Golden cases of scoring: map.json, map_epic.json and recall.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from adatad.dev.parity.comparison import TOLERANCES, Comparison, largest, mismatch, rows_of_cases
from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.evaluation.epic_map import evaluate_epic
from adatad.evaluation.proposal_recall import evaluate_recall


def run_map(content: dict[str, Any]) -> list[Comparison]:
    """Return the comparisons of a map.json. We order equal scores stably; cases with ties have figures for that."""
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
        # Ours are by class; the reference has [tIoU, k, class].
        shape = len(case["tious"]), len(top_k), len(result.recall_per_class)
        per_class = np.array(list(result.recall_per_class.values())).reshape(shape[2], *shape[:2]).transpose(1, 2, 0)
        error = _difference(per_class, np.array(expected["recall_per_class"], np.float64).reshape(shape))
        yield Comparison(case["name"], "map: recall of classes", error, TOLERANCES["map"])


def _with_stable_ties(case: dict[str, Any]) -> dict[str, Any]:
    """Return what a case expects, with the figures of our order of equal scores."""
    expected = case["expected"]
    if "tie_orders" not in case:
        return expected
    # The reference's order of equal scores depends on its sorting algorithm: cases list figures for several orders.
    stable = case["tie_orders"]["later_first"]
    by_tiou = {f"mAP@{tiou}": value for tiou, value in zip(case["tious"], stable["mAP"], strict=True)}
    metrics = {**expected["metrics"], "average_mAP": stable["average_mAP"], **by_tiou}
    return {**expected, "metrics": metrics, "ap_per_class": stable["ap_per_class"]}


def run_epic_map(content: dict[str, Any]) -> list[Comparison]:
    """Return the comparisons of a map_epic.json, with the reference's quirk and with it fixed."""
    return rows_of_cases(content.get("cases", ()), _epic_rows, "EPIC case")


def _epic_rows(case: dict[str, Any]) -> Iterator[Comparison]:
    task, nouns = case["task"], case["noun_classes"]
    for reference in (False, True):
        result = evaluate_epic(
            case["ground_truth"], case["detections"], case["subset"], case["tious"], task, nouns,
            case.get("blocked_videos") or (), reference,
        )  # fmt: skip
        # Cases without "mended" aren't touched by the quirk.
        expected = case["expected"] if reference else case.get("mended", case["expected"])
        # An action's number is verb * nouns + noun; ours are named "verb,noun".
        names = [f"{number // nouns},{number % nouns}" if task == "action" else str(number)
                 for number in expected["classes"]]  # fmt: skip
        what = "epic, reference" if reference else "epic, fixed"
        yield from _result_rows(case["name"], what, result, {**expected, "classes": names})


def run_recall(content: dict[str, Any]) -> list[Comparison]:
    """Return the comparisons of a recall.json."""
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
    """Return the rows of the metrics under the reference's names, of the classes, and of their AP."""
    ours = {"average_mAP": result.average_mAP}
    ours |= {f"mAP@{tiou}": value for tiou, value in result.mAP.items()}
    ours |= {f"recall@{tiou}@{k}": value for tiou, by_k in result.recall.items() for k, value in by_k.items()}
    # [tIoU, class] as in the reference; ours are lists by class.
    shape = len(result.mAP), len(result.ap_per_class)
    # reshape: without classes the array would have one dimension.
    per_class = np.array(list(result.ap_per_class.values()), np.float64).T.reshape(shape)
    return [
        Comparison(case, f"{what}: metrics", _of_metrics(ours, expected["metrics"]), TOLERANCES["map"]),
        _exact(case, f"{what}: classes", list(result.ap_per_class), expected["classes"]),
        Comparison(case, f"{what}: AP of classes", _difference(per_class, expected["ap_per_class"]), TOLERANCES["map"]),
    ]


def _of_metrics(ours: dict[str, float], expected: dict[str, float]) -> float:
    # A metric that is missing, or too many, is an error of any size.
    if ours.keys() != expected.keys():
        return float("inf")
    return largest(abs(ours[name] - value) for name, value in expected.items())


def _difference(ours: np.ndarray, expected: list[Any]) -> float:
    wanted = np.array(expected, np.float64)
    return float("inf") if ours.shape != wanted.shape else largest(np.abs(ours - wanted).ravel())


def _exact(case: str, what: str, ours: Any, expected: Any) -> Comparison:
    return Comparison(case, what, mismatch(ours, expected), TOLERANCES["exact"])
