"""Labels of own videos, brought to the video files that they mean and to seconds of these files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from adatad.data.prepare.check import MAX_LATE_SECONDS
from adatad.data.prepare.label_sources import Labelled, Row, Sources
from adatad.data.prepare.video_files import Folder, VideoFile, unfit
from adatad.data.video_index import Heartbeat, VideoError, VideoIndex, read_index
from adatad.errors import UserError
from adatad.files import listed, shown
from adatad.labels.names import WINDOWS_PATH
from adatad.labels.text_table import TableError, counted
from adatad.progress_bar import progress

RATE_TOLERANCE = 0.01
"""Share of a file's frame rate by which the rate in a table may differ and be the same."""
MAX_LISTED = 10


class VideoInfo(NamedTuple):
    """Length and size of a video file. fps: its usual frame rate."""

    frames: int
    seconds: float
    short_side_pixels: int
    fps: float


@dataclass
class Placed:
    """Video files with their instances, in seconds, and what the labels say of their subset (empty: nothing)."""

    rows: dict[VideoFile, list[Row]] = field(default_factory=dict)
    info: dict[VideoFile, VideoInfo] = field(default_factory=dict)
    subsets: dict[VideoFile, set[str]] = field(default_factory=dict)


def place_labels(sources: Sources, folder: Folder, skip_missing: bool = False, keep_unlabelled: bool = False) -> Placed:
    """Find the files and the seconds that labels mean. Appends remarks and problems to those of `sources`.

    skip_missing: labels whose video isn't there are left out and counted; keep_unlabelled: videos without labels are
    taken as ones in which nothing happens.
    """
    placed = Placed()
    labelled = _by_file(sources, folder, skip_missing)
    if keep_unlabelled:
        labelled |= {file: [] for file in folder.videos if file not in labelled}
    other_rate: list[str] = []
    with progress("videos looked at", len(labelled)) as bar:
        for file, videos in sorted(labelled.items()):
            try:
                index = read_index(file.path, Heartbeat())
                placed.info[file] = _video_info(index)
            except UserError as error:
                sources.wrong.append(str(error))
                continue
            finally:
                bar.advance()
            rows = [row for video in videos for row in video.rows]
            other_rate += [file.relative] if any(_counts_otherwise(row, index) for row in rows) else []
            placed.rows[file], problems = _in_seconds(rows, index, placed.info[file].seconds)
            sources.wrong += problems
            placed.subsets[file] = {row.subset for row in rows} | {video.subset for video in videos if not video.rows}
    _say_what_was_found(sources, placed, labelled, folder, keep_unlabelled, other_rate)
    return placed


def _say_what_was_found(
    sources: Sources,
    placed: Placed,
    labelled: dict[VideoFile, list[Labelled]],
    folder: Folder,
    keep_unlabelled: bool,
    other_rate: list[str],
) -> None:
    """Append remarks on rates, copies, scores, and videos that are labelled several times or not at all."""
    notes = sources.notes
    if other_rate:
        notes.append(
            f"frames are counted at another rate than the file's in {counted(len(other_rate), 'video')}, where frame k "
            f"is at k / fps seconds: {listed(other_rate)}"
        )
    repeated = [place for file in placed.rows for place in _take_out_copies(placed.rows, file)]
    if repeated:
        notes.append(f"{counted(len(repeated), 'row')} left out that stood there before: {listed(repeated)}")
    scored = sum(row.has_score for rows in placed.rows.values() for row in rows)
    if scored:
        notes.append(f"{counted(scored, 'instance')} with a score, as detections have; all are taken as labels")
    several = [file.relative for file, videos in labelled.items() if len({video.source for video in videos}) > 1]
    if several:
        notes.append(f"{counted(len(several), 'video')} labelled in several files, all taken: {listed(several)}")
    unused = [file.relative for file in folder.videos if not labelled.get(file)]
    if unused and keep_unlabelled:
        notes.append(f"{counted(len(unused), 'video')} without labels, in which nothing happens: {listed(unused)}")
    elif unused and not sources.wrong:
        notes.append(
            f"{counted(len(unused), 'video')} of {folder.path} left out, as no label is of them: {listed(unused)} "
            "(--unlabelled keep takes them as videos in which nothing happens)"
        )


