"""Labels in seconds find what is shown then, in files of any rate; where file and annotation differ, it is said."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from timed_video import DARK, PAUSES, SLOWS_DOWN, bright_from, even, write_timed

from adatad.data.annotations import read_annotations
from adatad.data.dataset import TrainingWindows, ValidationWindows, check_times
from adatad.data.decode import VideoError, open_video
from adatad.data.loader import Loader
from adatad.data.prepare.check import check_video
from adatad.data.prepare.own_data import import_labels
from adatad.data.prepare.transcode import transcode
from adatad.data.time_check import MAX_LOGGED_VIDEOS, TimeLog, TimeNote
from adatad.data.video_index import Heartbeat, read_index
from adatad.data.windows import WindowError, evaluation_windows
from adatad.spec import load
from adatad.spec.data_sections import DataSpec, WindowSpec

LABEL = (5.4, 6.8)
FILES = {
    "even.mp4": (even(25, 8), {}, ()),
    "broadcast.mp4": (even(30000 / 1001, 8), {}, ()),
    "slows_down.mp4": (SLOWS_DOWN, {}, ("variable rate",)),
    "pauses.mp4": (PAUSES, {}, ("variable rate",)),
    "late.mp4": (even(25, 5, 3.0), {}, ("starts late",)),
    "late_with_sound.mp4": (even(25, 5, 3.0), {"with_sound": True}, ("starts late",)),
    "late.mkv": (even(25, 5, 3.0), {"base": Fraction(1, 1000)}, ("starts late",)),
    "browser.webm": (
        np.round(np.arange(240) / 30 + np.random.default_rng(0).uniform(-0.012, 0.012, 240).clip(0), 3),
        {"codec": "libvpx", "base": Fraction(1, 1000)},
        (),
    ),
    "parts.mp4": (even(25, 8), {"movflags": "frag_keyframe+empty_moov"}, ()),
    "slows_down.mkv": (SLOWS_DOWN, {"base": Fraction(1, 1000)}, ("variable rate",)),
    "slows_down.ts": (SLOWS_DOWN, {}, ("variable rate",)),
    "late_with_sound.ts": (even(25, 5, 3.0), {"with_sound": True}, ("starts late",)),
    "wraps.ts": (even(25, 8), {"output_ts_offset": "95440"}, ()),
    "plain.avi": (even(25, 8), {"codec": "mpeg4", "base": Fraction(1, 25)}, ()),
    "reordered.avi": (even(25, 8), {"base": Fraction(1, 25)}, ()),
}
"""Files of 8 s by name: times of the frames, how they are written, and what there is to say of them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("timed")
    for name, (times, options, _) in FILES.items():
        write_timed(path / name, times, bright_from(*LABEL), **options)
    return path


def spec_of(folder, name, window=None, segment=LABEL, **entry) -> DataSpec:
    """One video, which is trained on and evaluated: the file of that name in the folder of files."""
    stem, suffix = name.rsplit(".", 1)
    item = {"segment": list(segment), "label": "bright"}
    path = folder / f"{abs(hash((name, str(entry), segment)))}.json"
    facts = {"subset": "training", "duration": 8.0, **entry, "annotations": [item]}
    path.write_text(json.dumps({"database": {stem: facts}}))
    window = window or WindowSpec(size_grid=256, stride_frames=1)
    return DataSpec(
        annotations=str(path), videos=str(folder), pattern=f"{{name}}.{suffix}", window=window, size_pixels=32,
        train_subset="training", validation_subset="training", decoder="pyav",
    )  # fmt: skip


def bright_share(sample) -> tuple[float, float]:
    """Return the share of bright positions inside the label and outside of it; half a position at its ends
    counts for neither."""
    frames = sample.frames[:, :, 16, 16].float().mean(0).numpy()
    per_position = len(frames) // len(sample.mask)
    is_bright = frames.reshape(len(sample.mask), per_position).mean(1) > 200
    (start, end), valid = sample.segments_grid[0].tolist(), int(sample.mask.sum())
    positions = np.arange(len(sample.mask))
    inside = (positions >= start + 1) & (positions <= end - 1)
    outside = ((positions < start - 1) | (positions > end + 1)) & (positions < valid)
    return is_bright[inside].mean(), is_bright[outside].mean()


