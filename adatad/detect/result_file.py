"""The file that holds what was found in one video: JSON in the ActivityNet form, which `adatad evaluate` reads.

    {"results": {NAME: [{"segment": [start, end], "label": ..., "score": ...}, ...]},
     "detect": {"program": ..., "made": {...}, "selection": {...}, "video": {...}, "formats": [...], "others": [...]}}

`made` is what all candidates follow from: a file made by another model isn't taken for done. `others` are candidates
that the selection left out, in the same form, so that another selection takes no model. `formats` are the further forms
that lie beside the file; what isn't named there was put there by somebody else, and is never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adatad.detect.selection import Selection, best_first
from adatad.detect.sources import SourceVideo
from adatad.errors import UserError
from adatad.files import FileError, read_json, shown, write_json
from adatad.labels.records import Segment, VideoLabels

OWN = "detect"


class MadeBy(NamedTuple):
    """Origin of candidates. fingerprint: of the model; model: as it was named; windows: whether overlapping
    windows each went through the backbone."""

    fingerprint: str
    model: str
    windows: bool


class Looked(NamedTuple):
    """A video file as it was. size_bytes, modified_ns: by which a changed file is noticed; None: not known."""

    file: str
    size_bytes: int
    modified_ns: int
    duration_seconds: float | None
    fps: float | None
    frame_count: int | None


@dataclass(frozen=True)
class VideoResult:
    """Detections of a video. name: of its files; candidates: best first; selection: of those that count; formats:
    further forms of these beside the JSON file."""

    name: str
    candidates: tuple[Segment, ...]
    video: Looked
    made: MadeBy
    selection: Selection
    formats: tuple[str, ...] = ()

    @property
    def detections(self) -> tuple[Segment, ...]:
        """The candidates that count, best first."""
        return self.selection.of(self.candidates)

    def labels(self, segments: Sequence[Segment]) -> VideoLabels:
        """Return segments of this video as writers of other forms take them."""
        # Writers of XML and JSON take text alone, and a file's name may be any bytes.
        video = self.video
        return VideoLabels(
            as_text(self.name), tuple(segments), as_text(video.file), video.duration_seconds, video.fps,
            video.frame_count,
        )  # fmt: skip


class ForeignFileError(UserError):
    """A file in a result's place that `adatad detect` didn't write."""


def as_text(name: str) -> str:
    """Return a file's name as text: bytes that are none become escapes, which every form can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def result_path(folder: Path, name: str) -> Path:
    """Return the path of a video's result."""
    return folder / f"{name}.json"


def stamp_of(video: SourceVideo) -> tuple[int, int]:
    """Return size in bytes and time of change in nanoseconds of a video as it is now; zeros if it isn't there."""
    # It may vanish at any time, and is then reported where it is opened.
    try:
        facts = video.path.stat()
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def is_changed(result: VideoResult, video: SourceVideo) -> bool:
    """Return whether a video has changed since its result was written; False for one that isn't there."""
    return stamp_of(video) not in ((result.video.size_bytes, result.video.modified_ns), (0, 0))


def activitynet(results: Sequence[VideoResult]) -> dict[str, Any]:
    """Return the detections of videos as one document in the ActivityNet form."""
    # As `adatad evaluate` reads detections, so that what a pipe gives can be scored.
    return {"results": {as_text(result.name): list(map(_entry, result.detections)) for result in results}}


def _entry(found: Segment) -> dict[str, Any]:
    return {"segment": [found.start_seconds, found.end_seconds], "label": found.label, "score": found.score}


def _segment(entry: dict[str, Any]) -> Segment:
    # The file may have been edited: what is no number raises here, and is refused below.
    start, end = map(float, entry["segment"])
    return Segment(str(entry["label"]), start, end, float(entry["score"]))


def write_result(folder: Path, result: VideoResult) -> None:
    """Write the file of a result, atomically. Raises FileError."""
    from adatad import __version__

    # Both lists together are the candidates, so that nothing is lost and nothing stands twice.
    chosen = set(result.detections)
    own = {
        "program": f"adatad {__version__}",
        "made": {**result.made._asdict(), "model": as_text(result.made.model)},
        "selection": result.selection.as_json(),
        "video": {**result.video._asdict(), "file": as_text(result.video.file)},
        "formats": list(result.formats),
        "others": [_entry(found) for found in result.candidates if found not in chosen],
    }
    # On one line: there are thousands of candidates, and the file is for programs.
    write_json(result_path(folder, result.name), {**activitynet([result]), OWN: own}, indent=None)


def read_result(folder: Path, name: str) -> VideoResult | None:
    """Return a video's result; None if there is none. Raises ForeignFileError for another kind of file."""
    path = result_path(folder, name)
    if not path.exists():
        return None
    # Whatever lies there may be anything: all that can be wrong with it means the same.
    try:
        content = read_json(path)
        own = content[OWN]
        # Of one video, whatever it was called when it was written.
        (entries,) = content["results"].values()
        candidates = best_first([_segment(entry) for entry in [*entries, *own["others"]]])
        selection = Selection(**own["selection"])
        formats = tuple(map(str, own["formats"]))
        return VideoResult(name, candidates, Looked(**own["video"]), MadeBy(**own["made"]), selection, formats)
    except (FileError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, FileError) else f"{shown(path)}: wasn't written by adatad detect"
        raise ForeignFileError(f"{reason}; the result of a video would replace it: name another folder") from error
