"""Checks of a data set: every kind of problem is found in its video alone, and a second pass reads nothing again."""

import json
import os
import shutil
from pathlib import Path

import pytest

from adatad.data.annotation_file import read_names
from adatad.data.prepare import check as check_module
from adatad.data.prepare.check import check_data_set, read_journal, write_block_list
from adatad.errors import UserError
from adatad.report.data_check import write_data_check
from adatad.spec import load
from adatad.spec.data_sections import DataSpec


@pytest.fixture
def broken(tiny_data, tiny_spec, tmp_path):
    """A copy of the data set in which five of eight videos have a problem each; the spec, and the problems by video."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_data, folder)
    file = folder / "annotations.json"
    content = json.loads(file.read_text())
    names = list(content["database"])
    missing, cut, long, late, other = names[:5]
    (folder / "videos" / f"{missing}.mp4").unlink()
    video = folder / "videos" / f"{cut}.mp4"
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    entries = content["database"]
    for key in ("duration", "frame"):
        if key in entries[long]:
            entries[long][key] *= 2
    entries[late]["annotations"].append({"segment": [1.0, 999.0], "label": entries[late]["annotations"][0]["label"]})
    entries[other]["annotations"].append({"segment": [0.0, 1.0], "label": "unheard of"})
    file.write_text(json.dumps(content))
    labels = sorted({item["label"] for e in entries.values() for item in e["annotations"]} - {"unheard of"})
    spec = load(tiny_spec, [f"data.annotations={file}", f"data.videos={folder / 'videos'}", f"data.classes={labels}"])
    kinds = {missing: "missing", cut: "undecodable", long: "wrong length", late: "label out of range"}
    return spec, kinds | {other: "unknown label"}


def test_each_problem_is_found_in_its_video_alone(broken, tmp_path):
    spec, kinds = broken
    seen = []
    checked = check_data_set(spec, tmp_path / "check", 2, True, lambda done, of: seen.append((done, of)))
    assert {found.video: {kind for kind, _ in found.problems} for found in checked if found.problems} == {
        video: {kind} for video, kind in kinds.items()
    }
    assert seen == [(done, 8) for done in range(9)]
    assert write_block_list(checked, tmp_path / "blocked.txt") == 3
    assert set((tmp_path / "blocked.txt").read_text().split()) == set(list(kinds)[:3])
    write_data_check(checked, "a <b>", tmp_path / "summary.html")
    page = (tmp_path / "summary.html").read_text()
    assert "a &lt;b&gt;" in page
    assert all(video in page and kind in page for video, kind in kinds.items())
    blocked = load_blocked(spec, tmp_path / "blocked.txt")
    again = check_data_set(blocked, tmp_path / "other", 1, False, lambda done, of: None)
    assert {kind for found in again for kind, _ in found.problems} == {"label out of range", "unknown label"}


def test_a_check_without_problems_says_so_instead_of_showing_empty_tables(tmp_path):
    report = check_module.CheckReport("a", [], 24, 3.0)
    write_data_check([report], "clean", tmp_path / "summary.html")
    page = (tmp_path / "summary.html").read_text()
    assert "No problem found." in page
    assert "<table" not in page
    assert "prefers-color-scheme: dark" in page


def load_blocked(spec, path):
    return spec.model_copy(update={"data": spec.data.model_copy(update={"blocked_videos": str(path)})})


def test_a_second_pass_reads_only_what_is_new(broken, tmp_path, monkeypatch):
    spec, _ = broken
    folder, nothing = tmp_path / "check", lambda done, of: None
    first = check_data_set(spec, folder, 1, False, nothing)
    journal = folder / check_module.JOURNAL
    lines = journal.read_text().strip().splitlines()
    # As after an interruption: two videos aren't there yet, a third was cut off.
    journal.write_text("\n".join([*lines[:-3], lines[-3][:20]]))
    counts = []
    assert check_data_set(spec, folder, 1, False, lambda done, of: counts.append(done)) == first
    assert counts == [5, 6, 7, 8]
    assert len(read_journal(journal)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": "long"}, 'expected "duration" in seconds, more than 0'),
        ({"annotations": [{"segment": [1], "label": "run"}]}, "both in seconds"),
        ({"annotations": [{"segment": [0, 1], "label": ["run"]}]}, "labels are names or whole numbers, got ['run']"),
        ({"annotations": {"run": [0, 1]}}, "expected a list of annotations, got {'run': [0, 1]}"),
    ],
)
def test_annotations_that_cannot_be_read_are_a_problem_of_their_video(change, message, tiny_data):
    entry = {"duration": 1.0, "fps": 8, "annotations": [], **change}
    data = DataSpec(annotations="a.json", videos=str(tiny_data / "videos"))
    found = check_module.check_video(data, "demo_training_000", entry, False, frozenset({"run"}))
    (detail,) = [detail for kind, detail in found.problems if kind == "unreadable annotations"]
    assert message in detail
    assert found.is_blocked


def test_ambiguous_is_no_unknown_label_and_other_classes_are_looked_at_again(tiny_spec, tmp_path):
    spec, nothing = load(tiny_spec), lambda done, of: None
    content = json.loads(Path(spec.data.annotations).read_text())
    first = next(iter(content["database"].values()))
    first["annotations"].append({"segment": [0.0, 0.5], "label": "Ambiguous"})
    (tmp_path / "a.json").write_text(json.dumps(content))
    labels = sorted({a["label"] for e in content["database"].values() for a in e["annotations"]} - {"Ambiguous"})

    def problems(classes):
        changed = load(tiny_spec, [f"data.annotations={tmp_path / 'a.json'}", f"data.classes={classes}"])
        return {kind for found in check_data_set(changed, tmp_path / "check", 1, False, nothing)
                for kind, _ in found.problems}  # fmt: skip

    assert problems(labels) == set()
    assert problems(labels[:-1]) == {"unknown label"}


def end_at_once(*_):
    os._exit(9)


def test_a_process_that_is_ended_is_said_and_what_is_done_stays(broken, tmp_path, monkeypatch):
    spec, _ = broken
    folder, nothing = tmp_path / "check", lambda done, of: None
    first = check_data_set(spec, folder, 1, False, nothing)
    journal = folder / check_module.JOURNAL
    journal.write_text("\n".join(journal.read_text().strip().splitlines()[:-2]))
    with monkeypatch.context() as patched:
        patched.setattr(check_module, "partial", lambda function, *_, **__: end_at_once)
        with pytest.raises(UserError, match=r"6 of 8 videos are done\. Start it again"):
            check_data_set(spec, folder, 1, False, nothing)
    assert check_data_set(spec, folder, 1, False, nothing) == first


@pytest.mark.parametrize("name", ["nul\0", "long" * 100, "half \udcff", "two\nlines", "../up", "\x1b[31mred"])
def test_a_name_that_no_file_has_is_a_problem_of_its_video(name, tiny_data, tmp_path):
    data = DataSpec(annotations="a.json", videos=str(tiny_data / "videos"))
    found = check_module.check_video(data, name, {"duration": 1.0, "annotations": []}, False, frozenset())
    assert "missing" in [kind for kind, _ in found.problems]
    assert all(detail.isprintable() for _, detail in found.problems)
    assert write_block_list([found], tmp_path / "blocked.txt") == 1
    if "\udcff" not in name:
        assert read_names(tmp_path / "blocked.txt") == {name}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "there.txt"], "there.txt: is no folder; expected one"),
        (["--output", "check", "--workers", 0], "expected a whole number from 1, got '0'"),
    ],
)
def test_where_nothing_can_be_written_nothing_is_read(
    arguments, message, tiny_spec, run_command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").write_text("mine")
    done = run_command("data check", tiny_spec, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert (tmp_path / "there.txt").read_text() == "mine"


def test_the_command(tiny_spec, run_command, tmp_path):
    done = run_command("data check", tiny_spec, "--output", tmp_path / "check", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "8 videos, 0 with problems, 0 blocked" in done.stdout
    assert (tmp_path / "check/blocked.txt").read_text() == ""


def test_what_was_blocked_before_stays_on_the_list(broken, tiny_spec, run_command, tmp_path):
    spec, kinds = broken
    settings = [f"--set=data.{key}={getattr(spec.data, key)}" for key in ("annotations", "videos")]
    settings += [f"--set=data.classes={list(spec.data.classes)}", "--output", tmp_path / "check", "--workers", 1]
    listed = tmp_path / "check/blocked.txt"
    listed.parent.mkdir()
    missing, cut, long = list(kinds)[:3]
    listed.write_text(f"{cut}\n")
    done = run_command("data check", tiny_spec, *settings, f"--set=data.blocked_videos={listed}")
    assert read_names(listed) == {missing, cut, long}
    assert "1 blocked video not checked, kept on the list" in done.stdout
    assert "7 videos" in done.stdout
    assert "3 blocked: " in done.stdout
