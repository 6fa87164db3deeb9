"""Annotation and detection files: what is wrong with them is said, what isn't scored is left alone."""

import gzip
import json

import pytest

from adatad.evaluation.files import FileError, evaluate_files


@pytest.fixture
def files(tmp_path):
    """Folder of gt.json and found.json: one video, found."""
    truth = {"database": {"v": {"subset": "validation", "annotations": [{"segment": [0, 2], "label": "a"}]}}}
    found = {"results": {"v": [{"segment": [0, 2], "label": "a", "score": 0.5}]}}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "video 'w': expected an object with subset and annotations"),
        ({"subset": "validation", "annotations": None}, "video 'w': expected a list of annotations"),
        ({"subset": "validation", "annotations": [3]}, "video 'w', annotation 0: expected segment and label, got 3"),
        ({"subset": "validation", "annotations": [{"label": "a"}]}, "annotation 0: expected segment and label"),
        ({"subset": "validation", "annotations": [{"label": "a", "segment": [1]}]}, "segment [start, end] as finite"),
        ({"subset": "validation", "annotations": [{"label": {}, "segment": [1, 2]}]}, "expected a name as label"),
    ],
)
def test_bad_ground_truth_is_explained(files, entry, message):
    truth = json.loads((files / "gt.json").read_text())
    truth["database"]["w"] = entry
    (files / "gt.json").write_text(json.dumps(truth))
    with pytest.raises(FileError) as caught:
        evaluate_files(files / "gt.json", files / "found.json", "validation", [0.5])
    assert str(caught.value).startswith(f"{files / 'gt.json'}: video 'w'")
    assert message in str(caught.value)


def test_what_is_not_scored_is_left_out(files):
    truth = json.loads((files / "gt.json").read_text())
    truth["database"] |= {
        "other": {"subset": "training", "annotations": [{"label": "a"}]}, "none": {"subset": "validation"},
        "empty": {"subset": "validation", "annotations": [{"label": "a", "segment": [2, 1]}]},
    }  # fmt: skip
    before = evaluate_files(files / "gt.json", files / "found.json", "validation", [0.5])
    (files / "gt.json").write_text(json.dumps(truth))
    assert evaluate_files(files / "gt.json", files / "found.json", "validation", [0.5]) == before


def test_files_may_be_compressed_and_blocked_videos_a_text_file(files):
    plain = evaluate_files(files / "gt.json", files / "found.json", "validation", [0.5])
    for name in ("gt.json", "found.json"):
        (files / f"{name}.gz").write_bytes(gzip.compress((files / name).read_bytes()))
    compressed = files / "gt.json.gz", files / "found.json.gz", "validation", [0.5]
    assert evaluate_files(*compressed) == plain
    (files / "blocked.txt").write_text("v\n")
    assert plain.num_ground_truth > 0
    assert evaluate_files(*compressed, blocked=files / "blocked.txt").num_ground_truth == 0
