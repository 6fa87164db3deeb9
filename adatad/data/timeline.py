"""Timelines: when each frame of a file is shown, and which frame is shown at a given second.

A label is in seconds, as a player shows them. A file tells for each frame when it is shown, and these times need not be
evenly spaced: phones and browsers record at a changing rate, cameras pause, a first picture may come after the sound.
Three scales meet here:

    seconds    from the start of the video, the time of labels and detections
    numbers    frames on an even scale of `fps` a second, number k at k / fps seconds: what windows and positions count
    frames     of the file, as they are stored, 0 for the first one shown

Nothing here opens a file (docs/decisions/presentation-time.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

JUMP_SECONDS = 3600.0
"""A longer gap between two frames is a fault of the recording, not a pause."""
MAX_SCALE_NUMBER = 2.0**62
"""Largest number on an even scale: an absurd rate must still give an integer."""
MAX_USUAL_FPS = 120.0
"""Highest rate of an even scale for frames at a changing rate, some of which may come a millisecond apart."""
REORDERED_FRAMES = 16
"""Decoders and packets give frames out of order by less than this; further off, the times have started again."""


@dataclass(frozen=True)
class Timeline:
    """Times at which the frames of a file are shown.

    seconds: float64 [frame_count], ascending, from the start of the video; empty where the file gives no times.
    duration_seconds: end of the last frame; 0 where the file gives no times. unreliable_because: fault of the times as
    stored in the file; empty if there was none.
    """

    frame_count: int
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    duration_seconds: float = 0.0
    unreliable_because: str = ""
    _followed: dict[float, bool] = field(default_factory=dict, compare=False, repr=False)

    @property
    def has_times(self) -> bool:
        """True if the file gives times that can be used."""
        return len(self.seconds) > 0 and self.duration_seconds > 0

    @property
    def first_seconds(self) -> float:
        """Time of the first picture."""
        return float(self.seconds[0]) if self.has_times else 0.0

    @property
    def fps(self) -> float:
        """Average frames a second from the first picture to the end; 0 where the file gives no times."""
        return self.frame_count / (self.duration_seconds - self.first_seconds) if self.has_times else 0.0

    @property
    def usual_fps(self) -> float:
        """Rate at which most frames come, an even scale that suits the file: a pause doesn't lower it as it does the
        average.

        0 where the file gives no times.
        """
        if not self.has_times or self.is_even:
            return self.fps
        # Never below the average rate, so that the scale has a number for nearly every frame.
        return max(self.fps, min(1 / self._usual_interval, MAX_USUAL_FPS))

    @property
    def last_step_seconds(self) -> float:
        """Uncertainty of the length of a file of changing rate, as few files tell how long the last frame stays: the
        time between the last two frames; 0 at a constant rate."""
        return 0.0 if self.is_even or self.frame_count < 2 else float(self.seconds[-1] - self.seconds[-2])

    @cached_property
    def unevenness_seconds(self) -> float:
        """Largest distance of a frame from an even spacing over the whole video; 0 where the file gives no times."""
        if not self.has_times:
            return 0.0
        even = self.first_seconds + np.arange(self.frame_count) / self.fps
        return float(np.abs(self.seconds - even).max())

    @property
    def is_even(self) -> bool:
        """True if every frame lies within half an interval of its time at a constant rate."""
        return self.unevenness_seconds * self.fps <= 0.5

    def follows(self, fps: float) -> bool:
        """Return whether every frame k is shown at k / fps, within half an interval: numbers are frames then."""
        if fps not in self._followed:
            # An absurd rate overflows to infinity or NaN, which compare as not followed.
            with np.errstate(all="ignore"):
                even = np.arange(self.frame_count) / fps
                self._followed[fps] = not self.has_times or bool(np.abs(self.seconds - even).max() * fps <= 0.5)
        return self._followed[fps]

    def count_at(self, fps: float) -> int:
        """Return how many numbers an even scale of `fps` has up to the end of the video, at least 1; the number of
        frames where the scale is the file's own or the file gives no times."""
        return (
            self.frame_count if self.follows(fps) else max(1, round(min(self.duration_seconds * fps, MAX_SCALE_NUMBER)))
        )

    def frames_of(self, numbers: np.ndarray, fps: float) -> np.ndarray:
        """Return the frames shown at numbers of an even scale: int64 [n] -> int64 [n]."""
        numbers = np.asarray(numbers, np.int64)
        return numbers if self.follows(fps) else self.frames_at(numbers / fps)

    def frames_at(self, seconds: np.ndarray) -> np.ndarray:
        """Return the frame on the screen at each second: float64 [n] -> int64 [n].

        The next frame is taken where it is nearer and at most half a usual interval away, so that rounded times give
        the frame that was meant. Not further, so that nothing is shown before it happened, as the first frame after a
        pause would be. Before any frame has come it is the first, after the end the last.
        """
        last = self.frame_count - 1
        # The last frame that has come by then, as a player shows it.
        shown = np.clip(np.searchsorted(self.seconds, seconds, side="right") - 1, 0, last)
        following = np.minimum(shown + 1, last)
        ahead = self.seconds[following] - seconds
        # Frame `shown` has come already. A label rounded to hundredths may lie just before the frame that it means.
        takes_next = (ahead <= self._usual_interval / 2) & (ahead < np.abs(seconds - self.seconds[shown]))
        return np.where(takes_next, following, shown).astype(np.int64)

    @cached_property
    def _usual_interval(self) -> float:
        return usual_step(np.diff(self.seconds))


