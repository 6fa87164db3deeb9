"""Own videos: what the table says comes back as annotations; all that is wrong with it is told at once."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml

from adatad.data.annotations import read_annotations
from adatad.data.dataset import video_path
from adatad.data.prepare.demo import write_video
from adatad.data.prepare.label_sources import SourceOptions
from adatad.data.prepare.own_data import ImportOptions, OwnDataError, import_labels
from adatad.data.prepare.splits import SplitRules
from adatad.files import FileError
from adatad.spec import load


def make_annotations(table, videos, output, validation_share=0.2, columns=None, say=print):
    """Write annotations as `adatad data from-csv` does."""
    sources, rules = SourceOptions("table", columns=columns or {}), SplitRules(validation_share)
    return import_labels([table], videos, output, ImportOptions(sources, rules, existing="refresh"), say)


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
    for subset in ("training", "validation"):
        there = {a["label"] for entry in database.values() if entry["subset"] == subset for a in entry["annotations"]}
        assert there == {row["label"] for row in rows}, "each class is in both"
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
        ({"start": "soon"}, "line 2: start and end are seconds, or m:ss or h:mm:ss, got 'soon'"),
        ({"start": 5, "end": 4}, "line 2: expected 0 <= start < end, got 5 and 4"),
        ({"end": 9999}, "line 2: ends at 9999 s"),
        ({"label": " "}, "line 2: has no label"),
        ({"label": "\u200b"}, "line 2: has no label"),
        ({"video": "nobody"}, "line 2: video 'nobody': no file of that name"),
        ({"subset": "holdout"}, "line 2: subset is training or validation, got 'holdout'"),
        ({"subset": "training"}, "expected one subset on all its lines, got none and training"),
        ({"start": -1}, "line 2: expected 0 <= start < end, got -1 and"),
        ({"start": 5000, "end": 6000}, "line 2: begins at 5000 s, after demo_"),
        ({"label": "two\nlines"}, "line 2: the label 'two\\nlines' holds a line break"),
        ({"label": "3\tfoo"}, "holds a line break, a tab or another control character"),
        ({"label": "page\u2028break"}, "the label 'page\\u2028break' holds"),
        ({"label": "form\x0cfeed"}, "the label 'form\\x0cfeed' holds"),
        ({"start": 0, "end": "1,234"}, "line 2: a number like 3,200 may be 3.2 or 3200 in this table"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(row, message, table, tiny_data, tmp_path):
    path, rows = table
    write(path, [{"subset": "", **rows[0], **row}, *({"subset": "", **other} for other in rows[1:])])
    with pytest.raises(OwnDataError, match=r"nothing was written") as caught:
        make_annotations(path, tiny_data / "videos", tmp_path / "mine")
    assert message in str(caught.value)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("a,b\n1,2\n", "no column video"), ("video,start,end,label\n", "no rows")]
)
def test_what_is_no_table_is_refused(text, message, tmp_path):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(OwnDataError, match=message):
        make_annotations(tmp_path / "labels.csv", tmp_path, tmp_path / "mine")


# ---- forms of tables, names of videos, subsets: three small videos


@pytest.fixture(scope="module")
def three_videos(tmp_path_factory):
    """Folder of k0.mp4 to k2.mp4, each of 12 s at 8 frames a second."""
    folder = tmp_path_factory.mktemp("three")
    for number in range(3):
        write_video(folder / f"k{number}.mp4", np.zeros((96, 32, 32, 3), np.uint8))
    return folder


@pytest.fixture
def make(three_videos, tmp_path):
    """make(text, videos=..., columns=...) -> (database, what was said); files lie in tmp_path/d."""

    def make(text, videos=three_videos, **options):
        (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        said = []
        make_annotations(tmp_path / "labels.csv", videos, tmp_path / "d", say=said.append, **options)
        return json.loads((tmp_path / "d/annotations.json").read_text())["database"], "\n".join(said)

    return make


def found(database):
    """[start, end, label] of all instances, by video."""
    return {name: [[*a["segment"], a["label"]] for a in e["annotations"]] for name, e in sorted(database.items())}


PLAIN = "video,start,end,label\nk0,1.5,3,pour\nk1,2,5,stir\nk1,2,5,pour\nk0,6,7,stir\n"
EXPECTED = {"k0": [[1.5, 3.0, "pour"], [6.0, 7.0, "stir"]], "k1": [[2.0, 5.0, "stir"], [2.0, 5.0, "pour"]]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN, ""),
        (PLAIN.replace(",", ";").replace("1.5", "1,5"),
         "divided by semicolons: video, start, end, label\ndecimal commas"),
        (PLAIN.replace(",", "\t").replace("1.5", "1,5").encode("utf-16"), "divided by tabs"),
        (PLAIN.replace("1.5", '"1,5"'), "decimal commas in times"),
        (PLAIN.replace(",", ", "), ""),
        (PLAIN.replace("1.5", "0:01.5").replace("6,7", "0:06,0:00:07.000"), ""),
        (PLAIN.replace("start,end", "start_ms,end (ms)").replace("1.5,3", "1500,3000").replace("2,5", "2000,5000")
         .replace("6,7", "6000,7000"), "start from 'start_ms' (milliseconds), end from 'end (ms)' (milliseconds)"),
        (PLAIN.replace("start,end", "start_frame,end_frame").replace("1.5,3", "12,24").replace("2,5", "16,40")
         .replace("6,7", "48,56"), "frames are counted from 0; an instance ends where its end frame begins"),
        (PLAIN.replace("video,start,end,label", "Filename;Begin;Stop;Behaviour").replace(",", ";"),
         "video from 'Filename', start from 'Begin', end from 'Stop', label from 'Behaviour'"),
        (PLAIN.replace("k0,", "clips/k0.mp4,"), ""),
        (PLAIN.replace("k0,", "k0.mp4,", 1), ""),
        (PLAIN + "k0,1.5,3.0,pour\n", "one row left out that stood there before: line 6"),
        (PLAIN.replace("end", "duration").replace("1.5,3", "1.5,1.5").replace("2,5", "2,3").replace("6,7", "6,1"),
         "an instance ends its duration after its start"),
    ],
)  # fmt: skip
def test_tables_in_every_form_say_the_same(make, text, said):
    database, notes = make(text)
    assert found(database) == EXPECTED
    assert said in notes
    assert "one video of" in notes, "k2 isn't in the table"
    assert "3 files written" in notes


@pytest.mark.parametrize("column", ["fps", "Frame Rate", "rate", "framerate", "frames_per_second"])
def test_frames_at_another_rate_than_the_file_s_are_at_frame_through_rate(make, column):
    head = f"video,start_frame,end_frame,{column},label\n"
    database, notes = make(f"{head}k0,45,90,30,pour\nk1,60,150,30000/1001,stir\nk0,90,120,30.0,stir\n")
    ends = found(database)
    assert ends["k0"] == [[1.5, 3.0, "pour"], [3.0, 4.0, "stir"]]
    assert ends["k1"][0][:2] == pytest.approx([2.002, 5.005])
    assert "at another rate than the file's in two videos, where frame k is at k / fps seconds: k0.mp4, k1.mp4" in notes
    assert "aren't used" not in notes


def test_frames_at_the_file_s_own_rate_are_its_frames(make):
    text = (
        "video,start_frame,end_frame,fps,label\nk0,12,24,8,pour\nk1,16,40,7.96,stir\nk1,16,40,,pour\nk0,48,56,8,stir\n"
    )
    database, notes = make(text)
    assert found(database) == EXPECTED
    assert "another rate" not in notes
    database, notes = make(PLAIN.replace("label", "label,fps,rate").replace("r\n", "r,30,x\n"))
    assert found(database) == EXPECTED
    assert "columns that aren't used: fps, rate" in notes


@pytest.mark.parametrize("rate", ["0", "-30", "soon", "30/0", "1e9", "nan", "30/1/1"])
def test_a_rate_that_is_none_and_frames_past_the_end_are_refused(make, rate):
    head = "video,start_frame,end_frame,fps,label\n"
    with pytest.raises(OwnDataError, match=r"line 2: fps is frames a second, above 0 and at most 100000, got '"):
        make(f"{head}k0,45,90,{rate},pour\n")
    with pytest.raises(OwnDataError, match=r"line 2: ends at 13 s, k0.mp4 at 12.00 s"):
        make(f"{head}k0,45,390,30,pour\n")


def test_columns_can_be_given(make):
    text = PLAIN.replace("label", "verb").replace("video", "what")
    with pytest.raises(OwnDataError, match=r"no column video, label"):
        make(text)
    database, notes = make(text, columns={"label": "verb", "video": "what"})
    assert found(database) == EXPECTED
    assert "label from 'verb'" in notes


def test_all_problems_are_told_at_once_in_the_order_of_lines(make, tmp_path):
    with pytest.raises(OwnDataError) as caught:
        make(PLAIN + "k0,1,2,a,b\nk1,5,4,stir\nk1,1,999,stir\nk9,1,2,stir\nk0,20,30,pour\nk0,1,2\n")
    lines = str(caught.value).splitlines()
    assert "six problems; nothing was written:" in lines[0]
    assert [line.split()[1].rstrip(":") for line in lines[1:]] == ["6", "7", "8", "9", "10", "11"]
    assert not (tmp_path / "d").exists()


def test_videos_of_several_endings_in_folders_are_found_by_the_spec(make, three_videos, tmp_path):
    videos = tmp_path / "videos"
    (videos / "day1").mkdir(parents=True)
    shutil.copy(three_videos / "k0.mp4", videos / "day1/k0.MP4")
    shutil.copy(three_videos / "k1.mp4", videos / "k1.mp4")
    (videos / "k1.srt").touch()
    (videos / "k1.json").touch()
    database, _ = make(PLAIN, videos=videos)
    assert found(database).keys() == {"day1/k0.MP4", "k1.mp4"}
    spec = load(tmp_path / "d/spec.yaml", ["model.backbone.weights=random"])
    annotations = read_annotations(spec.data)
    for video in (*annotations.train, *annotations.validation):
        assert video_path(spec.data, video.name).is_file()


def test_what_another_ending_changes_is_said_of_a_spec_that_stays(make, three_videos, tmp_path):
    make(PLAIN)
    videos = tmp_path / "videos"
    shutil.copytree(three_videos, videos)
    (videos / "k0.mp4").rename(videos / "k0.MOV")
    _, notes = make(PLAIN, videos=videos)
    assert "2 files written, spec.yaml left as it was" in notes
    assert "has data.pattern '{name}.mp4', these annotations want '{name}': change it" in notes


@pytest.mark.parametrize(
    ("subsets", "expected", "said"),
    [
        (["train", "val"], ["training", "validation"], ""),
        (["Train", "VALID"], ["training", "validation"], ""),
        (["training", "test"], ["training", "validation"], "no video is for validation, but some for test: these are"),
    ],
)
def test_what_tables_call_subsets(make, subsets, expected, said):
    text = "video,start,end,label,split\n" + "".join(f"k{n},1,2,pour,{name}\n" for n, name in enumerate(subsets))
    database, notes = make(text)
    assert [database[f"k{n}"]["subset"] for n in range(2)] == expected
    assert said in notes


def test_test_videos_stay_beside_validation_videos(make):
    database, notes = make("video,start,end,label,split\nk0,1,2,a,train\nk1,1,2,a,val\nk2,1,2,a,test\n")
    assert database["k2"]["subset"] == "test"
    assert "one video for test: in the annotation file, but neither trained nor validated on" in notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("k0,1,2,a,train\nk1,1,2,a,training\n", "no video is for validation: the subsets are training"),
        ("k0,1,2,a,val\nk1,1,2,a,val\n", "no video is for training: the subsets are validation"),
        ("k0,1,2,a,val\nk1,1,2,a,train\nk2,1,2,a,\n", "one video without a subset, which others have: k2"),
        ("k0,1,2,a,val\nk0.mp4,1,3,a,train\nk1,1,2,a,train\n", "k0.mp4': expected one subset on all its lines, got "
         "training and validation"),
        ("a/k0.mp4,1,2,a,val\nb/k0.mp4,1,3,a,val\nk1,1,2,a,train\n", "would all be the file k0.mp4; which of them"),
    ],
)  # fmt: skip
def test_subsets_that_leave_nothing_are_refused(make, tmp_path, rows, message):
    with pytest.raises(OwnDataError) as caught:
        make("video,start,end,label,subset\n" + rows)
    assert message in str(caught.value)
    assert not (tmp_path / "d").exists()


def test_what_may_be_one_class_and_classes_that_a_subset_lacks_are_named(make):
    _, notes = make("video,start,end,label\nk0,1,2,Pour\nk1,1,2,pour\nk2,3,4,pours\n")
    assert "warning: labels 'Pour' (1), 'pour' (1), 'pours' (1) differ in case, blanks or a plural alone" in notes
    assert "warning: 2 of 3 classes have no instance in validation: " in notes


def test_what_training_would_refuse_or_leave_out_is_said_before_anything_is_written(make, tmp_path):
    text = "video,start,end,label,subset\nk0,1,1.01,a,train\nk1,1,2,a,val\n"
    with pytest.raises(OwnDataError, match="nothing is left for training: 1 too short to train on dropped"):
        make(text)
    assert not (tmp_path / "d").exists()
    _, notes = make(text + "k0,2,3,a,train\n")
    assert "training will leave out 1 instances, too short to train on: k0" in notes


@pytest.mark.parametrize("name", ["annotations.json", "classes.txt", "spec.yaml"])
def test_the_table_itself_is_not_written_over(three_videos, tmp_path, name):
    (tmp_path / name).write_text(PLAIN)
    with pytest.raises(FileError, match="is read here, and would be written over"):
        make_annotations(tmp_path / name, three_videos, tmp_path)
    assert (tmp_path / name).read_text() == PLAIN


def test_places_that_cannot_be_written_are_told_first(three_videos, tmp_path):
    (tmp_path / "labels.csv").write_text("nonsense")
    (tmp_path / "file").touch()
    (tmp_path / "full/annotations.json").mkdir(parents=True)
    for output in (tmp_path / "file", tmp_path / "file/below", tmp_path / "full"):
        with pytest.raises(FileError, match=output.name):
            make_annotations(tmp_path / "labels.csv", three_videos, output)


@pytest.mark.parametrize(("folder", "name"), [("mine", "mine"), ("my data (2)", "my_data_2"), (".hidden", "hidden")])
def test_a_spec_has_its_folder_s_name(make, tmp_path, monkeypatch, three_videos, folder, name):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    (tmp_path / "labels.csv").write_text(PLAIN)
    spec = make_annotations(tmp_path / "labels.csv", three_videos, type(tmp_path)("."), say=print)
    assert load(spec, ["model.backbone.weights=random"]).name == name


def test_a_class_that_begins_with_a_bracket_comes_back(make, tmp_path):
    make(PLAIN.replace("pour", '"[""a""]"'))
    spec = load(tmp_path / "d/spec.yaml", ["model.backbone.weights=random"])
    assert read_annotations(spec.data).classes == ('["a"]', "stir")


@pytest.mark.parametrize("columns", [["label"], ["=x"], ["label="], ["label=a", "label=b"]])
def test_columns_of_another_form_are_refused(run_command, tmp_path, columns):
    run = run_command("data from-csv", "t.csv", "--videos", "v", "--output", tmp_path / "d", "--columns", *columns)
    assert run.returncode == 2
    assert "--columns: " in run.stderr
