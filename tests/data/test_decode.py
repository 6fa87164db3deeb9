"""Frames by number from real files, and broken files by name."""

from pathlib import Path

import av
import numpy as np
import pytest

from adatad.data.decode import VideoError, open_video

FRAMES = 40
LEVELS = 20 + np.arange(FRAMES) * 37 % 200
"""Grey level that each frame is drawn in: neighbours differ by 37 or more."""


def write_levels(path: Path, **options: str) -> Path:
    """A left half in the frame's level, a right half in pure red; with B-frames, which are stored out of order."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10", "bf": "3", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for level in LEVELS:
            image = np.full((32, 48, 3), level, np.uint8)
            image[:, 24:] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_levels(tmp_path_factory.mktemp("decode") / "levels.mp4")


def levels(images: np.ndarray) -> np.ndarray:
    return images[:, :, :20].mean((1, 2, 3))


@pytest.mark.parametrize(
    "indices",
    [range(FRAMES), [0], [FRAMES - 1], [7, 3, 3, 39, 0], range(0, FRAMES, 5), [5] * 3],
    ids=["all", "first", "last", "any order", "every fifth", "repeats"],
)
def test_frames_come_as_asked_for(video, indices):
    with open_video(video) as reader:
        images = reader.frames(np.array(indices))
    assert images.shape == (len(indices), 32, 48, 3)
    assert images.dtype == np.uint8
    np.testing.assert_allclose(levels(images), LEVELS[list(indices)], atol=3)
    np.testing.assert_allclose(images[:, :, 28:].mean((0, 1, 2)), (254, 0, 0), atol=4)


def test_a_reader_can_be_asked_again(video):
    with open_video(video) as reader:
        later, earlier = (reader.frames(np.array([number])) for number in (30, 2))
    np.testing.assert_allclose([*levels(later), *levels(earlier)], LEVELS[[30, 2]], atol=3)


@pytest.mark.parametrize("name", ["levels.mp4", "levels.mkv"])
def test_frames_are_counted_whether_the_file_says_so_or_not(tmp_path, name):
    path = write_levels(tmp_path / name)
    with av.open(str(path)) as container:
        assert (container.streams.video[0].frames == 0) == name.endswith("mkv")
    with open_video(path) as reader:
        assert reader.frame_count == FRAMES
        np.testing.assert_allclose(levels(reader.frames(np.arange(FRAMES))), LEVELS, atol=3)


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "can't be opened as a video"),
        (lambda path: path.write_bytes(b""), "can't be opened as a video"),
        (lambda path: path.write_text("no video at all\n" * 100), "can't be opened as a video"),
        (lambda path: path.mkdir(), "can't be opened as a video"),
        (write_sound, "holds no video stream"),
    ],
    ids=["missing", "empty", "text", "folder", "sound"],
)
def test_what_is_no_video_is_named(tmp_path, write, message):
    path = tmp_path / "broken.wav"
    write(path)
    with pytest.raises(VideoError, match=message) as caught, open_video(path):
        pass
    assert str(path) in str(caught.value)


def test_a_file_cut_off_is_named(tmp_path):
    path = write_levels(tmp_path / "cut.mp4", movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError) as caught, open_video(path) as reader:
        reader.frames(np.arange(FRAMES))
    assert str(path) in str(caught.value)


def test_frames_that_are_not_there_are_an_error(video):
    with open_video(video) as reader:
        with pytest.raises(VideoError, match=f"frame {FRAMES} was asked for"):
            reader.frames(np.array([2, FRAMES]))
        with pytest.raises(ValueError, match="no frames were asked for"):
            reader.frames(np.array([], int))