def usual_step(steps: np.ndarray) -> float:
    """Return the median of the steps above 0; 0 if there are none."""
    ahead = steps[steps > 0]
    return float(np.median(ahead)) if len(ahead) else 0.0


def timeline_of(
    times: Sequence[float | None] | np.ndarray, start_seconds: float | None, last_frame_seconds: float
) -> Timeline:
    """Build a timeline from the times in seconds that a file gives its frames, in display order; None or NaN where
    unknown.

    start_seconds: start of the video on the clock of these times; None for the first picture. last_frame_seconds:
    duration of the last frame; 0 if the file doesn't give it.
    """
    seconds = np.asarray(times, np.float64)
    count, known = len(seconds), np.isfinite(seconds)
    # With less than half of the times known, filling in would be guessing.
    if not count or known.sum() * 2 < count:
        return Timeline(count, unreliable_because="it tells no times of its frames")
    if not known.all():
        # Some AVI files, for example, give no times for their last frames.
        seconds = _filled(seconds, known)
    seconds, unreliable_because = _in_order(seconds)
    first = float(seconds[0])
    # A clock that starts later than the first picture, or hours before it, can't be the video's.
    start = first if start_seconds is None or not 0 <= first - start_seconds <= JUMP_SECONDS else start_seconds
    seconds = seconds - start
    # The usual step is a median: pauses and bursts don't move it.
    steps = np.diff(seconds)
    usual = usual_step(steps)
    if count > 1 and not usual:
        return Timeline(count, unreliable_because="it shows all its frames at one time")
    # How long the last frame stays: what the file says if that is plausible (not longer than any other frame), the
    # average interval where frames come evenly, else the last positive interval.
    stays = last_frame_seconds if 0 < last_frame_seconds <= max(float(steps.max(initial=0.0)), usual) else 0.0
    # A single frame, as of a still picture: there is no other one to compare its duration with.
    if count == 1:
        stays = min(max(last_frame_seconds, 0.0), JUMP_SECONDS)
    span = float(seconds[-1] - seconds[0])
    even = np.abs(seconds - seconds[0] - np.arange(count) * span / max(count - 1, 1)).max()
    if count > 1 and even <= span / (count - 1) / 2:
        stays = span / (count - 1)
    end = float(seconds[-1]) + (stays or (float(steps[steps > 0][-1]) if usual else 0.0))
    return Timeline(count, seconds, end, unreliable_because)


def _filled(seconds: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill in times between and around those that are known, evenly."""
    places = np.flatnonzero(known)
    filled = np.interp(np.arange(len(seconds)), places, seconds[places])
    step = usual_step(np.diff(seconds[places]) / np.diff(places)) if len(places) > 1 else 0.0
    before, after = np.arange(places[0]), np.arange(places[-1] + 1, len(seconds))
    filled[before] = seconds[places[0]] - step * (places[0] - before)
    filled[after] = seconds[places[-1]] + step * (after - places[-1])
    return filled


def _in_order(seconds: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the times ascending, and what was wrong with them.

    Where they start again or jump, the frame comes a usual interval after the one before it.
    """
    order = np.argsort(seconds, kind="stable")
    unreliable_because = ""
    # Only small disorder is sorted. Sorting times that start again would mix two parts of the video.
    if np.abs(order - np.arange(len(order))).max(initial=0) <= REORDERED_FRAMES:
        seconds = seconds[order]
    steps = np.diff(seconds)
    jumps = np.flatnonzero((steps < 0) | (steps > JUMP_SECONDS))
    # The few frames that are out of order where times start again aren't counted as jumps of their own.
    if len(jumps):
        place = jumps[0]
        times = "once" if len(jumps) == 1 else f"{len(jumps)} times"
        unreliable_because = f"its times jump {times}, first from {seconds[place]:.2f} s to {seconds[place + 1]:.2f} s"
        steps[jumps] = usual_step(steps[(steps > 0) & (steps <= JUMP_SECONDS)])
        seconds = seconds[0] + np.concatenate([[0.0], np.cumsum(steps)])
    return seconds, unreliable_because
