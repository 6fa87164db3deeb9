"""Frames by number from files made here, through every library that is there; what fails, hangs or isn't a video."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import sys
import threading
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from av.stream import Disposition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adatad.data import decode, video_index
from adatad.data.decode import VideoError, VideoReader, open_video
from adatad.data.readers import IndexMismatchError
from adatad.data.readers.pyav import TAIL_FRAMES, PyavFrames
from adatad.data.video_index import Heartbeat, read_index

FRAMES = 40
LEVELS = 20 + np.arange(FRAMES) * 37 % 200
"""Grey level that each frame is drawn in: neighbours differ by 37 or more."""
LONG_FRAMES = 240
WIDTH, HEIGHT = 64, 48


def library(name: str) -> pytest.param:
    missing = decode.missing_library(name)
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"{name}: {missing}"))


DECODERS = [library(name) for name in ("decord", "pyav", "torchcodec")]


@pytest.fixture(autouse=True)
def _nothing_logged_yet(monkeypatch):
    monkeypatch.setattr(decode, "_logged", set())


def write_levels(
    path: Path,
    frames: int = FRAMES,
    x264: str = "bframes=3:keyint=12",
    rotation: int = 0,
    width: int = WIDTH,
    **options: str,
) -> Path:
    """A left half in the frame's level, a right half in pure red; with B-frames, which are stored out of order."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10", "x264-params": x264})
        stream.width, stream.height, stream.pix_fmt = width, HEIGHT, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            image = np.full((HEIGHT, width, 3), LEVELS[number % FRAMES], np.uint8)
            image[:, width // 2 :] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_levels(tmp_path_factory.mktemp("decode") / "levels.mp4")


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("long")
    options = {
        "short GOP": "bframes=3:keyint=12:scenecut=0",
        "long GOP": "bframes=3:keyint=80:scenecut=0",
        "one key frame": "bframes=3:keyint=999:scenecut=0",
        "open GOP": "bframes=3:keyint=30:scenecut=0:open-gop=1",
    }
    return {
        name: write_levels(folder / f"{name}.{end}", LONG_FRAMES, x264)
        for (name, x264), end in zip(options.items(), ("mp4", "mkv", "mp4", "mp4"), strict=True)
    }


def levels(images: np.ndarray) -> np.ndarray:
    return images[:, :, :20].mean((1, 2, 3))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "indices",
    [range(FRAMES), [0], [FRAMES - 1], [7, 3, 3, 39, 0], range(0, FRAMES, 5), [5] * 3, [*range(30, 40), *[39] * 20]],
    ids=["all", "first", "last", "any order", "every fifth", "repeats", "padded"],
)
def test_frames_come_as_asked_for(video, decoder, indices):
    with open_video(video, decoder) as reader:
        images = reader.frames(np.array(indices))
        assert reader.backend == decoder
    assert images.shape == (len(indices), HEIGHT, WIDTH, 3)
    assert images.dtype == np.uint8
    np.testing.assert_allclose(levels(images), LEVELS[list(indices)], atol=3)
    np.testing.assert_allclose(images[:, :, WIDTH // 2 + 4 :].mean((0, 1, 2)), (254, 0, 0), atol=4)


@pytest.mark.parametrize("width", [16, 34, 48, 50, 98, 130])
def test_frames_that_decord_can_not_hold_are_right_too(tmp_path, width):
    with open_video(write_levels(tmp_path / "narrow.mp4", width=width), "decord") as reader:
        images = reader.frames(np.arange(FRAMES))
    assert images.shape == (FRAMES, HEIGHT, width, 3)
    np.testing.assert_allclose(images[:, :, : width // 2 - 3].mean((1, 2, 3)), LEVELS, atol=4)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_reader_can_be_asked_again(video, decoder):
    with open_video(video, decoder) as reader:
        later, earlier = (reader.frames(np.array([number])) for number in (30, 2))
    np.testing.assert_allclose([*levels(later), *levels(earlier)], LEVELS[[30, 2]], atol=3)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["short GOP", "long GOP", "one key frame", "open GOP"])
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_access_gives_what_reading_in_order_gives(long_videos, decoder, kind, data):
    indices = np.array(data.draw(st.lists(st.integers(0, LONG_FRAMES - 1), min_size=1, max_size=6)))
    chunk = data.draw(st.integers(1, 4))
    with open_video(long_videos[kind], decoder) as reader:
        assert reader.frame_count == LONG_FRAMES
        chunks = list(reader.chunks(indices, chunk))
        assert reader.backend == ("pyav" if decoder == "decord" and kind == "open GOP" else decoder)
    assert [len(part) for part in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    np.testing.assert_array_equal(np.concatenate(chunks), in_order(long_videos[kind])[indices])


KINDS = {
    "open.mp4": ("libx265", {"x265-params": "keyint=30:log-level=none"}, "pyav"),
    "closed.mp4": ("libx265", {"x265-params": "keyint=30:open-gop=0:log-level=none"}, "decord"),
    "parts.mp4": ("libx264", {"g": "12"}, "decord"),
    "plain.avi": ("mpeg4", {"g": "12"}, "decord"),
    "reordered.avi": ("mpeg4", {"bf": "2", "g": "12"}, "pyav_sequential"),
    "vp9.webm": ("libvpx-vp9", {}, "pyav"),
    "unseen.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}, "pyav_sequential"),
    "fields.mp4": ("libx264", {"x264-params": "tff=1:keyint=12"}, "pyav_sequential"),
}
"""Files by codec and options, and how decord's user gets them."""


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(tmp_path, decoder, name):
    codec, options, way = KINDS[name]
    movflags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if name == "parts.mp4" else {}
    with av.open(str(tmp_path / name), "w", options=movflags) as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(80):
            image = np.full((HEIGHT, WIDTH, 3), LEVELS[number % FRAMES], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    indices = np.array([70, 3, 44, 45, 79, 0, 12])
    with open_video(tmp_path / name, decoder) as reader:
        assert reader.frame_count == 80
        np.testing.assert_array_equal(reader.frames(indices), in_order(tmp_path / name)[indices])
        assert reader.backend == (way if decoder == "decord" or way == "pyav_sequential" else decoder)


@functools.cache
def in_order(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_late_frame_is_reached_from_the_key_frame_before_it(long_videos):
    with open_video(long_videos["short GOP"], "pyav") as reader:
        reader.frames(np.array([LONG_FRAMES - 1]))
        assert reader._heart.beats <= 12
        reader.frames(np.arange(0, LONG_FRAMES, 4))
        assert reader._heart.beats <= 12 + LONG_FRAMES


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_upright(tmp_path, video, decoder, degrees):
    path = write_levels(tmp_path / "turned.mp4", rotation=degrees)
    with open_video(path, decoder) as turned, open_video(video, decoder) as plain:
        images = turned.frames(np.arange(3))
        np.testing.assert_array_equal(images, np.rot90(plain.frames(np.arange(3)), degrees // 90, axes=(1, 2)))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["levels.mp4", "levels.mkv"])
def test_frames_are_counted_whether_the_file_says_so_or_not(tmp_path, decoder, name):
    path = write_levels(tmp_path / name)
    with av.open(str(path)) as container:
        assert (container.streams.video[0].frames == 0) == name.endswith("mkv")
    with open_video(path, decoder) as reader:
        assert reader.frame_count == FRAMES
        np.testing.assert_allclose(levels(reader.frames(np.arange(FRAMES))), LEVELS, atol=3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_files_whose_packets_are_not_trusted_are_read_in_order(tmp_path, caplog, decoder):
    path = write_levels(tmp_path / "levels.ts")
    for _ in range(2):
        with open_video(path, decoder) as reader:
            assert reader.frame_count == FRAMES
            np.testing.assert_allclose(levels(reader.frames(np.array([30, 4, 39]))), LEVELS[[30, 4, 39]], atol=3)
            assert reader.backend == "pyav_sequential"
    assert [record.message for record in caplog.records] == [
        f"{path}: h264 in mpegts isn't counted by packets; read with pyav_sequential"
    ]


def test_the_best_of_several_video_streams_is_read(tmp_path):
    path, noise = tmp_path / "two.mp4", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=8, options={"crf": "10"}) for _ in range(2)]
        for stream, side in zip(streams, (32, 64), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            stream.disposition = Disposition.default
        for level in LEVELS:
            # FFmpeg calls the stream of more bits the better one.
            rich = (level + noise.integers(-15, 16, (64, 64, 1)) + np.zeros(3, int)).astype(np.uint8)
            for stream, image in zip(streams, (np.full((32, 32, 3), 10, np.uint8), rich), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    with open_video(path) as reader:
        images = reader.frames(np.arange(FRAMES))
    assert images.shape[1:3] == (64, 64)
    np.testing.assert_allclose(levels(images), LEVELS, atol=3)


def test_large_frames_are_not_read_with_decord(tmp_path, monkeypatch, video):
    monkeypatch.setattr(decode, "DECORD_MAX_PIXELS", WIDTH * HEIGHT - 1)
    with open_video(video, "decord") as reader:
        assert reader.backend == "pyav"


def test_a_library_that_is_not_there_is_replaced_and_named_once(video, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.delitem(sys.modules, "adatad.data.readers.decord", raising=False)
    decode.missing_library.cache_clear()
    try:
        for _ in range(2):
            with open_video(video, "decord") as reader:
                np.testing.assert_allclose(levels(reader.frames(np.array([5]))), LEVELS[[5]], atol=3)
                assert reader.backend == "pyav"
    finally:
        decode.missing_library.cache_clear()
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("data.decoder decord can't be used here (")


class Fake:
    """A source that reads with PyAV until it is asked for a frame from `fails_from` on."""

    def __init__(self, index, heart, fails_from, fail):
        self._real, self._fails_from, self._fail = PyavFrames(index, heart, sequential=True), fails_from, fail

    def read(self, numbers):
        if numbers[-1] >= self._fails_from:
            self._fail()
        return self._real.read(numbers)

    def close(self):
        self._real.close()


def fake_source(monkeypatch, ways: tuple[str, ...], fails_from: int, fail) -> None:
    """The ways named fail; the others are as they are."""
    real = decode._open_source

    def open_source(index, way, heart):
        return Fake(index, heart, fails_from, fail) if way in ways else real(index, way, heart)

    monkeypatch.setattr(decode, "_open_source", open_source)


def raiser(error: Exception):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("first", "failing", "error", "then"),
    [
        ("decord", ("decord",), VideoError("levels.mp4: decord is tired"), "pyav"),
        ("decord", ("decord",), IndexMismatchError("decord counts 7 frames"), "pyav"),
        ("pyav", ("pyav",), IndexMismatchError("frame 9 comes instead"), "pyav_sequential"),
    ],
)
def test_what_fails_midway_goes_on_in_another_way(video, monkeypatch, caplog, first, failing, error, then):
    monkeypatch.setattr(decode, "missing_library", lambda decoder: "")
    fake_source(monkeypatch, failing, 20, raiser(error))
    with open_video(video, first) as reader:
        chunks = list(reader.chunks(np.arange(FRAMES), 8))
        assert reader.backend == then
    np.testing.assert_allclose(levels(np.concatenate(chunks)), LEVELS, atol=3)
    (line,) = [record.message for record in caplog.records]
    assert "levels.mp4" in line
    assert line.endswith(f"{str(error).removeprefix('levels.mp4: ')}; trying again with {then}")


def test_what_fails_twice_is_an_error(video, monkeypatch):
    fake_source(monkeypatch, ("pyav", "pyav_sequential"), 20, raiser(IndexMismatchError("frame 9 comes instead")))
    with open_video(video, "pyav") as reader:
        reader.frames(np.arange(8))
        with pytest.raises(VideoError, match=r"levels\.mp4: frame 9 comes instead"):
            reader.frames(np.arange(FRAMES))


def test_what_hangs_is_tried_once_more_and_then_named(video, monkeypatch):
    release, waiting = threading.Event(), []

    def hang():
        waiting.append(threading.current_thread())
        release.wait()

    fake_source(monkeypatch, ("pyav",), 20, hang)
    try:
        with open_video(video, "pyav", timeout_seconds=0.05) as reader:
            reader.frames(np.arange(8))
            with pytest.raises(VideoError, match=r"levels\.mp4: decoding frames .* hangs: nothing came for 0.05 s"):
                reader.frames(np.arange(FRAMES))
    finally:
        release.set()
    assert len(waiting) == 2
    assert all(thread.daemon for thread in waiting)


def test_after_a_hang_another_library_goes_on(video, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(decode, "missing_library", lambda decoder: "")
    fake_source(monkeypatch, ("decord",), 20, release.wait)
    try:
        with open_video(video, "decord", timeout_seconds=0.5) as reader:
            images = reader.frames(np.arange(FRAMES))
            assert reader.backend == "pyav"
    finally:
        release.set()
    np.testing.assert_allclose(levels(images), LEVELS, atol=3)


def test_a_file_that_hangs_while_it_is_opened_is_named(video, monkeypatch):
    release, tries = threading.Event(), []
    monkeypatch.setattr(decode, "read_index", lambda *arguments: tries.append(arguments) or release.wait())
    try:
        with (
            pytest.raises(VideoError, match=r"levels\.mp4: opening it hangs"),
            open_video(video, timeout_seconds=0.02),
        ):
            pass
    finally:
        release.set()
    assert len(tries) == 2


def test_slow_is_not_stuck():
    release = threading.Event()

    class Alive:
        looks = 0

        @property
        def beats(self):
            self.looks += 1
            if self.looks == 9:
                release.set()
            return self.looks

    assert decode._wait(lambda: release.wait() and 7, Alive(), 0.01, "it") == 7


@pytest.mark.parametrize("missing", [1, TAIL_FRAMES])
def test_a_few_frames_missing_at_the_end_are_filled_up(video, caplog, missing):
    source = PyavFrames(promise(video, missing), Heartbeat(), sequential=False)
    images = source.read(np.array([FRAMES - 1, FRAMES + missing - 1]))
    source.close()
    np.testing.assert_array_equal(images[0], images[1])
    (line,) = [record.message for record in caplog.records]
    assert f"the last {missing} of {FRAMES + missing} frames don't decode" in line


def test_many_frames_missing_at_the_end_are_an_error(video):
    source = PyavFrames(promise(video, TAIL_FRAMES + 1), Heartbeat(), sequential=False)
    with pytest.raises(VideoError, match=rf"levels\.mp4: only {FRAMES} of {FRAMES + TAIL_FRAMES + 1} frames could"):
        source.read(np.array([FRAMES + TAIL_FRAMES]))
    source.close()


def promise(path: Path, missing: int) -> video_index.VideoIndex:
    """Let a file announce more frames than decode."""
    index = read_index(path, Heartbeat())
    pts = np.append(index.pts, index.pts[-1] + 1 + np.arange(missing))
    return dataclasses.replace(index, frame_count=FRAMES + missing, pts=pts)


def test_a_frame_that_no_packet_announces_is_noticed(video):
    index = read_index(video, Heartbeat())
    source = PyavFrames(dataclasses.replace(index, pts=index.pts + 1), Heartbeat(), sequential=False)
    with pytest.raises(IndexMismatchError, match="that no packet announces"):
        source.read(np.array([3]))
    source.close()


@pytest.mark.parametrize("wrong", ["frames", "key frames", "times"])
def test_decord_is_compared_with_the_packets(video, caplog, wrong):
    pytest.importorskip("decord", exc_type=ImportError)
    index = read_index(video, Heartbeat())
    match wrong:
        case "frames":
            index = dataclasses.replace(index, frame_count=FRAMES - 1, pts=index.pts[:-1])
        case "key frames":
            index = dataclasses.replace(index, key_pts=np.append(index.key_pts, index.pts[-1]))
        case "times":
            index = dataclasses.replace(index, tick_seconds=2 * index.tick_seconds)
    reader = VideoReader(index, "decord", 60)
    np.testing.assert_allclose(levels(reader.frames(np.array([5, 30]))), LEVELS[[5, 30]], atol=3)
    reader.close()
    assert reader.backend == "pyav"
    (line,) = [record.message for record in caplog.records]
    assert f"decord {'counts' if wrong == 'frames' else 'finds other ' + wrong}" in line


def test_a_file_is_looked_into_once_while_it_stays_the_same(tmp_path, monkeypatch):
    looked, real = [], video_index._read_index
    monkeypatch.setattr(video_index, "_read_index", lambda path, heart: looked.append(path) or real(path, heart))
    path = write_levels(tmp_path / "levels.mp4")
    for frames in (FRAMES, FRAMES, 20, 20):
        if frames != FRAMES and len(looked) == 1:
            write_levels(path, frames)
        with open_video(path) as reader:
            assert reader.frame_count == frames
    assert len(looked) == 2


def test_what_is_kept_of_files_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(video_index, "CACHE_BYTES", 3 * 2048)
    monkeypatch.setattr(video_index, "_indices", type(video_index._indices)())
    for number in range(8):
        with open_video(write_levels(tmp_path / f"{number}.mp4")):
            pass
    assert 2 <= len(video_index._indices) <= 4
    assert list(video_index._indices)[-1][0].name == "7.mp4"


@pytest.mark.parametrize("decoder", DECODERS)
def test_opening_often_takes_no_more_memory(video, decoder):
    process = psutil.Process()

    def open_often(times: int) -> int:
        for _ in range(times):
            with open_video(video, decoder) as reader:
                reader.frames(np.array([3, 30]))
        gc.collect()
        return process.memory_info().rss

    before, files = open_often(60), process.num_fds()
    assert open_often(150) - before < 150 * 16 * 1024
    assert process.num_fds() == files


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))


def write_picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (48, 32)).save(path, format="png")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1000000\n"


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda path: path.write_text("no video at all\n" * 100), "can't be opened as a video"),
        (lambda path: path.write_text(POINTER), "it is a pointer of Git LFS"),
        (lambda path: path.write_text("<!DOCTYPE html><html>Log in</html>"), "it is an HTML page"),
        (lambda path: path.mkdir(), "can't be opened as a video: it is no file"),
        (write_sound, "holds no video stream, only: audio"),
        (write_picture, "it is a picture"),
    ],
    ids=["missing", "empty", "text", "pointer", "page", "folder", "sound", "picture"],
)
def test_what_is_no_video_is_named(tmp_path, decoder, write, message):
    path = tmp_path / "broken.wav"
    write(path)
    with pytest.raises(VideoError, match=message) as caught, open_video(path, decoder):
        pass
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("name", "options"), [("cut.mp4", {"movflags": "faststart"}), ("cut.mkv", {})])
def test_a_file_cut_off_is_named(tmp_path, decoder, name, options):
    path = write_levels(tmp_path / name, LONG_FRAMES, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match="is cut off: it") as caught, open_video(path, decoder):
        pass
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_that_are_not_there_are_an_error(video, decoder):
    with open_video(video, decoder) as reader:
        with pytest.raises(VideoError, match=rf"frame {FRAMES} was asked for; it has frames 0 to {FRAMES - 1}"):
            reader.frames(np.array([2, FRAMES]))
        with pytest.raises(VideoError, match="frame -1 was asked for"):
            reader.frames(np.array([-1, 5]))
        with pytest.raises(ValueError, match="no frames were asked for"):
            reader.frames(np.array([], int))


def test_warnings_reach_the_log_of_a_run():
    assert decode.logger.name.startswith("adatad.")
    assert decode.logger.isEnabledFor(logging.WARNING)
