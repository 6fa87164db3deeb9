"""Labels of every tool become a data set, and go back into the tool; what is wrong in many files is told at once."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from adatad.data.annotations import read_annotations
from adatad.data.dataset import video_path
from adatad.data.prepare.demo import write_video
from adatad.data.prepare.export_labels import ExportError, ExportOptions, export_labels
from adatad.data.prepare.label_sources import SourceOptions
from adatad.data.prepare.own_data import ImportOptions, OwnDataError, import_labels
from adatad.data.prepare.splits import SplitRules, read_patterns
from adatad.errors import UserError
from adatad.labels.forms import FORMS, write_labels
from adatad.labels.records import Segment, VideoLabels
from adatad.spec import load

ENDINGS = (".mp4", ".MP4", ".mov", ".mp4", ".mp4", ".mp4")
"""Of videos k0 to k5, as phones and cameras make them."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Folder of k0.mp4, k1.MP4, k2.mov to k5.mp4, each of 12 s at 8 frames a second."""
    folder = tmp_path_factory.mktemp("six")
    for number, ending in enumerate(ENDINGS):
        write_video(folder / f"k{number}.mp4", np.zeros((96, 32, 32, 3), np.uint8))
        (folder / f"k{number}.mp4").rename(folder / f"k{number}{ending}")
    return folder


def labels_of(number, *rows, **facts):
    """Labels of video k<number>; rows: (label, start, end)."""
    facts = {"file": f"k{number}{ENDINGS[number]}", **facts}
    return VideoLabels(f"k{number}", tuple(Segment(*row) for row in rows), **facts)


SIX = [labels_of(n, ("pour", 1, 2.5), ("stir it", 4 + n / 4, 6.25)) for n in range(6)]


def instances(output):
    """(start, end, label) of all instances in an annotation file, by the stem of the video."""
    database = json.loads((output / "annotations.json").read_text())["database"]
    return {
        Path(name).stem: sorted((*item["segment"], item["label"]) for item in entry["annotations"])
        for name, entry in database.items()
    }


def subsets(output):
    database = json.loads((output / "annotations.json").read_text())["database"]
    return {Path(name).stem: entry["subset"] for name, entry in database.items()}


@pytest.fixture
def make(videos, tmp_path):
    """make(texts by file name, options) -> what was said; files lie in tmp_path/in, the data set in tmp_path/d."""

    def make(files, **options):
        folder = tmp_path / "in"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        said = []
        import_labels([folder], videos, tmp_path / "d", ImportOptions(**options), said.append)
        return "\n".join(said)

    return make


# ---- there and back


@pytest.mark.parametrize("form", sorted(FORMS))
def test_labels_that_were_exported_are_imported_again(form, videos, make, tmp_path):
    make({"labels.csv": write_labels("csv", SIX)})
    first, kept = instances(tmp_path / "d"), subsets(tmp_path / "d")
    made = export_labels(
        tmp_path / "d/annotations.json", [form], tmp_path / "out", ExportOptions(videos=videos), lambda _: None
    )
    said = []
    import_labels(made, videos, tmp_path / "again", say=said.append)
    again = instances(tmp_path / "again")
    assert again.keys() == first.keys()
    for name, rows in first.items():
        assert [row[2] for row in again[name]] == [row[2] for row in rows]
        np.testing.assert_allclose([row[:2] for row in again[name]], [row[:2] for row in rows], atol=0.001)
    assert subsets(tmp_path / "again") == kept
    spec = load(tmp_path / "again/spec.yaml")
    for video in read_annotations(spec.data).train:
        assert video_path(spec.data, video.name).is_file()


def test_detections_become_labels_to_correct_with_their_scores(videos, tmp_path):
    found = {"k0.mp4": [{"segment": [1, 2], "label": "pour", "score": 0.9},
                        {"segment": [3, 4], "label": "pour", "score": 0.2}]}  # fmt: skip
    (tmp_path / "detections.json").write_text(json.dumps({"results": found}))
    said = []
    options = ExportOptions(threshold=0.5, videos=videos)
    (path,) = export_labels(tmp_path / "detections.json", ["eaf"], tmp_path / "out", options, said.append)
    assert path.name == "k0.mp4.eaf"
    text = path.read_text()
    assert "pour [0.9]" in text
    assert "[0.2]" not in text
    assert str(videos / "k0.mp4") in text
    assert said == ["1 of 2 segments have a score of 0.5 or more"]


