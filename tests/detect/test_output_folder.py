"""A list of videos worked through: results, further forms, broken videos, and what a second start finds done."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timed_video import even, write_timed

from adatad.detect.detect_list import Prepared
from adatad.detect.outcome import draw
from adatad.detect.output_folder import STALE_SECONDS, FolderPlan, plan, remove_unfinished, save
from adatad.detect.result_file import Looked, MadeBy, VideoResult, activitynet, read_result, result_path, stamp_of
from adatad.detect.run_list import lengths_seconds, work_through
from adatad.detect.selection import Selection, best_first
from adatad.detect.shares import ListShare
from adatad.detect.sources import SourceVideo, find_videos
from adatad.errors import UserError
from adatad.evaluation.score_files import evaluate_files
from adatad.files import FileError
from adatad.labels.records import Segment

MADE = MadeBy("0" * 64, "tia.safetensors", False)
CANDIDATES = (Segment("pour", 1.0, 4.0, 0.9), Segment("stir", 2.0, 5.5, 0.4), Segment("pour", 0.5, 2.0, 0.1))
HALF = Selection(0.5)


def result(video: SourceVideo, selection: Selection = HALF, made: MadeBy = MADE) -> VideoResult:
    return VideoResult(video.name, CANDIDATES, Looked(video.file, *stamp_of(video), 6.0, 25.0, 150), made, selection)


@pytest.fixture
def videos(tmp_path) -> list[SourceVideo]:
    """Two files; what they hold is never looked at."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.mp4").write_text(name)
    return list(find_videos([str(tmp_path / "in")]).videos)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


SEGMENTS = st.builds(
    lambda label, start, length, score: Segment(label, start, start + length, score),
    st.text(min_size=1, max_size=8), st.floats(0, 1e5), st.floats(0, 1e3), st.floats(0, 1),
)  # fmt: skip


@given(st.lists(SEGMENTS, max_size=8, unique=True), st.floats(0, 1), st.integers(1, 9))
def test_a_result_is_read_back_as_it_was_written(tmp_path_factory, segments, least, top_k):
    folder = tmp_path_factory.mktemp("out")
    video = SourceVideo("na\udcffme", "na\udcffme.mp4", Path("/x/na\udcffme.mp4"), 0)
    made = replace(result(video), candidates=best_first(segments), selection=Selection(least, None, top_k))
    save(folder, made, [])
    read = read_result(folder, video.name)
    assert read.candidates == made.candidates
    assert read.detections == made.detections
    assert len(read.detections) == min(top_k, sum(s.score >= least for s in segments))
    (entries,) = json.loads(result_path(folder, video.name).read_text())["results"].values()
    assert [(e["label"], *e["segment"], e["score"]) for e in entries] == [
        (s.label, s.start_seconds, s.end_seconds, s.score) for s in made.detections
    ]


def test_thresholds_by_class_classes_and_the_best_are_selected_in_this_order():
    assert Selection({"pour": 0.5}).of(CANDIDATES) == CANDIDATES[:2]
    assert Selection(0.0, ("pour",)).of(CANDIDATES) == CANDIDATES[::2]
    assert Selection({"pour": 0.95}, ("pour", "stir"), 1).of(CANDIDATES) == CANDIDATES[1:2]


def test_the_evaluator_reads_results(videos, folder):
    save(folder, result(videos[0]), [])
    truth = {"database": {"a": {"subset": "validation", "annotations": [{"segment": [1, 4], "label": "pour"}]}}}
    (folder.parent / "truth.json").write_text(json.dumps(truth))
    scored = evaluate_files(folder.parent / "truth.json", folder / "a.json", "validation", [0.5])
    assert scored.average_mAP == 1.0
    assert activitynet([result(videos[0])])["results"].keys() == {"a"}


def test_what_is_done_stays_and_another_selection_or_form_needs_no_model(videos, folder):
    save(folder, result(videos[0]), ["csv"])
    assert files(folder) == ["a.csv", "a.json"]
    found = plan(videos, folder, MADE, HALF, ["csv"])
    assert ([v.name for v in found.todo], len(found.done), found.renew) == (["b"], 1, [])
    for selection, formats in ((Selection(0.2), []), (HALF, ["srt"])):
        found = plan(videos, folder, MADE, selection, formats)
        assert ([v.name for v in found.todo], len(found.renew)) == (["b"], 1)
    save(folder, replace(found.renew[0], selection=Selection(0.2)), ["srt"])
    assert files(folder) == ["a.csv", "a.json", "a.srt"]
    assert "stir" in (folder / "a.csv").read_text()
    (folder / "a.csv").unlink()
    assert len(plan(videos, folder, MADE, Selection(0.2), []).renew) == 1, "a form that is gone is written again"
    assert len(plan(videos, folder, MADE, Selection(0.2), [], force=True).todo) == 2


def test_a_video_that_has_changed_is_done_anew_and_one_that_was_moved_is_not(videos, folder):
    save(folder, result(videos[0]), [])
    videos[0].path.write_text("longer")
    found = plan(videos[:1], folder, MADE, HALF, [])
    assert len(found.todo) == 1
    assert "a.mp4: has changed since its result was written" in found.notes[0]
    save(folder, result(videos[0]), [])
    moved = videos[0].path.with_name("moved")
    moved.mkdir()
    videos[0].path.rename(moved / "a.mp4")
    assert len(plan(find_videos([str(moved)]).videos, folder, MADE, HALF, []).done) == 1
    (again,) = plan(find_videos([str(moved)]).videos, folder, MADE, Selection(0.0), []).renew
    assert again.video.file == str(moved / "a.mp4")
    assert len(plan(videos[:1], folder, MADE, HALF, []).done) == 1, "a video that is gone needn't be done again"


