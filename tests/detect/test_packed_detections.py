"""Packed detections of a video give the list that dictionaries of its windows give, to the last digit."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.evaluation.packed import PackedDetections, rounded_floats
from adatad.evaluation.postprocess import WindowDetections, WindowMeta, join_windows, window_candidates
from adatad.evaluation.postprocess import window_detections as window_dictionaries
from adatad.spec.schema import NmsSpec, PostprocessSpec

CLASSES = ("pour", "stir", "cut")
RULES = [
    NmsSpec(max_segments=30),
    NmsSpec(kind="hard", iou_threshold=0.5, max_segments=30),
    NmsSpec(multiclass=False, voting_threshold=0.7, max_segments=30),
    None,
]


@pytest.mark.parametrize("nms", RULES)
@pytest.mark.parametrize("sliding", [True, False])
@given(seed=st.integers(0, 10_000), windows=st.integers(0, 3))
def test_the_list_is_that_of_joined_windows(nms, sliding, seed, windows):
    rng, post = np.random.default_rng(seed), PostprocessSpec(nms=nms, pre_nms_topk=40)
    packed, found = PackedDetections(CLASSES, post, sliding), []
    for number in range(windows if sliding else min(windows, 1)):
        starts = rng.integers(0, 20, 12).astype(np.float32)
        segments = np.stack([starts, starts + rng.integers(0, 9, 12).astype(np.float32)], 1)
        # Few different scores: ties are ranked by the order of classes and windows.
        scores = rng.choice(np.array([0, 0.0005, 0.12345, 0.5, 0.87654], np.float32), (12, 3))
        meta = WindowMeta("v", 9.0, 7.0, 2, 16 * number) if sliding else WindowMeta("v", 9.0, resize_grid=32)
        packed.add(*window_candidates(segments, scores, meta, post, sliding))
        items = window_dictionaries(segments, scores, meta, CLASSES, post, sliding)
        found.append(WindowDetections("v", 16 * number, sliding, items))
    joined = join_windows(found, post).get("v", [])
    assert json.dumps(packed.detections(range(len(packed)))) == json.dumps(joined)


@given(st.lists(st.floats(0, 1e5, width=32), max_size=20), st.sampled_from([2, 4]))
def test_arrays_are_rounded_as_single_numbers_are(numbers, decimals):
    expected = np.array([round(number, decimals) for number in numbers], np.float32)
    assert rounded_floats(np.array(numbers, np.float32), decimals).tolist() == expected.tolist()


def test_halves_are_rounded_as_single_numbers_are():
    halves = np.arange(0, 400, dtype=np.float32) / 8 + np.float32(1 / 16)
    assert rounded_floats(halves, 2).tolist() == [np.float32(round(x, 2)) for x in halves.tolist()]