@pytest.mark.parametrize("kind", ["sliding", "two frames a position", "resize"])
@pytest.mark.parametrize("name", FILES)
def test_labelled_frames_are_those_shown_then(folder, name, kind):
    windows = {
        "sliding": WindowSpec(size_grid=256, stride_frames=1),
        "two frames a position": WindowSpec(size_grid=128, stride_frames=2, frames_per_position=2),
        "resize": WindowSpec(kind="resize", size_grid=64),
    }
    spec = spec_of(folder, name, windows[kind], fps=20)
    sample = TrainingWindows(read_annotations(spec).train, spec, seed=0)[0, 0]
    assert bright_share(sample) == (1.0, 0.0)


@pytest.mark.parametrize("name", FILES)
def test_what_is_to_say_of_a_file_is_said(folder, name):
    spec = spec_of(folder, name, fps=25 if "broadcast" not in name and "browser" not in name else 29.97)
    stem = name.rsplit(".", 1)[0]
    entry = json.loads(Path(spec.annotations).read_text())["database"][stem]
    kinds = {kind for kind, _ in check_video(spec, stem, entry, False, frozenset({"bright"})).problems}
    expected = set(FILES[name][2])
    # What changes has no rate that could be 25.
    assert expected <= kinds <= expected | ({"other rate"} if "slows_down" in name else set())


@pytest.mark.parametrize(
    ("entry", "segment", "kinds"),
    [
        ({"fps": 20}, LABEL, ["other rate"]),
        ({"frame": 400}, LABEL, ["other rate"]),
        ({"frame": 200, "duration": 7.9}, LABEL, ["wrong length"]),
        ({"frame": 200, "duration": 7.97}, LABEL, []),
        ({"frame": 400, "duration": 16}, LABEL, ["wrong length"]),
        ({"frame": 200}, (-1, 2), ["label out of range"]),
        ({"frame": 200}, (-3, -1), ["label out of range"]),
        ({"frame": 200}, (7, 8.2), ["label out of range"]),
        ({"frame": 200}, (9, 10), ["label out of range"]),
        ({"frame": 200}, (3, 3), ["instance left out"]),
        ({"frame": 200}, (5, 3), ["instance left out"]),
        ({"frame": 200}, (float("nan"), 3), ["instance left out"]),
        ({"frame": 200, "duration": float("inf")}, LABEL, ["unreadable annotations"]),
        ({"frame": float("nan")}, LABEL, ["unreadable annotations"]),
        ({"fps": float("inf")}, LABEL, ["unreadable annotations"]),
        ({"frame": 10**400}, LABEL, ["unreadable annotations"]),
        ({"frame": 200}, "12", ["unreadable annotations"]),
        ({"frame": -4}, LABEL, ["unreadable annotations"]),
        ({"duration": True, "frame": 200}, LABEL, ["unreadable annotations"]),
    ],
)
def test_annotations_of_another_time_are_named(folder, entry, segment, kinds):
    spec = spec_of(folder, "even.mp4")
    segment = list(segment) if isinstance(segment, tuple) else segment
    entry = {"duration": 8.0, **entry, "annotations": [{"segment": segment, "label": "bright"}]}
    found = check_video(spec, "even", entry, False, frozenset({"bright"}))
    assert [kind for kind, _ in found.problems] == kinds
    assert all("\n" not in detail for _, detail in found.problems)


def test_a_label_before_the_first_picture_is_named(folder):
    spec = spec_of(folder, "late.mp4")
    entry = {"duration": 8.0, "fps": 25, "annotations": [{"segment": [1, 2.5], "label": "bright"}]}
    problems = dict(check_video(spec, "late", entry, False, frozenset({"bright"})).problems)
    assert "lies wholly before the first picture, at 3.00 s" in problems["label out of range"]


def test_counting_puts_labels_where_it_always_did(folder):
    spec = spec_of(folder, "slows_down.mp4", fps=20).model_copy(update={"time": "count"})
    video = read_annotations(spec).train[0]
    window = TrainingWindows((video,), spec, seed=0)[0, 0].window
    assert window.indices[:150].tolist() == [*range(140), *[139] * 10]
    found = check_video(spec, "slows_down", {"duration": 8.0, "fps": 20}, False, frozenset())
    assert {kind for kind, _ in found.problems} == {"variable rate", "other rate"}
    assert found.is_blocked
    assert "data.time: count" in found.problems[0][1]


