"""mAP on EPIC-Kitchens' files, and average recall of proposals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.evaluation.epic_map import evaluate_epic
from adatad.evaluation.proposal_recall import evaluate_recall


def epic_truth(*items):
    annotations = [{"segment": [s, e], "verb_label": f"id_{v}", "noun_label": f"id_{n}"} for s, e, v, n in items]
    return {"database": {"p": {"subset": "val", "annotations": annotations}}}


def epic_found(*items):
    made = [
        {"segment": [s, e], "verb": v, "noun": n, "action": f"{v},{n}", "score": score} for s, e, v, n, score in items
    ]
    return {"results": {"p": made}}


def test_each_task_has_its_classes():
    ground = epic_truth((0, 10, 7, 3), (20, 30, 2, 3))
    made = epic_found((0, 10, 7, 3, 0.9), (20, 30, 2, 4, 0.8))
    assert evaluate_epic(ground, made, "val", (0.5,), "verb").ap_per_class == {"2": [1.0], "7": [1.0]}
    assert evaluate_epic(ground, made, "val", (0.5,), "noun").ap_per_class == {"3": [0.5]}
    assert evaluate_epic(ground, made, "val", (0.5,), "action").ap_per_class == {"2,3": [0.0], "7,3": [1.0]}


def test_a_number_without_annotation_is_ignored_but_collides_in_the_reference():
    ground = epic_truth((0, 10, 7, 3), (20, 30, 2, 3))
    # Verb 1 isn't annotated; the class at place 1 of the annotated ones is 7.
    made = epic_found((50, 60, 1, 3, 0.95), (0, 10, 7, 3, 0.9), (20, 30, 2, 3, 0.8))
    assert evaluate_epic(ground, made, "val", (0.5,), "verb").average_mAP == 1.0
    assert evaluate_epic(ground, made, "val", (0.5,), "verb", misplace_classes=True).ap_per_class == {
        "2": [1.0],
        "7": [0.5],
    }


def test_blocked_videos_of_epic_are_nowhere():
    ground, made = epic_truth((0, 10, 7, 3)), epic_found((0, 10, 7, 3, 0.9))
    result = evaluate_epic(ground, made, "val", (0.5,), "verb", blocked_videos=("p",))
    assert (result.ap_per_class, result.num_ground_truth, result.num_detections) == ({}, 0, 0)


def plain_truth(videos):
    return {
        "database": {
            name: {"subset": "val", "annotations": [{"segment": list(s), "label": "a"} for s in segments]}
            for name, segments in videos.items()
        }
    }


def plain_found(videos):
    return {
        "results": {
            name: [{"segment": [s, e], "score": score} for s, e, score in items] for name, items in videos.items()
        }
    }


def test_average_recall_of_a_hand_made_case():
    ground = plain_truth({"v": [(0, 10), (20, 30)], "w": [(0, 10)]})
    made = plain_found({"v": [(20, 30, 0.8), (0, 10, 0.9)], "u": [(0, 10, 0.9), (5, 10, 0.9)]})
    result = evaluate_recall(ground, made, "val", (0.5, 0.9), most_per_video=2)
    # Four proposals in all, two videos with instances: v keeps its two, w misses its one. The kept ones are fewer than
    # one a video would be, so already the first point takes both.
    assert result.average_recall.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert result.proposals_per_video.tolist() == pytest.approx([1.0, 2.0])
    assert result.auc == pytest.approx(2 / 3 * 1 / 2)
    assert (result.num_ground_truth, result.num_proposals, result.at(1)) == (3, 4, pytest.approx(2 / 3))


def test_no_proposals_find_nothing():
    result = evaluate_recall(plain_truth({"v": [(0, 10)]}), {"results": {}}, "val", (0.5,), most_per_video=3)
    assert result.average_recall.tolist() == [0.0, 0.0, 0.0]
    assert result.auc == 0.0


@given(st.integers(0, 1000))
def test_recall_rises_with_proposals_and_falls_with_the_tiou(seed):
    draw = np.random.default_rng(seed)
    starts = draw.uniform(0, 50, (3, 8))
    ground = plain_truth({str(v): [(s, s + 5) for s in starts[v, :3]] for v in range(3)})
    made = plain_found({str(v): [(s + draw.uniform(0, 3), s + 5, draw.random()) for s in starts[v]] for v in range(3)})
    low, high = (evaluate_recall(ground, made, "val", (tiou,), most_per_video=8) for tiou in (0.3, 0.8))
    assert (np.diff(low.average_recall) >= 0).all()
    assert (low.average_recall >= high.average_recall).all()
    assert low.at(8) == 1.0
