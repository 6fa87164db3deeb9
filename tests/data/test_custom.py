"""Own videos: what the table says comes back as annotations; all that is wrong with it is told at once."""

import csv
import json

import pytest
import yaml

from adatad.data.custom import TableError, make_annotations
from adatad.spec import load


@pytest.fixture
def table(tiny_data, tmp_path):
    """labels.csv of the built-in data set, and its rows."""
    database = json.loads((tiny_data / "annotations.json").read_text())["database"]
    rows = [
        {"video": name, "start": item["segment"][0], "end": item["segment"][1], "label": item["label"]}
        for name, entry in database.items()
        for item in entry["annotations"]
    ]
    return write(tmp_path / "labels.csv", rows), rows


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_table_comes_back_as_annotations(table, tiny_data, tmp_path):
    path, rows = table
    truth = json.loads((tiny_data / "annotations.json").read_text())["database"]
    spec_file = make_annotations(path, tiny_data / "videos", tmp_path / "mine", 0.25)
    database = json.loads((tmp_path / "mine/annotations.json").read_text())["database"]
    assert database.keys() == {row["video"] for row in rows}
    for name, entry in database.items():
        assert entry["frame"] == truth[name].get("frame", entry["frame"])
        assert entry["duration"] == pytest.approx(truth[name]["duration"], abs=0.05)
        assert [a["label"] for a in entry["annotations"]] == [r["label"] for r in rows if r["video"] == name]
    assert sum(entry["subset"] == "validation" for entry in database.values()) == round(0.25 * len(database))
    spec = load(spec_file, ["model.backbone.weights=random"])
    assert spec.name == "mine"
    assert spec.data.size_pixels == 64
    again = make_annotations(path, tiny_data / "videos", tmp_path / "again", 0.25)
    assert (
        yaml.safe_load(again.read_text())["data"]["window"] == yaml.safe_load(spec_file.read_text())["data"]["window"]
    )


def test_a_spec_that_is_there_stays(table, tiny_data, tmp_path):
    path, rows = table
    spec_file = make_annotations(path, tiny_data / "videos", tmp_path / "mine")
    spec_file.write_text("# mine\n")
    write(path, rows[:-1])
    make_annotations(path, tiny_data / "videos", tmp_path / "mine")
    assert spec_file.read_text() == "# mine\n"
    database = json.loads((tmp_path / "mine/annotations.json").read_text())["database"]
    assert sum(len(entry["annotations"]) for entry in database.values()) == len(rows) - 1


def test_subsets_of_the_table_count(table, tiny_data, tmp_path):
    path, rows = table
    names = list(dict.fromkeys(row["video"] for row in rows))
    said = {name: "validation" if place % 2 else "training" for place, name in enumerate(names)}
    write(path, [{**row, "subset": said[row["video"]]} for row in rows])
    make_annotations(path, tiny_data / "videos", tmp_path / "mine")
    database = json.loads((tmp_path / "mine/annotations.json").read_text())["database"]
    assert {name: entry["subset"] for name, entry in database.items()} == said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"start": "soon"}, "line 2: start and end are seconds, got 'soon'"),
        ({"start": 5, "end": 4}, "line 2: expected 0 <= start < end, got 5 and 4"),
        ({"end": 9999}, "line 2: ends at 9999 s"),
        ({"label": " "}, "line 2: has no label"),
        ({"video": "nobody"}, "video 'nobody': 0 files"),
        ({"subset": "test"}, "line 2: subset is training or validation, got 'test'"),
        ({"subset": "training"}, "expected one subset on all its lines"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(row, message, table, tiny_data, tmp_path):
    path, rows = table
    write(path, [{"subset": "", **rows[0], **row}, *({"subset": "", **other} for other in rows[1:])])
    with pytest.raises(TableError, match=r"nothing was written") as caught:
        make_annotations(path, tiny_data / "videos", tmp_path / "mine")
    assert message in str(caught.value)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("a,b\n1,2\n", "no column video"), ("video,start,end,label\n", "no rows")]
)
def test_what_is_no_table_is_refused(text, message, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(TableError, match=message):
        make_annotations(tmp_path / "labels.csv", tmp_path, tmp_path / "mine")