def test_results_of_another_model_way_or_video_are_refused_until_forced(videos, folder):
    for video in videos:
        save(folder, result(video, made=MADE._replace(fingerprint="1" * 64)), [])
    with pytest.raises(UserError, match=r"a\.json: was made by another model, tia\.safetensors \(2 such results\)"):
        plan(videos, folder, MADE, HALF, [])
    for video in videos:
        save(folder, result(video), [])
    with pytest.raises(UserError, match="was made without --windows"):
        plan(videos, folder, MADE._replace(windows=True), HALF, [])
    other = folder / "other" / "a.mp4"
    other.parent.mkdir()
    other.write_text("another")
    with pytest.raises(UserError, match=r"a\.json: is of another video, .*in/a\.mp4; name another folder"):
        plan(find_videos([str(other)]).videos, folder, MADE, HALF, [])
    assert len(plan(find_videos([str(other)]).videos, folder, MADE, HALF, [], force=True).todo) == 1


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"results": {"a": []}}', "subtitles", '{"results": 1, "detect": 2}']
)
def test_a_file_of_somebody_else_is_never_replaced(videos, folder, content):
    (folder / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json.*name another folder"):
        plan(videos, folder, MADE, HALF, [], force=True)
    (folder / "a.json").unlink()
    (folder / "b.srt").write_text(content)
    with pytest.raises(UserError, match=r"b\.srt: wasn't written by adatad detect, and --formats srt would replace it"):
        plan(videos, folder, MADE, HALF, ["srt"], force=True)
    assert files(folder) == ["b.srt"]


def test_a_kill_between_the_files_of_a_video_leaves_none_that_is_taken_for_done(videos, folder, monkeypatch):
    save(folder, result(videos[0]), ["csv"])

    def killed(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr("adatad.detect.output_folder.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, result(videos[0], Selection(0.0)), ["srt"])
    assert files(folder) == ["a.json"], "the old table isn't left for one of the new detections"
    found = plan(videos[:1], folder, MADE, Selection(0.0), ["srt"])
    monkeypatch.undo()
    save(folder, found.renew[0], ["srt"])
    assert files(folder) == ["a.csv", "a.json", "a.srt"]


def test_files_that_a_killed_process_left_half_written_are_removed(videos, folder):
    names = [".a.json.77.unfinished.json", ".a.csv.8.unfinished.csv", ".c.json.77.unfinished.json", "a.json.unfinished"]
    for name in names:
        (folder / name).touch()
    young = (folder / names[0]).stat().st_mtime
    remove_unfinished(folder, videos, young + STALE_SECONDS / 2)
    assert len(files(folder)) == 4, "they may be those of a process that is at work"
    remove_unfinished(folder, videos, young + 2 * STALE_SECONDS)
    assert files(folder) == sorted(names[2:])


def test_a_broken_video_is_reported_and_the_others_go_on(videos, capsys):
    def detect(video, report):
        report(3.0)
        if video.name == "a":
            raise broken
        return result(video)

    for broken, text in (
        (UserError(f"{videos[0].path}: holds no video stream, only: audio"), "holds no video stream, only: audio"),
        (MemoryError(), "MemoryError: MemoryError"),
        (ZeroDivisionError("in a\nlibrary"), "ZeroDivisionError: in a"),
    ):
        kept = []
        failures = work_through(videos, detect, kept.append)
        assert [found.name for found in kept] == ["b"]
        assert [tuple(failure) for failure in failures] == [(videos[0].file, text)]
        said = capsys.readouterr().err
        assert f"failed: {videos[0].file}: {text}" in said
        assert ("Traceback" in said) == isinstance(broken, ZeroDivisionError), "a defect is said with its place"


def test_a_disk_that_is_full_ends_the_work(videos):
    def keep(result):
        raise FileError("out/a.json: can't be written: No space left on device")

    with pytest.raises(FileError, match="No space left"):
        work_through(videos, lambda video, report: result(video), keep)


def test_lengths_come_from_headers_and_what_has_none_counts_as_nothing(videos, tmp_path):
    write_timed(tmp_path / "real.mp4", even(10, 2))
    os.mkfifo(tmp_path / "pipe.mp4")
    found = find_videos([str(tmp_path / "real.mp4"), str(tmp_path / "pipe.mp4")]).videos
    assert lengths_seconds([*videos, *found]) == pytest.approx([0, 0, 0, 2.0], abs=0.11)


def test_scores_that_a_classifier_raised_above_one_are_drawn(tmp_path):
    high = Segment("pour", 0.0, 1.0, 1.7)
    looked = Looked("v.mp4", 1, 1, 2.0, None, None)
    found = VideoResult("v", (high,), looked, MadeBy("f", "m", False), Selection(1.0))
    video = SourceVideo("v", "v.mp4", tmp_path / "v.mp4", 1)
    model = SimpleNamespace(name="m", labels=("pour",), fingerprint="f")
    prepared = Prepared(model, Selection(1.0), (video,), ListShare(0, 1), FolderPlan(), ())
    assert "1.0]" in draw(prepared, [found], tmp_path, None).read_text()
