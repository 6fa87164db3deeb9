"""mAP of one group of instances at a time."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.errors import UserError
from adatad.evaluation.detection_map import evaluate
from adatad.evaluation.groups import evaluate_groups

TIOUS = (0.3, 0.5, 0.7)
SEEN, UNSEEN = "unseen=false", "unseen=true"


def truth(*instances):
    """Return one video's instances: (start, end, label, unseen)."""
    annotations = [{"segment": [s, e], "label": label, "unseen": unseen} for s, e, label, unseen in instances]
    return {"database": {"v": {"subset": "validation", "annotations": annotations}}}


def found(*detections):
    """In the same video: (start, end, label, score)."""
    return {
        "results": {"v": [{"segment": [s, e], "label": label, "score": score} for s, e, label, score in detections]}
    }


def by_group(ground_truth, detections, tious=TIOUS):
    return evaluate_groups("unseen", ground_truth, detections, "validation", tious)


BOTH = truth((0, 10, "a", False), (20, 30, "a", True), (40, 50, "b", False))


def test_each_group_counts_its_own_instances_and_classes():
    result = by_group(BOTH, found((0, 10, "a", 0.9), (40, 50, "b", 0.8)))
    assert {name: (r.average_mAP, r.num_ground_truth) for name, r in result.items()} == {SEEN: (1, 2), UNSEEN: (0, 1)}
    assert list(result[UNSEEN].ap_per_class) == ["a"]


def test_what_finds_an_instance_of_another_group_is_no_false_positive():
    """Nor is a second detection of it, whatever its score."""
    result = by_group(BOTH, found((20, 30, "a", 0.9), (21, 30, "a", 0.8), (0, 10, "a", 0.5), (40, 50, "b", 0.5)))
    assert (result[SEEN].average_mAP, result[UNSEEN].average_mAP) == (1, 1)


@pytest.mark.parametrize(
    "wrong",
    [(12, 18, "a", 0.9), (20, 22.9, "a", 0.9), (40, 50, "a", 0.9)],
    ids=["background", "below the lowest tIoU", "wrong class"],
)
def test_what_finds_nothing_is_wrong_in_every_group(wrong):
    result = by_group(BOTH, found(wrong, (0, 10, "a", 0.5), (20, 30, "a", 0.5)))
    assert (result[SEEN].ap_per_class["a"], result[UNSEEN].ap_per_class["a"]) == ([0.5] * 3, [0.5] * 3)


def test_a_wrong_class_on_an_instance_of_another_group_is_wrong():
    result = by_group(BOTH, found((20, 30, "b", 0.9), (40, 50, "b", 0.5)))
    assert result[SEEN].ap_per_class["b"] == [0.5] * 3


def test_an_imprecise_detection_is_an_error_of_the_group_that_it_found_alone():
    """tIoU 0.4 with the unseen instance: right at 0.3 there, wrong above; never counted among the seen ones."""
    result = by_group(BOTH, found((20, 24, "a", 0.9), (0, 10, "a", 0.5)))
    assert result[UNSEEN].ap_per_class["a"] == [1, 0, 0]
    assert result[SEEN].ap_per_class["a"] == [1, 1, 1]


def test_what_finds_instances_of_both_groups_counts_in_both():
    result = by_group(truth((0, 10, "a", False), (10, 20, "a", True)), found((0, 20, "a", 0.9)))
    assert (result[SEEN].mAP[0.3], result[UNSEEN].mAP[0.3]) == (1, 1)


@pytest.mark.parametrize(
    ("value", "name"), [(True, "unseen=true"), ("night", 'unseen="night"'), (3, "unseen=3"), (None, "unseen=null")]
)
def test_names_tell_the_value(value, name):
    assert list(by_group(truth((0, 1, "a", value)), found())) == [name]


def test_an_annotation_without_the_key_is_named():
    content = copy.deepcopy(BOTH)
    del content["database"]["v"]["annotations"][1]["unseen"]
    with pytest.raises(UserError, match=r"video 'v': .*20.* has no 'unseen'"):
        by_group(content, found())


def test_other_subsets_need_no_key():
    content = copy.deepcopy(BOTH)
    content["database"]["w"] = {"subset": "training", "annotations": [{"segment": [0, 1], "label": "a"}]}
    assert by_group(content, found((0, 10, "a", 0.9)))[SEEN].ap_per_class["a"] == [1] * 3


places = st.tuples(st.integers(0, 20), st.integers(1, 10), st.sampled_from("ab"))
instances = st.lists(st.tuples(places, st.booleans()), min_size=1, max_size=6)
detections = st.lists(st.tuples(places, st.sampled_from([0.1, 0.5, 0.9])), max_size=10)


@given(instances, detections)
def test_one_group_of_all_has_the_map_of_all_and_filtering_never_lowers_an_ap(wanted, given):
    content = truth(*((s, s + n, label, unseen) for (s, n, label), unseen in wanted))
    seen = found(*((s, s + n, label, score) for (s, n, label), score in given))
    everything = copy.deepcopy(content)
    for item in everything["database"]["v"]["annotations"]:
        item["unseen"] = False
    assert by_group(everything, seen) == {SEEN: evaluate(everything, seen, "validation", TIOUS)}
    for name, result in by_group(content, seen).items():
        own = copy.deepcopy(content)
        annotations = own["database"]["v"]["annotations"]
        own["database"]["v"]["annotations"] = [a for a in annotations if f"unseen={str(a['unseen']).lower()}" == name]
        unfiltered = evaluate(own, seen, "validation", TIOUS)
        for label, values in result.ap_per_class.items():
            assert all(a >= b - 1e-12 for a, b in zip(values, unfiltered.ap_per_class[label], strict=True))
