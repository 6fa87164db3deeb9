"""Explanations of a score: a case by hand where every answer is known, against rescoring, and planted mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adatad.errors import UserError
from adatad.evaluation.bootstrap import Draws, average_precision
from adatad.evaluation.bouts import union_seconds
from adatad.evaluation.detection_map import evaluate
from adatad.evaluation.explain import explain
from adatad.evaluation.would_fit import factor_hint

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


def truth(videos, duration=100.0):
    return {
        "database": {
            video: {
                "subset": "validation",
                "duration": duration,
                "annotations": [{"segment": [a, b], "label": label} for a, b, label in items],
            }
            for video, items in videos.items()
        }
    }


def found(videos):
    return {
        "results": {
            video: [{"segment": [a, b], "label": label, "score": score} for a, b, label, score in items]
            for video, items in videos.items()
        }
    }


# One detection of every type in the first slice of "a", whose seven instances give it seven places.
BY_HAND = (
    truth({"v": [(0, 10, "a"), (20, 30, "b"), *((40 + 8 * n, 45 + 8 * n, "a") for n in range(6))]}),
    found({
        "v": [
            (0, 10, "a", 0.9),  # finds the first
            (0, 10, "a", 0.8),  # again
            (20, 30, "a", 0.7),  # b's place
            (40, 42, "a", 0.6),  # tIoU 0.4 with an a
            (26, 34, "a", 0.5),  # tIoU 4/14 with b
            (12, 18, "a", 0.4),  # nothing there
            (48, 53, "a", 0.3),  # finds another
        ]
    }),
)  # fmt: skip


@pytest.fixture(scope="module")
def by_hand():
    return explain(*BY_HAND, "validation", [0.5])


def values(figures):
    return {name: figure["value"] for name, figure in figures.items()}


def test_each_type_of_error_is_counted_by_its_definition(by_hand):
    shares = values(by_hand["profile"][0])
    names = ["double detection", "wrong label", "localization", "confusion", "background"]
    assert shares == pytest.approx({"true positive": 2 / 7, **dict.fromkeys(names, 1 / 7)}, abs=1e-6)
    assert len(by_hand["profile"]) == 1


def test_each_type_costs_what_ap_gains_without_it(by_hand):
    # Precisions 1 and 2/7 at recalls 1/7 and 2/7; class b has nothing.
    assert by_hand["average_mAP"]["value"] == pytest.approx((1 + 2 / 7) / 7 / 2, abs=1e-6)
    gain = (2 / 6 - 2 / 7) / 7 / 2
    costs = values(by_hand["costs"])
    # Of two instances only, both are found; b, of which nothing is found, doesn't count then.
    missed = (1 + 2 / 7) / 2 - (1 + 2 / 7) / 7 / 2
    errors = dict.fromkeys(["double detection", "wrong label", "localization", "confusion", "background"], gain)
    assert costs == pytest.approx({**errors, "missed": missed}, abs=1e-6)


def test_confused_classes_are_listed_with_their_share(by_hand):
    # Of the labels "a" with tIoU 0.5 with anything, four lie on an a.
    assert by_hand["confusion"] == [{"instance": "b", "detected_as": "a", "count": 1, "share": pytest.approx(1 / 4)}]


def test_instances_are_divided_by_length_coverage_and_number(by_hand):
    parts = by_hand["sensitivity"]
    assert [row["instances"] for row in parts["length"]] == [0, 6, 2, 0, 0]
    assert [row["holds"] for row in parts["instances"]] == ["1", "2 to 4", "5 to 8", "over 8"]
    assert [row["instances"] for row in parts["instances"]] == [1, 0, 7, 0]
    assert sum(row["instances"] for row in parts["coverage"]) == 8
    # One of the six short ones and one of the two long ones are found.
    assert [row["missed"]["value"] for row in parts["length"][1:3]] == pytest.approx([5 / 6, 1 / 2], abs=1e-6)


def test_normalized_precision_is_that_of_classes_with_equally_many_instances(by_hand):
    # N is 4. Of a's seven: R x N = 4/7 and 8/7, errors before them 0 and 5.
    second = (8 / 7) / (8 / 7 + 5)
    assert by_hand["sensitivity"]["normalized_mAP"]["value"] == pytest.approx((1 + second) / 7 / 2, abs=1e-6)
    # Of the six short ones: R x N = 4/6; the detection of a long one is left out, the five errors stay.
    short = (4 / 6) / (4 / 6 + 5)
    assert by_hand["sensitivity"]["length"][1]["normalized_mAP"]["value"] == pytest.approx(short / 6, abs=1e-6)


def test_bouts_and_durations_are_those_above_the_best_threshold(by_hand):
    row = by_hand["classes"]["a"]
    # F1 is 2 x 1 / (1 + 7) with the first alone, 2 x 2 / (7 + 7) with all.
    assert (row["f1"], row["precision"], row["recall"]) == pytest.approx((4 / 14, 2 / 7, 2 / 7))
    assert (row["bouts"]["true"], row["bouts"]["detected"], row["bouts"]["error_per_video"]) == (7, 7, 0)
    # 0 to 10 counts once; 20 to 30 and 26 to 34 are 14 s.
    assert (row["seconds"]["true"], row["seconds"]["detected"]) == (40, 10 + 14 + 2 + 6 + 5)


def test_calibration_compares_scores_with_shares_that_are_right(by_hand):
    rows = {round(row["from"], 1): row for row in by_hand["calibration"]["bins"]}
    assert (rows[0.9]["detections"], rows[0.9]["right"]["value"]) == (1, 1)
    gaps = [0.1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.7]
    assert by_hand["calibration"]["error"]["value"] == pytest.approx(sum(gaps) / 7, abs=1e-6)


def test_durations_are_counted_for_instances_and_as_many_detections(by_hand):
    durations = by_hand["durations"]
    assert (sum(durations["true"]), sum(durations["detected"])) == (8, 7)


def planted(videos=40, offset=0.0, factor=1.0, exchange=(), seed=0, classes=5):
    """Detections as of a fair detector, made wrong in one way."""
    random = np.random.default_rng(seed)
    annotated, detected = {}, {}
    names = [f"class {number}" for number in range(classes)]
    for video in range(videos):
        items, wrong = [], []
        for _ in range(random.integers(1, 7)):
            start, length, label = random.uniform(0, 90), random.uniform(1, 8), names[random.integers(classes)]
            items.append((start, start + length, label))
            if random.random() < 0.8:
                a, b = np.sort(start + np.array([0, length]) + random.normal(0, 0.3, 2)) * factor + offset
                # Each of them is called the next one.
                shown = dict(zip(exchange, (*exchange[1:], *exchange[:1]), strict=True)).get(label, label)
                wrong.append((a, b, shown, random.uniform(0.3, 1)))
        for _ in range(10):
            start = random.uniform(0, 90)
            wrong.append(
                (start * factor, (start + 4) * factor, names[random.integers(classes)], random.uniform(0, 0.6))
            )
        annotated[f"v{video}"], detected[f"v{video}"] = items, wrong
    return truth(annotated), found(detected)


def test_average_map_is_that_of_evaluate():
    files = planted()
    assert explain(*files, "validation", TIOUS)["average_mAP"]["value"] == pytest.approx(
        evaluate(*files, "validation", TIOUS).average_mAP, abs=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_right_files_fit_without_a_correction(seed):
    assert explain(*planted(seed=seed), "validation", TIOUS)["would_fit"] == []


@pytest.mark.parametrize(
    ("mistake", "begins"),
    [
        ({"offset": -3.0}, "Detections lie 3.0"),
        ({"offset": 3.0}, "Detections lie "),
        ({"exchange": ("class 0", "class 3")}, "'class "),
        ({"exchange": ("class 1", "class 4", "class 0", "class 2")}, "'class "),
        ({"factor": 30.0}, "Times of detections fit when multiplied by 0.033"),
        ({"factor": 30 / 25}, "Times of detections fit when multiplied by 0.83"),
    ],
)
def test_the_first_sentence_names_a_planted_mistake(mistake, begins):
    told = explain(*planted(**mistake), "validation", TIOUS)
    assert told["sentences"][0].startswith(begins)
    fit = told["would_fit"][0]
    right = evaluate(*planted(), "validation", TIOUS).average_mAP
    assert fit["after"] == pytest.approx(right, abs=0.03)
    assert fit["gain"]["low"] > 0
    if "exchange" in mistake:
        names = mistake["exchange"]
        assert fit["value"] == dict(zip((*names[1:], *names[:1]), names, strict=True))
        assert "exchanged" in fit["what"]
    elif "offset" in mistake:
        assert fit["value"] == pytest.approx(-mistake["offset"], abs=0.1)
    else:
        assert fit["value"] == pytest.approx(1 / mistake["factor"], rel=0.01)


def test_a_factor_of_frames_is_named():
    assert "detections in frames, at 30 frames/s" in factor_hint(1 / 30)
    assert "frames of 30 frames/s taken for 25 frames/s" in factor_hint(25 / 30)
    assert "compare" in factor_hint(3.3)


def test_intervals_are_as_wide_as_those_of_rescored_draws():
    annotated, detected = planted()
    told = explain(annotated, detected, "validation", TIOUS)["average_mAP"]
    random, scores = np.random.default_rng(1), []
    for _ in range(60):
        drawn = random.choice(list(annotated["database"]), len(annotated["database"]))
        copies = {f"{video} {number}": video for number, video in enumerate(drawn)}
        files = [{"database": {name: annotated["database"][video] for name, video in copies.items()}}]
        files.append({"results": {name: detected["results"][video] for name, video in copies.items()}})
        scores.append(evaluate(*files, "validation", TIOUS).average_mAP)
    assert (told["high"] - told["low"]) / 3.92 == pytest.approx(np.std(scores), rel=0.35)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30), st.sampled_from([None, 5.0]))
@settings(max_examples=60, deadline=None)
def test_the_influence_of_a_video_is_the_derivative_of_ap(rows, normal):
    hits, video = np.array([hit for hit, _ in rows]), np.array([number for _, number in rows])
    instances = np.bincount(video[hits], minlength=4) + 1.0

    def weighted(weights):
        """AP where each video counts `weights` times, from its definition."""
        true, false, steps = 0.0, 0.0, []
        total = (weights * instances).sum()
        scale = 1 if normal is None else normal / total
        for hit, number in zip(hits, video, strict=True):
            true, false = true + weights[number] * hit, false + weights[number] * ~hit
            steps.append((scale * true / (scale * true + false), weights[number] * hit))
        return sum(max(p for p, _ in steps[place:]) * step for place, (_, step) in enumerate(steps)) / total

    told = average_precision(hits, video, instances, normal)
    assert told.value == pytest.approx(weighted(np.ones(4)))
    if len(set(video.tolist())) > 0:
        for number in range(4):
            up = np.ones(4)
            up[number] += 1e-6
            # From the right or the left where two precisions tie.
            down = np.ones(4)
            down[number] -= 1e-6
            slopes = (weighted(up) - told.value) / 1e-6, (told.value - weighted(down)) / 1e-6
            assert min(slopes) - 1e-3 <= told.influence[number] <= max(slopes) + 1e-3


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["v", "no instance", "gelöscht"]),
            st.floats(0, 50),
            st.floats(0, 20),
            st.sampled_from(["a", "ü b", "elsewhere"]),
            st.sampled_from([-1e12, 0.0, 0.5, 0.5, 1e12]),
        ),
        max_size=25,
    ),
    st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(0.001, 1e6), st.sampled_from(["a", "ü b"])), min_size=1, max_size=12
    ),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_files_hold_the_average_is_that_of_evaluate(rows, instances):
    annotated = truth({"v": [(a, a + b, label) for a, b, label in instances], "no instance": []}, duration=None)
    items: dict[str, list] = {}
    for video, start, length, label, score in rows:
        items.setdefault(video, []).append((start, start + length, label, score))
    told = explain(annotated, found(items), "validation", TIOUS, number_of_draws=20)
    right = evaluate(annotated, found(items), "validation", TIOUS)
    assert told["average_mAP"]["value"] == pytest.approx(right.average_mAP, abs=1e-6)
    assert 1 <= len(told["sentences"]) <= 3
    json.dumps(told, allow_nan=False)


def test_draws_are_the_same_for_all_figures():
    draws = Draws(8, 50)
    one = average_precision(np.array([True, False, True]), np.array([0, 1, 2]), np.ones(8))
    assert draws.figure(one.minus(one)) == (0, 0, 0)
    low, high = draws.figure(one, 0, 1)[1:]
    assert 0 <= low <= one.value <= high <= 1


def test_seconds_of_overlapping_segments_count_once():
    assert union_seconds(np.array([[0, 4], [2, 6], [3, 5], [10, 11.0]])) == 7
    assert union_seconds(np.zeros((0, 2))) == 0


def test_detections_without_anything_right_are_explained():
    told = explain(truth({"v": [(0, 1, "a")]}), found({"v": [(50, 60, "a", 0.5)]}), "validation", TIOUS)
    assert told["sentences"][0].startswith("No detection overlaps an instance of its class by tIoU 0.3; 100.0 %")
    json.dumps(told, allow_nan=False)
    told = explain(truth({"v": [(0, 1, "a")]}), found({}), "validation", TIOUS)
    assert told["sentences"][0].startswith("There is no detection")
    told = explain(truth({"v": [(0, 1, "a")]}), found({"v": [(0, 1, "A", 0.5)]}), "validation", TIOUS)
    assert any("'A' (there is 'a')" in line for line in told["notes"])
    with pytest.raises(UserError, match="no annotated instance that counts"):
        explain(truth({"v": []}), found({}), "validation", TIOUS)


@pytest.mark.slow
def test_activitynet_is_explained_in_seconds(shared_folder, tmp_path):
    """100 detections in each of 4,728 videos, by the time of this process."""
    folder = shared_folder / "data" / "annotations"
    code = Path(__file__).with_name("explain_activitynet.py")
    done = subprocess.run([sys.executable, code, folder, tmp_path], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["detections"] == 472_800
    # CPU seconds: other processes of the machine don't count.
    assert said["cpu_seconds"] < 30
