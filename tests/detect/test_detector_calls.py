"""A detector is called on files and frames, and returns records; bad input is refused by name."""

import csv
import itertools

import numpy as np
import pytest
import torch
from small_data_set import write_video
from streamed_models import CLASSES, detector_of, pictures

import adatad
from adatad.data.decode import VideoError
from adatad.data.frame_stream import ArraySource
from adatad.detect.detections import records, wanted
from adatad.detect.selection import Selection
from adatad.detect.video import open_file
from adatad.errors import UserError
from adatad.files import FileError

NAME = "a day, 'at' the \u00e9t\u00e9 \U0001f3ac.mp4"


@pytest.fixture(scope="module")
def detector():
    return detector_of("adapter")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / NAME
    write_video(path, [number / 8 for number in range(90)], lambda second: int(second * 37 % 200), side=32)
    return path


def test_a_file_of_any_name_gives_records_and_a_table(detector, video, tmp_path):
    found = detector(video)
    assert found == detector(str(video))
    assert {item.video for item in found} == {NAME.removesuffix(".mp4")}
    assert {item.label for item in found} <= set(CLASSES)
    assert all(0 <= item.start_seconds <= item.end_seconds <= 90 / 8 for item in found)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    found.to_csv(tmp_path / "found.csv")
    rows = list(csv.DictReader((tmp_path / "found.csv").open(encoding="utf-8", newline="")))
    assert [adatad.Detection(row["video"], row["label"], float(row["start_seconds"]), float(row["end_seconds"]),
                             float(row["score"])) for row in rows] == found  # fmt: skip
    with pytest.raises(FileError):
        found.to_csv(tmp_path)


def test_frames_and_their_file_give_the_same(detector, video):
    frames, fps = adatad.read_video(video)
    name = video.stem
    for windows in (False, True):
        found = detector(video, windows=windows)
        assert detector(frames, fps=fps, name=name, windows=windows) == found
        assert detector(torch.from_numpy(frames), fps, name=name, windows=windows) == found
    assert [{"segment": [d.start_seconds, d.end_seconds], "label": d.label, "score": d.score} for d in found] == (
        detector.detect(frames, fps)
    )


def test_what_is_wanted_is_a_part_of_all(detector, video):
    everything = detector(video)
    middle = everything[len(everything) // 2].score
    assert detector(video, threshold=middle) == [item for item in everything if item.score >= middle]
    assert detector(video, top_k=3) == everything[:3]
    assert detector(video, classes="stir") == [item for item in everything if item.label == "stir"]
    by_class = {"stir": 1.0, "pour": middle}
    strict = [item for item in everything if item.score >= by_class[item.label]]
    assert detector(video, threshold=by_class) == strict
    own = detector_of("adapter")
    own.thresholds = by_class
    assert own(video) == strict
    assert own(video, threshold=0.0) == everything


def test_a_stream_gives_what_happens_before_the_end_is_reached(detector, monkeypatch):
    frames, decoded = pictures(400), []
    real = ArraySource.chunks

    def watched(self, indices, chunk_frames):
        for chunk in real(self, indices, chunk_frames):
            decoded.append(len(chunk))
            yield chunk

    monkeypatch.setattr(ArraySource, "chunks", watched)
    found = detector.stream(frames, fps=8)
    first = next(found)
    assert first.start_seconds < 16
    # Some groups are on their way, but not all.
    assert sum(decoded) < 400
    everything = {(d.label, d.start_seconds, d.end_seconds) for d in (first, *found)}
    assert sum(decoded) == 400
    assert {(d.label, d.start_seconds, d.end_seconds) for d in detector(frames, fps=8)} <= everything


def test_bad_input_is_refused_by_name(detector, video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0" * 100)
    for arguments, options, message in [
        ((tmp_path / "none.mp4",), {}, r"none\.mp4: there is no such file; name a video"),
        ((tmp_path,), {}, f"{tmp_path.name}: is no file; name a video"),
        ((broken,), {}, r"broken\.mp4"),
        ((video, 8), {}, "a file says itself when its frames are shown"),
        ((pictures(4),), {}, "frames need fps="),
        ((pictures(4), float("nan")), {}, "fps: expected frames a second, .* got nan"),
        ((pictures(4), "8"), {}, "fps: expected frames a second, .* got '8'"),
        ((pictures(4).astype(np.float32), 8), {}, r"expected uint8 \[frames, height, width, 3\], got float32"),
        ((None, 8), {}, "expected uint8"),
        (([pictures(1)[0], pictures(1)[0][:9]], 8), {}, r"frames: can't be made one array"),
        ((pictures(4), 1e-300), {}, "fps: expected frames a second, from 1e-06 to 1e\\+06, got 1e-300"),
        ((video,), {"threshold": float("nan")}, "threshold: expected a score from 0 on, such as 0.3, got nan"),
        ((video,), {"threshold": {"pour": "high"}}, "threshold of class 'pour': expected a score .* got 'high'"),
        ((video,), {"classes": ["Pour"]}, "'Pour' is no class of this model; it knows pour, stir"),
        ((video,), {"threshold": {"Pour": 0.5}}, "'Pour' is no class of this model"),
        ((video,), {"top_k": 0}, "top_k: expected a number of detections, 1 or more, got 0"),
    ]:
        with pytest.raises(UserError, match=message):
            detector(*arguments, **options)


def test_a_rate_of_the_model_numbers_frames_by_their_times(tmp_path):
    uneven = [*(number / 8 for number in range(40)), *(5 + number / 4 for number in range(20))]
    write_video(tmp_path / "uneven.mp4", uneven, side=32)
    spec = detector_of("frozen").spec.data
    with open_file(tmp_path / "uneven.mp4", spec.model_copy(update={"fps": 4.0})) as (source, video):
        assert (source.frame_count, video.fps, video.frames) == (40, 4.0, 40)
        assert video.duration_seconds == pytest.approx(10.0)


def test_a_window_of_the_whole_video_is_the_same_streamed_or_not(video):
    detector = detector_of("adapter", window={"kind": "resize"})
    assert detector(video) == detector(video, windows=True)
    assert len(list(detector.parts(video))) == 1


def test_a_file_without_times_is_refused(detector, video, monkeypatch):
    from adatad.data.timeline import Timeline

    monkeypatch.setattr(Timeline, "has_times", property(lambda self: False))
    with pytest.raises(VideoError, match=r"tells no times of its frames, and so no frame rate; convert it: ffmpeg"):
        detector(video)


def test_rules_keep_what_they_say():
    found = [
        {"segment": [0, 1], "label": label, "score": score} for label, score in itertools.product("ab", (0.2, 0.4))
    ]
    kept = [(d.label, d.score) for d in records("v", found, Selection({"a": 0.3}))]
    assert kept == [("a", 0.4), ("b", 0.2), ("b", 0.4)]
    assert wanted("ab", None, None) == Selection({})
    assert wanted("ab", None, ("a",), {"a": 0.5}) == Selection({"a": 0.5}, ("a",))
