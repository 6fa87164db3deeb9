"""Annotation and detection files: what is wrong with them is said, what isn't scored is left alone."""

import gzip
import json

import pytest

from adatad.evaluation.score_files import FileError, evaluate_epic_files, evaluate_files, evaluate_recall_files


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
        ({"subset": "validation", "annotations": [{"label": "a", "segment": [1, 10**400]}]}, "as finite numbers"),
        ({"subset": "validation", "annotations": [{"label": "a", "segment": [0, 1e308]}]}, "as finite numbers"),
        ({"subset": "validation", "annotations": [{"label": "a", "segment": [False, True]}]}, "as finite numbers"),
        ({"subset": "validation", "annotations": [{"label": "a", "segment": "12"}]}, "as finite numbers"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"results": {"v": [], "v": []}}', "video 'v' appears twice"),
        (b'{"results": {"v": [{"segment": [0, 1], "label": "a", "score": 0.5, "score": 1}]}}', "'score' appears twice"),
        (
            b'{"results": {"v": [{"segment": [0, 1], "label": "a", "score": 1' + b"0" * 400 + b"}]}}",
            "as finite numbers",
        ),
        (
            b'{"results": {"v": [{"segment": [0, 1], "label": "a", "score": ' + b"1" * 5000 + b"}]}}",
            "not readable as JSON",
        ),
        (b'{"results": {"\\ud800": []}}', "half of a character"),
        (b"\x1f\x8b\x08\x00garbage", "can't be unpacked"),
        (gzip.compress(b'{"results": {}}', mtime=0)[:-9], "can't be unpacked: it is cut off"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "pointer of Git LFS"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b'{"database": {}}', 'it has "database": are the two files in the wrong order?'),
    ],
)
def test_files_that_are_no_detections_are_refused_in_a_line(files, content, message):
    (files / "found.json").write_bytes(content)
    with pytest.raises(FileError) as caught:
        evaluate_files(files / "gt.json", files / "found.json", "validation", [0.5])
    assert str(caught.value).startswith(f"{files / 'found.json'}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_values_in_messages_are_cut(files):
    found = {"results": {"v" * 10_000: [{"segment": [0, 1], "label": "x" * 10_000, "score": None}] * 3}}
    (files / "found.json").write_text(json.dumps(found))
    with pytest.raises(FileError) as caught:
        evaluate_files(files / "gt.json", files / "found.json", "validation", [0.5])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("action", ["3", "3,", ",4", "1,2,3", f"{'9' * 5000},1", 3, None, "a,b", "-1,2"])
def test_an_action_is_a_pair_of_numbers(files, action):
    annotation = {"segment": [0, 2], "verb_label": "id_3", "noun_label": "id_4"}
    (files / "gt.json").write_text(json.dumps({"database": {"v": {"subset": "val", "annotations": [annotation]}}}))
    (files / "found.json").write_text(
        json.dumps({"results": {"v": [{"segment": [0, 2], "action": action, "score": 1}]}})
    )
    with pytest.raises(FileError, match='expected a pair of numbers like "3,12" as action'):
        evaluate_epic_files(files / "gt.json", files / "found.json", "val", [0.5], "action")


def test_warnings_come_with_every_score(files):
    found = {
        "v": [{"segment": [0, 2], "label": "A", "score": 0.5, "verb": 1}],
        "w.mp4": [{"segment": [0, 2], "label": "a", "score": 0.5, "verb": 9}],
    }
    truth = {
        "v": {"subset": "val", "duration": 9, "annotations": [{"segment": [0, 2], "label": "a", "verb_label": "id_1"}]},
        "w": {"subset": "val"},
    }
    (files / "gt.json").write_text(json.dumps({"database": truth}))
    (files / "found.json").write_text(json.dumps({"results": found}))
    (files / "blocked.txt").write_text("x\n")
    arguments = files / "gt.json", files / "found.json", "val", [0.5]
    blocked = {"blocked": files / "blocked.txt"}
    for result, labels in (
        (evaluate_files(*arguments, **blocked), "'A' (there is 'a')"),
        (evaluate_recall_files(*arguments, **blocked), ""),
        (
            evaluate_epic_files(*arguments, "verb", **blocked),
            "1 detection with 1 label that no annotation has (left out of the score): '9'",
        ),
        (evaluate_epic_files(*arguments, "verb", misplace_classes=True, **blocked), ""),
    ):
        text = "\n".join(result.warnings)
        for line in (
            "1 of 1 blocked name in no annotation",
            "'w.mp4' (there is 'w')",
            "'w' (there is 'w.mp4')",
            labels,
        ):
            assert line in text
        assert ("label that" in text) == bool(labels)


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
