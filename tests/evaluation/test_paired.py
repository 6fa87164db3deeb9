"""Paired differences of mAP: cases whose answer is known, symmetry, and what can't be compared."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.errors import UserError
from adatad.evaluation.detection_map import evaluate
from adatad.evaluation.paired import compare_detections, verdict

TIOUS = (0.5, 0.7)
VIDEOS = 20


def instance(label, start=10.0):
    return {"segment": [start, start + 5.0], "label": label}


def truth(videos=VIDEOS):
    """Annotations with one instance of "a" and one of "b" in every video."""
    entry = {"subset": "validation", "annotations": [instance("a"), instance("b", 30.0)]}
    return {"database": {f"v{number}": entry for number in range(videos)}}


def perfect(videos=VIDEOS):
    items = [{**instance("a"), "score": 0.9}, {**instance("b", 30.0), "score": 0.9}]
    return {"results": {f"v{number}": list(items) for number in range(videos)}}


def compare(*found, annotations=None, **options):
    files = [(annotations or truth(), one) for one in found]
    names = [f"run {number}" for number in range(len(found))]
    return compare_detections(files[0][0], files, names, "validation", TIOUS, **options)


def test_between_equal_detections_no_difference_can_be_told():
    average = compare(perfect(), perfect())["differences"][0]["average_mAP"]
    assert average == {"value": 0, "low": 0, "high": 0, "better": 0.5}
    assert verdict(average) == "open"


def test_a_run_with_a_broken_class_is_clearly_worse_and_the_class_is_told():
    broken = perfect()
    for items in broken["results"].values():
        items[1] = {**items[1], "segment": [0.0, 1.0]}
    found = compare(perfect(), broken)
    difference = found["differences"][0]
    assert difference["average_mAP"] == {"value": -0.5, "low": -0.5, "high": -0.5, "better": 0.0}
    assert verdict(difference["average_mAP"]) == "worse"
    assert [difference["ap_per_class"][label]["value"] for label in "ab"] == [0, -1]
    assert [figure["value"] for figure in difference["mAP"].values()] == [-0.5, -0.5]
    assert [own["average_mAP"]["value"] for own in found["scores"]] == [1, 0.5]


def test_a_border_that_is_off_costs_only_where_the_tiou_asks_for_it():
    late = perfect()
    for items in late["results"].values():
        items[0] = {**items[0], "segment": [12.0, 15.0]}  # tIoU 0.6
    difference = compare(perfect(), late)["differences"][0]
    assert {tiou: figure["value"] for tiou, figure in difference["mAP"].items()} == {"0.5": 0, "0.7": -0.5}


def test_what_is_hard_for_both_widens_the_scores_and_not_the_difference():
    # Half of the videos are missed by both; the second also misses one more.
    first, second = perfect(), perfect()
    for number in range(VIDEOS // 2):
        first["results"][f"v{number}"] = second["results"][f"v{number}"] = []
    second["results"]["v15"] = []
    found = compare(first, second)
    width = [own["average_mAP"]["high"] - own["average_mAP"]["low"] for own in found["scores"]]
    difference = found["differences"][0]["average_mAP"]
    assert difference["value"] == pytest.approx(-1 / VIDEOS)
    assert difference["high"] - difference["low"] < min(width) / 2


@st.composite
def detections(draw):
    """Detections of the annotated videos with borders and scores of all kinds."""
    found = {}
    for number in range(4):
        rows = draw(st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 1), st.sampled_from("ab")), max_size=4))
        found[f"v{number}"] = [
            {"segment": [start + (10 if label == "a" else 30), start + (15 if label == "a" else 35)], "label": label}
            | {"score": score}
            for start, score, label in rows
        ]
    return {"results": found}


@given(detections(), detections())
def test_exchanged_runs_have_the_opposite_difference_and_the_scores_of_evaluate(first, second):
    annotations = truth(4)
    one, other = (
        compare(*pair, annotations=annotations, number_of_draws=50) for pair in ((first, second), (second, first))
    )
    forth, back = (found["differences"][0]["average_mAP"] for found in (one, other))
    assert forth["value"] == -back["value"]
    assert (forth["low"], forth["high"]) == pytest.approx((-back["high"], -back["low"]), abs=2e-6)
    assert forth["better"] == pytest.approx(1 - back["better"])
    for own, found in zip(one["scores"], (first, second), strict=True):
        result = evaluate(annotations, found, "validation", TIOUS)
        np.testing.assert_allclose(own["average_mAP"]["value"], result.average_mAP, atol=1e-6)
        for label, values in result.ap_per_class.items():
            np.testing.assert_allclose(own["ap_per_class"][label]["value"], np.mean(values), atol=1e-6)


def test_the_order_of_videos_in_a_file_changes_no_interval():
    first, second = perfect(), perfect()
    first["results"]["v3"] = []
    turned = {"results": dict(reversed(second["results"].items()))}
    assert compare(first, second)["differences"] == compare(first, turned)["differences"]


def test_more_than_two_are_compared_with_the_first():
    worse = perfect()
    worse["results"]["v3"] = []
    found = compare(worse, perfect(), worse)
    assert [one["average_mAP"]["value"] for one in found["differences"]] == [pytest.approx(0.05), 0]


def test_detections_outside_the_subset_count_and_are_noted():
    other = perfect()
    other["results"]["elsewhere"] = [{**instance("a"), "score": 0.95}]
    found = compare(perfect(), other)
    assert found["notes"] == ["run 1: detections in 1 videos outside the subset count as wrong"]
    assert found["differences"][0]["average_mAP"]["value"] < 0
    assert found["videos"] == VIDEOS


def test_videos_that_do_not_count_are_left_out():
    broken = perfect()
    del broken["results"]["v1"]
    difference = compare(perfect(), broken, blocked_videos={"v1"})["differences"][0]
    assert difference["average_mAP"]["value"] == 0


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, r"run 1: has none of the 20 videos"),
        ({"other": []}, r"run 1: has none of the 20 videos"),
        ({"v1": [], "v2": []}, r"run 1: has no entry for 18 of 20 videos .*v0, v3"),
    ],
)
def test_detections_of_other_videos_are_refused(results, message):
    with pytest.raises(UserError, match=message):
        compare(perfect(), {"results": results})


def test_annotations_without_an_instance_are_refused():
    empty = {"database": {"v0": {"subset": "validation", "annotations": []}}}
    with pytest.raises(UserError, match="no annotated instance"):
        compare({"results": {"v0": []}}, {"results": {"v0": []}}, annotations=empty)


def test_few_videos_are_noted():
    assert "4 videos are few" in compare(perfect(4), perfect(4), annotations=truth(4))["notes"][0]
