"""Videos that can't be read, where a spec wants to go on without them: named once, counted, and not too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from adatad.data.decode import VideoError


class Skipped(NamedTuple):
    """A video's name, and what is wrong with it."""

    video: str
    reason: str


class SkippedVideos:
    """Counts the videos that a run does without. say: called once for each with a line to log."""

    def __init__(self, limit: int, say: Callable[[str], None]):
        self.limit, self._say = limit, say
        self.reasons: dict[str, str] = {}

    def add(self, found: Iterable[Skipped]) -> None:
        """Raises VideoError when there are more than the limit."""
        for video, reason in found:
            if video not in self.reasons:
                self.reasons[video] = reason
                self._say(f"left out, video {len(self.reasons)} of at most {self.limit}: {reason}")
        if len(self.reasons) > self.limit:
            names = ", ".join(self.reasons)
            raise VideoError(
                f"{len(self.reasons)} videos can't be read, more than data.skip_limit {self.limit}: {names}; "
                "mend them, take them out of the annotation file, or raise the limit"
            )