def test_the_reference_counts_unless_a_spec_says_otherwise(tiny_spec):
    assert load(tiny_spec).data.time == "presentation"
    assert load(tiny_spec, ["compat=reference"]).data.time == "count"
    assert load(tiny_spec, ["compat=reference", "data.time=presentation"]).data.time == "presentation"
    assert load(tiny_spec, ["data.time=count"]).data.time == "count"


@pytest.mark.parametrize(
    ("window", "valid"),
    [(WindowSpec(size_grid=256, stride_frames=1), 200), (WindowSpec(kind="resize", size_grid=64), 51)],
    ids=["sliding", "resize"],
)
def test_positions_after_the_end_of_a_file_are_padding(folder, window, valid):
    spec = spec_of(folder, "even.mp4", window, duration=10.0, fps=25)
    sample = TrainingWindows(read_annotations(spec).train, spec, seed=0)[0, 0]
    assert sample.mask.tolist() == [True] * valid + [False] * (window.size_grid - valid)
    assert bright_share(sample) == (1.0, 0.0)


def test_a_table_of_a_changing_rate_becomes_annotations_that_hold(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "v").mkdir(exist_ok=True)
        (tmp_path / "v" / f"{name}.mp4").symlink_to(folder / "slows_down.mp4")
    (tmp_path / "labels.csv").write_text("video,start,end,label\na,5.4,6.8,bright\nb,5.4,6.8,bright\n")
    path = import_labels([tmp_path / "labels.csv"], tmp_path / "v", tmp_path / "d")
    spec = load(path, ["model.backbone.weights=random"]).data
    video = read_annotations(spec).train[0]
    start, end = video.segments_frames[0].astype(int)
    with open_video(tmp_path / "v/a.mp4") as reader:
        shades = reader.frames(np.arange(reader.frame_count)).mean((1, 2, 3))
    assert (shades[start + 1 : end] > 200).all()
    assert (np.delete(shades, np.arange(start, end + 1)) < 200).all()


@pytest.mark.parametrize("name", ["slows_down.mp4", "pauses.mp4", "late_with_sound.mp4", "slows_down.ts", "even.mp4"])
def test_copies_show_each_frame_at_its_time(folder, name, tmp_path):
    copy = transcode(folder / name, tmp_path, 32, 8)
    before, after = (read_index(path, Heartbeat()).timeline for path in (folder / name, copy))
    np.testing.assert_allclose(after.seconds, before.seconds, atol=1e-4)
    assert after.duration_seconds == pytest.approx(before.duration_seconds, abs=1e-3)
    resampled = read_index(transcode(folder / name, tmp_path / "..", 32, 8, fps=10), Heartbeat()).timeline
    assert resampled.first_seconds == 0
    assert resampled.duration_seconds == pytest.approx(before.duration_seconds, abs=0.06)
    with open_video(tmp_path / ".." / copy.name, fps=10) as reader:
        shades = reader.frames(np.arange(reader.frame_count)).mean((1, 2, 3))
    assert (shades[55:67] > 200).all()
    assert (shades[:53] < 200).all()


