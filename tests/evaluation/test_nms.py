"""NMS against a plain transcription of the definition, and against the reference's numbers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adatad.evaluation.nms import apply_nms, hard_nms, soft_nms, vote
from adatad.spec.schema import NmsSpec

rows = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 30), st.integers(1, 1000), st.integers(0, 2)), min_size=0, max_size=25
)


def arrays(items):
    segments = np.array([(start, start + length) for start, length, _, _ in items], np.float32).reshape(-1, 2)
    scores = np.array([score / 1000 for _, _, score, _ in items], np.float32)
    return segments, scores, np.array([label for *_, label in items], np.int64)


def tiou(a, b):
    intersection = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    return intersection / (a[1] - a[0] + b[1] - b[0] + 2e-6 - intersection)


def slow_soft_nms(segments, scores, sigma, min_score):
    """One at a time, in double precision."""
    left = [(float(s), tuple(map(float, seg)), i) for i, (seg, s) in enumerate(zip(segments, scores, strict=True))]
    chosen = {}
    while left:
        best = max(left, key=lambda item: item[0])
        left.remove(best)
        chosen[best[2]] = best[0]
        decayed = [(s * math.exp(-(tiou(best[1], seg) ** 2) / sigma), seg, i) for s, seg, i in left]
        left = [item for item in decayed if item[0] >= min_score]
    return chosen


@settings(deadline=None)
@given(rows, st.sampled_from([0.3, 0.5, 2.0]), st.sampled_from([0.0, 0.01, 0.2]))
def test_soft_nms_is_its_definition(items, sigma, min_score):
    # Scores that differ: ties are decided by the reference's way of swapping, tested below.
    items = list({score: (a, b, score, c) for a, b, score, c in items}.values())
    segments, scores, _ = arrays(items)
    index, decayed = soft_nms(segments, scores, sigma, min_score, limit=1000)
    expected = slow_soft_nms(segments, scores, sigma, min_score)
    near = [score for score in expected.values() if abs(score - min_score) < 1e-5]
    if not near:
        assert set(index.tolist()) == set(expected)
        np.testing.assert_allclose(decayed, [expected[i] for i in index.tolist()], rtol=1e-5, atol=1e-6)
    assert (np.diff(decayed) <= 1e-7).all()
    few, _ = soft_nms(segments, scores, sigma, min_score, limit=3)
    assert few.tolist() == index[:3].tolist()


@given(rows, st.sampled_from([0.2, 0.5]))
def test_hard_nms_keeps_no_two_that_overlap_and_drops_none_for_nothing(items, threshold):
    segments, scores, _ = arrays(items)
    kept = hard_nms(segments, scores, threshold, 0.0).tolist()
    assert (np.diff(scores[kept]) <= 0).all()
    for position, one in enumerate(kept):
        assert all(tiou(segments[one], segments[other]) < threshold + 1e-5 for other in kept[:position])
    for dropped in set(range(len(items))) - set(kept):
        blockers = [k for k in kept if scores[k] >= scores[dropped]]
        assert any(tiou(segments[k], segments[dropped]) >= threshold - 1e-5 for k in blockers)


@given(rows)
def test_classes_are_treated_alone_and_limits_hold(items):
    segments, scores, labels = arrays(items)
    spec = NmsSpec(sigma=0.5, min_score=0.0, max_segments=4)
    out_segments, out_scores, out_labels = apply_nms(segments, scores, labels, spec)
    assert len(out_scores) == min(4, len(scores)) == len(out_segments) == len(out_labels)
    assert (np.diff(out_scores) <= 0).all()
    for label in set(labels.tolist()):
        mask = labels == label
        alone = apply_nms(segments[mask], scores[mask], labels[mask], spec)
        assert set(out_scores[out_labels == label].tolist()) <= set(alone[1].tolist())


def test_the_last_one_survives_a_threshold_above_all():
    segments = np.array([[0, 1], [5, 6]], np.float32)
    _, scores, _ = apply_nms(segments, np.array([0.01, 0.02]), np.zeros(2), NmsSpec(min_score=0.5))
    assert scores.tolist() == pytest.approx([0.02])


def test_voting_is_a_mean_weighted_by_score():
    segments = np.array([[0, 10], [1, 11], [50, 60]], np.float32)
    voted = vote(segments[:1], segments, np.array([0.75, 0.25, 1.0], np.float32), 0.7)
    np.testing.assert_allclose(voted, [[0.25, 10.25]])


def spec_of(params) -> NmsSpec | None:
    """The spec of a case of the reference; None for its methods that no experiment uses."""
    if params["use_soft_nms"] and params["method"] != 2:
        return None
    return NmsSpec(
        kind="soft" if params["use_soft_nms"] else "hard",
        sigma=params["sigma"],
        iou_threshold=params["iou_threshold"],
        min_score=params["min_score"],
        max_segments=max(params["max_seg_num"], 1),
        multiclass=params["multiclass"],
        voting_threshold=None if params["multiclass"] else params["voting_thresh"] or None,
    )


def ordered(segments, scores, labels):
    order = np.lexsort((segments[:, 1], segments[:, 0], labels, -scores))
    return segments[order], scores[order], labels[order]


def test_cases_of_the_reference(shared_folder):
    cases = json.loads((shared_folder / "golden" / "data" / "nms.json").read_text())["wrapper_cases"]
    run = 0
    for case in cases:
        spec = spec_of(case["params"])
        if spec is None or case["params"]["max_seg_num"] == 0 or case["compare"] == "emulation_only":
            continue
        run += 1
        ours = apply_nms(np.array(case["segments"]), np.array(case["scores"]), np.array(case["labels"]), spec)
        expected = (
            np.array(case["out_segments"]).reshape(-1, 2),
            np.array(case["out_scores"]),
            np.array(case["out_labels"], np.int64),
        )
        assert len(ours[1]) == len(expected[1]), case["name"]
        if case["compare"] != "exact_order":
            ours, expected = ordered(*ours), ordered(*expected)
        tolerance = 1e-4 if spec.voting_threshold else 1e-6
        for mine, theirs in zip(ours, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance, err_msg=case["name"])
    assert run >= 20
