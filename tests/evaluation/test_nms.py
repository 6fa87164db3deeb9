"""NMS against a plain transcription of the definition."""

import math

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.evaluation.nms import METHODS, apply_nms, compiled, hard_nms, soft_nms, vote
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


F = np.float32


def plain_factor(method, overlap, length, iou_threshold, sigma, t1, t2):
    if method == "vanilla":
        return F(overlap < iou_threshold)
    if method == "linear":
        return F(1) - overlap if overlap >= iou_threshold else F(1)
    if method == "improved_gaussian" and overlap < F(t1) + F(t2) * length:
        return F(1)
    return F(math.exp(-(overlap * overlap) / F(sigma)))


def plain_soft_nms(segments, scores, sigma, min_score, limit, method, iou_threshold, t1, t2):
    """A list of entries in which the chosen one is exchanged with the first that is left, in float32."""
    left = [
        [F(start), F(end), F(score), i] for i, ((start, end), score) in enumerate(zip(segments, scores, strict=True))
    ]
    place = 0
    while place < len(left) and place < limit:
        best = max(range(place, len(left)), key=lambda i: (left[i][2], -i))
        left[place], left[best] = left[best], left[place]
        start, end, _, _ = left[place]
        length = end - start + F(1e-6)
        position = place + 1
        while position < len(left):
            entry = left[position]
            inside = max(min(end, entry[1]) - max(start, entry[0]), F(0))
            overlap = inside / (length + (entry[1] - entry[0] + F(1e-6)) - inside)
            entry[2] = entry[2] * plain_factor(method, overlap, length, F(iou_threshold), sigma, t1, t2)
            if min_score > 0 and entry[2] < F(min_score):
                left[position] = left[-1]
                left.pop()
            else:
                position += 1
        place += 1
    return [entry[3] for entry in left[:place]], [entry[2] for entry in left[:place]]


@given(
    rows, st.sampled_from(METHODS), st.sampled_from([0.3, 0.5, 2.0]), st.sampled_from([0.0, 0.01, 0.2]),
    st.sampled_from([0, 3, 1000]), st.sampled_from([0.0, 0.4]), st.sampled_from([(0.0, 0.0), (0.2, 0.01)]),
)  # fmt: skip
def test_soft_nms_is_its_definition(items, method, sigma, min_score, limit, iou_threshold, thresholds):
    # Scores of two decimals: many are equal, and the order of exchanges decides.
    items = [(start, length, 10 * (score // 10) + 10, label) for start, length, score, label in items]
    segments, scores, _ = arrays(items)
    before = segments.copy(), scores.copy()
    arguments = (sigma, min_score, limit, method, iou_threshold, *thresholds)
    index, decayed = soft_nms(segments, scores, *arguments)
    expected_index, expected = plain_soft_nms(segments, scores, *arguments)
    # The last digit of an exponential may differ, and with it the order of what is almost equal.
    if index.tolist() == expected_index:
        np.testing.assert_allclose(decayed, expected, rtol=1e-5, atol=1e-7)
    else:
        np.testing.assert_allclose(np.sort(decayed), np.sort(expected), rtol=1e-5, atol=1e-6)
    assert (np.diff(decayed) <= 0).all()
    assert (segments == before[0]).all()
    assert (scores == before[1]).all()


def test_of_equal_scores_the_first_of_the_exchanged_list_is_chosen():
    # The best one, in the middle, changes places with the first, which so comes after its equal.
    segments = np.array([[0, 1], [10, 11], [20, 21], [30, 31]], F)
    index, _ = soft_nms(segments, np.array([0.5, 0.5, 0.9, 0.5], F), 0.5, 0.0, 10)
    assert index.tolist() == [2, 1, 0, 3]


def test_compiled_code_needs_no_folder_that_can_be_written(monkeypatch):
    # numba finds none: this kind of place is for modules inside an archive.
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "ZipCacheLocator")
    again = compiled(double)
    assert again(2.0) == 4.0
    assert len(again.nopython_signatures) == 1


def double(x):
    return 2 * x


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


def test_who_has_no_length_is_nobody_s_voter_and_stays():
    segments = np.array([[5, 5], [7, 7], [0, 10]], F)
    voted = vote(segments, segments, np.array([0.5, 0.5, 0.5], F), 0.5)
    assert voted.tolist() == segments.tolist()


def test_hard_nms_without_a_threshold_leaves_one_of_a_class():
    segments, scores = np.array([[0, 1], [5, 6], [8, 9]], F), np.array([0.1, 0.9, 0.3], F)
    assert hard_nms(segments, scores, 0.0, 0.0).tolist() == [1]
    assert hard_nms(segments, scores, 0.0, 0.9).tolist() == []


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("multiclass", [True, False])
def test_nothing_in_nothing_out(kind, multiclass):
    spec = NmsSpec(kind=kind, multiclass=multiclass, max_segments=0)
    for count in (0, 3):
        out = apply_nms(np.zeros((count, 2)), np.ones(count), np.zeros(count), spec)
        assert [len(array) for array in out] == [0, 0, 0]
        assert [array.dtype for array in out] == [F, F, np.int64]