def test_a_copy_at_other_times_is_refused_and_removed(folder, tmp_path, monkeypatch):
    from adatad.data.prepare import transcode as module

    real = module._encode

    def late(container, reader, shown, *rest):
        real(container, reader, shown._replace(seconds=shown.seconds * 1.5), *rest)

    monkeypatch.setattr(module, "_encode", late)
    with pytest.raises(module.VideoError, match=r"its copy shows frames up to .* off their times; it was removed"):
        transcode(folder / "slows_down.mp4", tmp_path, 32, 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_hears_of_each_video_once(folder, workers):
    spec = spec_of(folder, "late.mp4", fps=25)
    annotations = read_annotations(spec)
    training = TrainingWindows(annotations.train, spec, seed=0)
    places = [place for video in annotations.validation for place in evaluation_windows(video, spec.window)]
    lines: list[str] = []
    log = TimeLog(lines.append)
    for dataset, asked in ((training, [[(0, 0)], [(1, 0)]]), (ValidationWindows(places, spec), [[0], [0]])):
        for batch in Loader(dataset, asked, workers):
            log.add(batch.times)
    log.share(lambda mine: [mine])
    assert lines == [
        "video late: starts late: its first picture comes at 3.00 s; labels stay at their seconds "
        "(data.time: presentation)"
    ]


def test_many_notes_are_counted_and_other_ranks_are_heard():
    lines: list[str] = []
    log = TimeLog(lines.append)
    log.add(TimeNote(f"v{number}", "starts late") for number in range(MAX_LOGGED_VIDEOS - 1))
    log.share(lambda mine: [mine, [TimeNote("v0", "starts late"), *(TimeNote(f"w{n}", "is short") for n in range(4))]])
    assert lines[-2:] == [
        "video w0: is short",
        "3 more notes on times of videos; adatad data check names every such video",
    ]
    log.share(lambda mine: [mine])
    assert len(lines) == MAX_LOGGED_VIDEOS + 1


@pytest.mark.parametrize(
    ("time", "entry", "message"),
    [
        ("presentation", {"frame": 400}, "other rate: has 200 frames"),
        ("count", {"frame": 400}, "labels lie on other frames than they mean under data.time: count"),
        ("presentation", {"frame": 300, "duration": 12.0}, r"wrong length: lasts [78]\.\d* s, annotations say 12.00 s"),
        ("presentation", {"frame": 200}, None),
    ],
)
def test_a_data_set_of_another_time_is_told_before_the_first_step(folder, time, entry, message):
    spec = spec_of(folder, "even.mp4", **entry).model_copy(update={"time": time})
    annotations = read_annotations(spec)
    lines = check_times(spec, annotations.train, annotations.validation)
    assert len(lines) == (message is not None)
    if message:
        assert lines[0].startswith("2 of 2 videos that were looked at differ in time from their annotations: even: ")
        assert re.search(message, lines[0])


@pytest.mark.parametrize(
    ("time", "entry"), [("count", {"frame": 400}), ("presentation", {"frame": 600, "duration": 24.0})]
)
def test_an_evaluation_window_that_would_be_empty_is_refused_before_the_first_step(folder, time, entry):
    window = WindowSpec(size_grid=64, stride_frames=1)
    spec = spec_of(folder, "even.mp4", window, **entry).model_copy(update={"time": time})
    validation = read_annotations(spec).validation
    with pytest.raises(
        WindowError, match=r"video 'even' has 200 frames, the annotation says \d00: its window from frame"
    ):
        check_times(spec, (), validation)
    assert check_times(spec.model_copy(update={"on_error": "skip"}), (), validation)


def test_a_video_that_another_one_replaces_is_named(tmp_path, caplog):
    path = write_timed(tmp_path / "v.mp4", even(25, 2))
    spec = spec_of(tmp_path, "v.mp4", segment=(0.2, 1.5), duration=2.0, fps=25)
    training = TrainingWindows(read_annotations(spec).train, spec, seed=0)
    assert not training[0, 0].times
    write_timed(path, even(25, 2), lambda second: DARK + 60)
    assert ["has changed since" in note.line for note in training[1, 0].times] == [True]
    assert not training[2, 0].times
    with open_video(path) as reader:
        reader.frames(np.array([3]))
        write_timed(path, even(25, 1))
    assert f"{path}: has changed while it was read" in caplog.text


@pytest.mark.parametrize("fps", [1e12, 1e300])
def test_a_rate_that_can_not_be_meant_is_an_error_and_no_endless_list(folder, fps):
    with pytest.raises(VideoError, match="its annotation means 1e"), open_video(folder / "slows_down.mp4", fps=fps):
        pass
    assert read_index(folder / "even.mp4", Heartbeat()).timeline.count_at(float("inf")) == 2**62


def test_a_file_without_times_is_counted_and_says_so(tmp_path):
    path = write_timed(tmp_path / "raw.h264", even(25, 2))
    timeline = read_index(path, Heartbeat()).timeline
    assert (timeline.frame_count, timeline.has_times) == (50, False)
    spec = spec_of(tmp_path, "raw.h264", segment=(0.2, 1.5), duration=2.0, fps=25)
    (note,) = TrainingWindows(read_annotations(spec).train, spec, seed=0)[0, 0].times
    assert "no times: it tells no times of its frames; its frames are counted; transcode it" in note.line