@pytest.mark.parametrize("form", ["boris", "eaf"])
def test_detections_in_a_new_built_in_video_are_corrected_in_a_tool_and_imported_again(form, tiny_data, tmp_path):
    database = json.loads((tiny_data / "annotations.json").read_text())["database"]
    *old, new = sorted(database)
    path, mine = tmp_path / "old.json", tmp_path / "mine"
    path.write_text(json.dumps({"database": {name: database[name] for name in old}}))
    import_labels([path], tiny_data / "videos", mine, say=lambda _: None)
    before = subsets(mine)
    first, second = database[new]["annotations"][:2]
    found = [{**first, "score": 0.91}, {**second, "label": "wrong", "score": 0.6}, {**second, "score": 0.1}]
    path.write_text(json.dumps({"results": {new: found}}))
    options = ExportOptions(threshold=0.5, videos=tiny_data / "videos")
    (exported,) = export_labels(path, [form], tmp_path / "to_correct", options, lambda _: None)
    # What people do in the tool: the second label is wrong.
    exported.write_text(exported.read_text().replace("wrong", second["label"]))
    sources, said = [mine / "annotations.json", exported], []
    import_labels(sources, tiny_data / "videos", mine, ImportOptions(existing="update"), said.append)
    assert before.items() <= subsets(mine).items()
    assert instances(mine)[new] == sorted((*item["segment"], item["label"]) for item in (first, second))
    assert "two instances with a score, as detections have; all are taken as labels" in said


