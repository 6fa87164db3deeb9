"""Small videos whose frames are shown at chosen times, for tests: what is on the screen tells which second it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE = 32
BRIGHT, DARK = 250, 60


def write_timed(
    path: Path,
    seconds: Sequence[float],
    shade: Callable[[float], int] = lambda second: DARK,
    codec: str = "libx264",
    base: Fraction = Fraction(1, 90000),
    with_sound: bool = False,
    **options: str,
) -> Path:
    """A frame at each of `seconds`, all of one grey, shade(second); with_sound: an audio track that begins at 0."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        if with_sound:
            sound = container.add_stream("aac", rate=48000)
            sound.layout = "mono"
            silence = np.zeros((1, round(48000 * seconds[-1])), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate, frame.pts = 48000, 0
            container.mux(sound.encode(frame))
        for second in seconds:
            image = np.full((SIDE, SIDE, 3), shade(second), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(second / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if with_sound:
            container.mux(sound.encode())
    return path


def bright_from(start: float, end: float) -> Callable[[float], int]:
    """A shade for `write_timed`: bright from `start` until `end`."""
    return lambda second: BRIGHT if start <= second < end else DARK


def even(fps: float, seconds: float, start: float = 0.0) -> list[float]:
    """Times at a constant rate."""
    return [start + number / fps for number in range(round(fps * seconds))]


SLOWS_DOWN = [*even(30, 4), *even(5, 4, 4.0)]
"""30 frames a second, and 5 after 4 s: a phone in the dark."""
PAUSES = [*even(25, 2), *even(25, 3, 5.0)]
"""Nothing new from 2 to 5 s: a camera that pauses."""
