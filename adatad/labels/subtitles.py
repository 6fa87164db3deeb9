"""Subtitles, SRT and WebVTT: a segment is a cue, its text the label with the score in brackets."""

from __future__ import annotations

import html
import re

from adatad.labels.names import one_line
from adatad.labels.reading import Reading
from adatad.labels.records import Segment, VideoLabels
from adatad.labels.score_text import split_score, with_score
from adatad.labels.ticks import in_order, in_ticks
from adatad.labels.values import brief

ARROW = "-->"
"""Divides the times of a cue; in a text it would begin another one."""
LINES = re.compile(r"\r\n|\r|\n")
CLOCK = r"(?:\d{1,5}:)?\d{1,2}:\d{2}(?:[.,]\d{1,9})?"
CUE = re.compile(rf"(?P<start>{CLOCK})\s*-->\s*(?P<end>{CLOCK})(?:\s.*)?", re.ASCII)
SRT_TAG = re.compile(r"</?(?:b|i|u|s|font)(?:\s[^<>]*)?>|\{\\an?\d\}", re.IGNORECASE)
VTT_TAG = re.compile(r"<[^<>]*>")
"""Marks of how a text looks."""


def write_srt(video: VideoLabels) -> str:
    """Return a video's segments as SRT. An arrow --> in a label becomes →, since SRT has no escapes."""
    cues = [
        f"{number}\n{_times(segment, ',')}\n{_text(segment).replace(ARROW, '→')}\n"
        for number, segment in enumerate(in_order(video.segments), 1)
    ]
    return "\n".join(cues)


def write_vtt(video: VideoLabels) -> str:
    """Return a video's segments as WebVTT, with the signs that it gives a meaning escaped."""
    cues = [
        f"{_times(segment, '.')}\n{_text(segment).replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}\n"
        for segment in in_order(video.segments)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _text(segment: Segment) -> str:
    return with_score(one_line(segment.label).strip(), segment.score)


def _times(segment: Segment, sign: str) -> str:
    start, end = in_ticks(segment, 1000)
    return f"{_clock(start, sign)} {ARROW} {_clock(end, sign)}"


def _clock(milliseconds: int, sign: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{sign}{rest:03d}"


def read_subtitles(reading: Reading, text: str) -> None:
    """Read the cues of SRT or WebVTT: the video has the file's name, the label is the text without marks of its looks.

    Notes, styles and numbers of cues are passed over.
    """
    is_vtt = text.startswith("WEBVTT")
    file = reading.video(reading.path.stem)
    cue: tuple[int, re.Match[str]] | None = None
    words: list[str] = []
    lines = [*LINES.split(text), ""]
    for number, line in enumerate(lines, 1):
        times = CUE.fullmatch(line.strip())
        if cue and (times or not line.strip()):
            # A number of the next cue, where the blank line before it is missing.
            if times and words and words[-1].isdecimal():
                words.pop()
            _read_cue(reading, file, cue, " ".join(words), is_vtt)
            cue, words = None, []
        if times:
            cue = (number, times)
        elif cue:
            words.append(line.strip())
        elif ARROW in line:
            wanted = "expected two times such as 0:00:01.500 --> 0:00:04.000"
            reading.problems.append(f"line {number}: {wanted}, got {brief(line)}")


def _read_cue(reading: Reading, file: str, cue: tuple[int, re.Match[str]], text: str, is_vtt: bool) -> None:
    line, times = cue
    text = html.unescape(VTT_TAG.sub("", text)) if is_vtt else SRT_TAG.sub("", text)
    label, score = split_score(text)
    reading.add(file, f"line {line}", label, _seconds(times["start"]), _seconds(times["end"]), score)


def _seconds(clock: str) -> float:
    whole, _, rest = clock.replace(",", ".").partition(".")
    seconds = 0
    for part in whole.split(":"):
        seconds = seconds * 60 + int(part)
    # As one number, so that 1.1 is 1.1 to the last bit.
    return float(f"{seconds}.{rest or 0}")
