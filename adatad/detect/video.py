"""An unlabelled video, from a file or from frames in memory, as detection takes it: its frames by number, and its
length and rate by the model's rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from adatad.data.annotations import Video
from adatad.data.decode import VideoError, open_video
from adatad.data.frame_stream import ArraySource, VideoSource
from adatad.data.timeline import Timeline
from adatad.errors import UserError
from adatad.files import reason
from adatad.spec.data_sections import DataSpec

Opened = tuple[VideoSource, Video]
"""Frames of a video, and what annotations would say of it but for instances."""
MIN_FPS, MAX_FPS = 1e-6, 1e6
"""Limits of a frame rate, those of `data.fps`."""


def check_there(path: str | Path) -> None:
    """Raise VideoError unless there is a file, in words for someone who has no annotations."""
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: {'is no file' if path.exists() else 'there is no such file'}; name a video")


@contextmanager
def open_file(path: str | Path, data: DataSpec) -> Iterator[Opened]:
    """Open a video file for as long as the context lasts. Its name is the file's, without the ending.

    Frames are numbered at the model's rate (`data.fps`), or the file's own where it has none, by the times at which
    they are shown. Raises VideoError, which names the file.
    """
    check_there(path)
    sliding = data.window.kind == "sliding"
    # 0: the rate at which most of the file's frames come. A window of the whole video finds its frames by itself.
    fps = (data.fps or 0.0) if sliding else None
    with open_video(path, data.decoder, data.decode_timeout_seconds, fps) as reader:
        timeline = reader.timeline
        rate = data.fps or timeline.usual_fps
        duration = timeline.duration_seconds if timeline.has_times else reader.frame_count / rate if rate else 0.0
        if not duration > 0:
            raise VideoError(
                f"{path}: tells no times of its frames, and so no frame rate; convert it: "
                "ffmpeg -r RATE -i FILE -c:v libx264 OUTPUT.mp4"
            )
        # By frames and rate it is numbered as an annotated video is in training.
        yield reader, unlabelled(Path(path).stem, duration, rate, reader.frame_count)


def from_frames(frames: np.ndarray, fps: float, name: str, data: DataSpec) -> Opened:
    """Return frames in memory as a video. frames: uint8 [n, height, width, 3], RGB; fps: how many are shown a second.

    Raises UserError for frames of another form.
    """
    try:
        # One check for arrays and tensors; a tensor on the CPU shares its memory.
        images = np.asarray(frames)
    except (TypeError, ValueError) as error:
        raise UserError(f"frames: can't be made one array in host memory: {reason(error)}") from error
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
        raise UserError(f"frames: expected uint8 [frames, height, width, 3], got {images.dtype} {images.shape}")
    # Beyond these, times in 32 bits are no numbers any more.
    if isinstance(fps, bool) or not isinstance(fps, int | float | np.number) or not MIN_FPS <= fps <= MAX_FPS:
        raise UserError(f"fps: expected frames a second, from {MIN_FPS:g} to {MAX_FPS:g}, got {fps!r}")
    rate = float(data.fps or fps)
    source = ArraySource(images, float(fps), rate if data.window.kind == "sliding" else None)
    timeline: Timeline = source.timeline
    return source, unlabelled(name, timeline.duration_seconds, rate, source.frame_count)


def unlabelled(name: str, duration_seconds: float, fps: float, frames: int) -> Video:
    """Return a video as annotations describe it, without instances."""
    nothing = np.zeros((0, 2))
    return Video(name, duration_seconds, fps, frames, nothing, nothing, np.zeros(0, np.int64))