def test_an_export_replaces_nothing_unless_forced_and_wants_frame_rates(videos, make, tmp_path):
    make({"labels.csv": write_labels("csv", SIX)})
    source = tmp_path / "d/annotations.json"
    detections = tmp_path / "found.json"
    detections.write_text(json.dumps({"results": {"elsewhere": []}}))
    with pytest.raises(
        ExportError, match=r"times of labelstudio are frames, .* one video isn't known: elsewhere; give --vid"
    ):
        export_labels(detections, ["labelstudio"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_labels(source, ["csv"], tmp_path / "out")
    with pytest.raises(ExportError, match=r"one file there already: annotations.csv"):
        export_labels(source, ["csv"], tmp_path / "out")
    export_labels(source, ["csv"], tmp_path / "out", ExportOptions(subset="training", force=True))
    assert "k" in (tmp_path / "out/annotations.csv").read_text()
    for options, message in (
        (ExportOptions(subset="hold out"), "no video is of it; there are training, validation"),
        (ExportOptions(threshold=0.5), "have no scores"),
    ):
        with pytest.raises(ExportError, match=message):
            export_labels(source, ["tsv"], tmp_path / "out", options)
    assert not (tmp_path / "out/annotations.tsv").exists()


# ---- many files, many problems


def test_a_folder_of_files_of_several_tools_is_one_data_set(make, tmp_path):
    said = make({
        "k0.eaf": write_labels("eaf", SIX[:1]), "study.boris": write_labels("boris", SIX[1:3]),
        "rest.csv": write_labels("csv", SIX[3:]), "k0.pfsx": "<preferences/>", "notes.md": "# to do",
    })  # fmt: skip
    assert instances(tmp_path / "d").keys() == {f"k{n}" for n in range(6)}
    assert "k0.eaf: read as an ELAN document" in said
    assert "3 files written" in said


def test_everything_wrong_in_all_files_is_told_at_once_and_nothing_written(make, tmp_path):
    late = labels_of(0, ("pour", 1, 2), ("stir", 11, 99))
    with pytest.raises(OwnDataError) as caught:
        make({
            "a.eaf": write_labels("eaf", [late]), "b.csv": "video,start,end,label\nk1,5,4,pour\nk9,1,2,pour\nk1,1,2,\n",
            "c.boris": '{"project_format_version": "7", "observations": {', "d.txt": "nothing that is known",
        })  # fmt: skip
    text = str(caught.value)
    for problem in (
        "a.eaf: tier 'stir'", "ends at 99 s, k0.mp4 at 12.00 s", "b.csv: line 2: expected 0 <= start < end",
        "b.csv: line 3: video 'k9': no file of that name", "b.csv: line 4: has no label", "c.boris", "d.txt: is of no",
    ):  # fmt: skip
        assert problem in text
    assert "nothing was written" in text
    assert text.index("a.eaf") < text.index("b.csv: line 2") < text.index("b.csv: line 3") < text.index("d.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("what", ["empty folder", "no folder", "empty file", "unreadable", "binary", "wrong form"])
def test_sources_that_hold_no_labels_are_refused(what, make, videos, tmp_path, monkeypatch):
    source, options = tmp_path / "é 'x' y", ImportOptions()
    if what == "empty folder":
        source.mkdir()
    elif what == "unreadable":
        os.mkfifo(source)
    elif what != "no folder":
        source.write_bytes(
            {"binary": b"\x00\x01\xff" * 99, "wrong form": b"video,start,end,label\nk0,1,2,a"}.get(what, b"")
        )
        options = ImportOptions(SourceOptions("boris" if what == "wrong form" else None))
    with pytest.raises(UserError, match="é 'x' y"):
        import_labels([source], videos, tmp_path / "d", options)
    assert not (tmp_path / "d").exists()


def test_a_failed_write_leaves_no_folder(make, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        make({"labels.csv": write_labels("csv", SIX)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


# ---- frame rates


def test_frames_are_counted_at_the_video_s_rate_unless_another_is_given(make, tmp_path):
    tasks = json.dumps([
        {"data": {"video": f"/data/upload/1/12ab34cd-k{n}.mp4"}, "annotations": [{"result": [
            {"type": "timelinelabels", "value": {"ranges": [{"start": 9, "end": 16}], "timelinelabels": ["pour"]}}]}]}
        for n in range(2)
    ])  # fmt: skip
    said = make({"tasks.json": tasks})
    assert instances(tmp_path / "d")["k0"] == [(1.0, 2.0, "pour")]
    assert "at the rate of the video file, 8 a second, in 2 videos whose labels don't say it (--fps" in said
    make({"tasks.json": tasks}, sources=SourceOptions(fps=16), existing="replace")
    assert instances(tmp_path / "d")["k0"] == [(0.5, 1.0, "pour")]


# ---- again, with more labels


def test_an_update_keeps_subsets_and_the_order_of_classes(make, tmp_path):
    make({"labels.csv": write_labels("csv", SIX[:4])}, rules=SplitRules(0.5))
    # Also a list of the user's own order.
    (tmp_path / "d/classes.txt").write_text('["pour", "stir it"]')
    before, spec = subsets(tmp_path / "d"), tmp_path / "d/spec.yaml"
    spec.write_text(spec.read_text() + "# mine\n")
    more = [*SIX[1:4], labels_of(4, ("add", 1, 2)), labels_of(5, ("add", 3, 4))]
    with pytest.raises(OwnDataError, match=r"holds an earlier import; --update keeps its splits"):
        make({"labels.csv": write_labels("csv", more)})
    said = make({"labels.csv": write_labels("csv", more)}, existing="update", rules=SplitRules(0.5, seed=3))
    after = subsets(tmp_path / "d")
    assert {name: after[name] for name in ("k1", "k2", "k3")} == {name: before[name] for name in ("k1", "k2", "k3")}
    assert {after["k4"], after["k5"]} == {"training", "validation"}
    assert (tmp_path / "d/classes.txt").read_text().split("\n") == ["pour", "stir it", "add", ""]
    assert "one new class: add" in said
    assert "one video of the earlier import taken out, as no label is of them any more: k0" in said
    assert "two new videos: 1 train, 1 validate" in said
    assert spec.read_text().endswith("# mine\n")


def test_an_update_that_forgot_the_old_labels_is_refused(make, videos, tmp_path):
    make({"labels.csv": write_labels("csv", SIX[:3])}, rules=SplitRules(0.34))
    before, new = subsets(tmp_path / "d"), {"new.csv": write_labels("csv", [labels_of(5, ("add", 3, 4))])}
    with pytest.raises(OwnDataError, match=r"3 of the 3 videos of the earlier import would be taken out"):
        make(new, existing="update")
    (tmp_path / "new.csv").write_text(new["new.csv"])
    both = [tmp_path / "d/annotations.json", tmp_path / "new.csv"]
    import_labels(both, videos, tmp_path / "d", ImportOptions(existing="update"), lambda _: None)
    assert before.items() <= subsets(tmp_path / "d").items()
    # k0.mp4 and k5.mp4 alone have one ending, but the spec that stays looks for whole names.
    assert "k5.mp4" in json.loads((tmp_path / "d/annotations.json").read_text())["database"]


def test_an_update_without_an_earlier_import_is_refused(make, tmp_path):
    with pytest.raises(OwnDataError, match="leave --update out"):
        make({"labels.csv": write_labels("csv", SIX)}, existing="update")
    make({"labels.csv": write_labels("csv", SIX)})
    (tmp_path / "d/annotations.json").write_text("{")
    with pytest.raises(OwnDataError, match="make all anew with --force"):
        make({"labels.csv": write_labels("csv", SIX)}, existing="update")
    make({"labels.csv": write_labels("csv", SIX)}, existing="replace")


# ---- what is left out, and what is for what


def test_videos_without_labels_and_labels_without_videos_are_named(make, tmp_path):
    two = {"labels.csv": write_labels("csv", SIX[:2]) + "gone,1,2,pour\ngone,2,3,pour\n"}
    with pytest.raises(OwnDataError, match="line 6: video 'gone': no file"):
        make(two)
    said = make(two, missing="leave-out")
    assert "one video left out with their labels" in said
    assert "gone (two instances)" in said
    assert "four videos of " in said
    assert "as no label is of them: k2.mov, k3.mp4" in said
    said = make(two, missing="leave-out", unlabelled="keep", existing="replace")
    assert "four videos without labels, in which nothing happens: k2.mov" in said
    assert instances(tmp_path / "d")["k5"] == []


def test_rules_say_what_videos_are_for(make, tmp_path):
    text = {"labels.csv": write_labels("csv", SIX)}
    make(text, rules=SplitRules(patterns=read_patterns(["validation=k[01].*", "test=*.mov"])))
    assert subsets(tmp_path / "d") == {
        "k0": "validation", "k1": "validation", "k2": "test", "k3": "training", "k4": "training", "k5": "training",
    }  # fmt: skip
    # What labels say stays where no rule says otherwise.
    head, *rows = write_labels("csv", SIX).splitlines()
    told = [f"{head},subset", *(f"{row},{'val' if row.startswith(('k3', 'k4')) else 'train'}" for row in rows)]
    make({"labels.csv": "\n".join(told)}, rules=SplitRules(patterns=(("training", "k3*"),)), existing="replace")
    assert [name for name, subset in subsets(tmp_path / "d").items() if subset == "validation"] == ["k4"]
    with pytest.raises(OwnDataError, match=r"--subset validation=day3/\*: no video is called so; they are k0.mp4"):
        make(text, rules=SplitRules(patterns=read_patterns(["val=day3/*"])), existing="replace")
    with pytest.raises(UserError, match="expected SUBSET=PATTERN"):
        read_patterns(["k0"])


def test_a_list_of_classes_decides_their_order_and_leaves_others_out(make, tmp_path):
    (tmp_path / "list.txt").write_text("stir it\nadd\n")
    said = make({"labels.csv": write_labels("csv", SIX)}, classes=tmp_path / "list.txt")
    assert (tmp_path / "d/classes.txt").read_text() == "stir it\nadd\n"
    assert "six instances left out, of labels that" in said
    assert "pour (6)" in said
    (tmp_path / "list.txt").write_text("Pour\n")
    with pytest.raises(OwnDataError, match="none of its classes is a label; they are pour, stir it"):
        make({"labels.csv": write_labels("csv", SIX)}, classes=tmp_path / "list.txt", existing="replace")


def test_classes_that_cannot_be_evaluated_and_labels_that_may_be_one_are_named(make):
    more = [*SIX[:4], labels_of(4, ("once", 1, 2)), labels_of(5, ("Pours", 1, 2))]
    said = make({"labels.csv": write_labels("csv", more)})
    assert "warning: two classes can't be evaluated, with one video each, which trains: Pours, once" in said
    assert "differ in case, blanks or a plural alone" in said


def test_the_command_takes_all_of_it(videos, tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in put.csv").write_text(write_labels("csv", SIX))
    done = run_command("data", "import", "in put.csv", "--videos", videos, "--output", "data/mine", "--form", "csv",
                       "--subset", "val=k0*", "--seed", 3, "--gpu-memory", "24GB")  # fmt: skip
    assert done.returncode == 0, done.stderr
    spec = yaml.safe_load((tmp_path / "data/mine/spec.yaml").read_text())
    assert spec["model"]["backbone"]["preset"] == "small"
    assert spec["memory"]["policy"] == "auto"
    head = (tmp_path / "data/mine/spec.yaml").read_text()
    assert "adatad train data/mine/spec.yaml --set name=mine-trial" in head
    assert "of 20.6 GiB usable of GPU (24 GB), by the planner's estimate" in head
    done = run_command("data", "export", "data/mine/annotations.json", "--form", "elan,csv", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert sum(1 for _ in (tmp_path / "out").iterdir()) == 7
    done = run_command("data", "export", "data/mine/annotations.json", "--form", "docx", "--output", "out2")
    assert done.returncode == 2
    assert "--form docx: expected some of" in done.stderr


def test_an_import_into_the_folder_of_its_labels_does_not_read_itself_as_labels(videos, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = [f"k{number},1,2.5,pour" for number in range(6)]
    labels.write_text("\n".join(["video,start,end,label", *rows, "k0,4,5,wrong"]))
    import_labels([tmp_path], videos, tmp_path, say=lambda _: None)
    labels.write_text("\n".join(["video,start,end,label", *rows]))
    import_labels([tmp_path], videos, tmp_path, ImportOptions(existing="update"), say=lambda _: None)
    assert instances(tmp_path)["k0"] == [(1, 2.5, "pour")]