def _by_file(sources: Sources, folder: Folder, skip_missing: bool) -> dict[VideoFile, list[Labelled]]:
    """Return what is labelled by the file that it means, and tell what is wrong with names."""
    found: dict[VideoFile, list[Labelled]] = defaultdict(list)
    missing: list[str] = []
    for video in sources.videos:
        file, error = _find(folder, video.names)
        if file is not None:
            problem = unfit(file)
            sources.wrong += [problem] if problem else []
            found[file].append(video)
        elif skip_missing:
            missing.append(f"{shown(video.names[0])} ({counted(len(video.rows), 'instance')})")
        else:
            sources.wrong.append(f"{video.place}: {error}")
    if missing:
        sources.notes.append(
            f"{counted(len(missing), 'video')} left out with their labels, as {folder.path} has no such file: "
            f"{listed(missing, MAX_LISTED)}"
        )
    for file, videos in found.items():
        names = _disputed_names(videos)
        if names:
            sources.wrong.append(
                f"{listed([repr(name) for name in names])} would all be the file {file.relative}; which of them is it?"
            )
    return dict(found)


def _find(folder: Folder, names: Iterable[str]) -> tuple[VideoFile | None, str]:
    """Return the file that the first fitting name means; else None and what is wrong with the first name."""
    first = ""
    for name in names:
        try:
            return folder.find(name), ""
        except TableError as error:
            first = first or str(error)
    return None, first


def _disputed_names(videos: list[Labelled]) -> list[str]:
    """Return names that mean one file, but lie in different folders: "a/k0.mp4" and "b/k0.mp4" are two videos, of which
    only one is here. Whole paths of several files come from several machines, and tell nothing."""
    by_place: dict[int, set[str]] = defaultdict(set)
    for video in videos:
        name = video.names[0].replace("\\", "/")
        is_whole = name.startswith("/") or WINDOWS_PATH.match(name) is not None
        by_place[video.source if is_whole else -1].add(name)
    for names in by_place.values():
        folders = {name.rpartition("/")[0].strip("./") for name in names} - {""}
        longest = max(folders, key=len, default="")
        if not all(f"/{longest}".endswith(f"/{other}") for other in folders):
            return sorted(names)
    return []


def _video_info(index: VideoIndex) -> VideoInfo:
    """Return length and size of a video. Raises VideoError for a file that doesn't give its length."""
    seconds = index.timeline.duration_seconds
    if not seconds:
        why = index.unreliable_because or "it has one frame"
        raise VideoError(f"{index.path}: doesn't tell how long it lasts ({why}); transcode it to H.264 in MP4")
    fps = index.timeline.usual_fps
    return VideoInfo(index.timeline.count_at(fps), seconds, min(index.width, index.height), fps)


def _in_seconds(rows: list[Row], index: VideoIndex, seconds: float) -> tuple[list[Row], list[str]]:
    """Return a video's rows with times in its seconds, and what is wrong with the others."""
    name = shown(index.path.name)
    # One more than frames: an instance may end where the video does.
    times = [*index.timeline.seconds, seconds] if any(row.unit == "frames" for row in rows) else []
    placed, wrong = [], []
    for row in rows:
        start, end = row.start, row.end
        # A rate of the table's own: frame k is at k / fps, whatever the file's frames are.
        if _counts_otherwise(row, index):
            start, end = start / row.fps, end / row.fps
        elif row.unit == "frames":
            if end > index.frame_count:
                wrong.append(f"{row.place}: ends at frame {end:g}, {name} has {index.frame_count} frames")
                continue
            start, end = float(times[int(start)]), float(times[int(end)])
        if start >= seconds:
            wrong.append(f"{row.place}: begins at {start:g} s, after {name} has ended at {seconds:.2f} s")
        elif end > seconds + MAX_LATE_SECONDS:
            wrong.append(f"{row.place}: ends at {end:g} s, {name} at {seconds:.2f} s")
        else:
            placed.append(row._replace(start=start, end=min(end, seconds), unit="seconds"))
    return placed, wrong


def _counts_otherwise(row: Row, index: VideoIndex) -> bool:
    """Return whether a row counts frames at another rate than its file's: the labels were made on another copy."""
    own = index.timeline.usual_fps
    return row.unit == "frames" and row.fps > 0 and not abs(row.fps - own) <= RATE_TOLERANCE * own


def _take_out_copies(by_file: dict[VideoFile, list[Row]], file: VideoFile) -> list[str]:
    """Keep the first of equal instances of a video; return the places of the others."""
    seen: set[tuple[float, float, str]] = set()
    kept, copies = [], []
    for row in by_file[file]:
        key = row.start, row.end, row.label
        if key in seen:
            copies.append(row.place)
        else:
            kept.append(row)
        seen.add(key)
    by_file[file] = kept
    return copies
