"""Output of `adatad detect` at its end: the page of detections, and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from rich.table import Table

from adatad.detect.detect_list import Done, Prepared, Request
from adatad.detect.detections_page import PageVideo, write_page
from adatad.detect.output_folder import PAGE
from adatad.detect.result_file import ForeignFileError, VideoResult, activitynet, is_changed, read_result
from adatad.detect.run_list import Failure
from adatad.files import shown
from adatad.labels.forms import read_labels
from adatad.labels.records import Segment
from adatad.printing import print_table

MAX_PAGE_CANDIDATES = 300
"""Candidates of a video that the page can show when its slider goes down, beside all that count."""

Truth = Mapping[str, Sequence[Segment]]
"""Annotated segments by the name of their video."""


def read_truth(path: Path) -> tuple[dict[str, Sequence[Segment]], list[str]]:
    """Return the segments of an annotation file of any form, by the name of their video, and lines on how it was read.
    Raises LabelError."""
    notes: list[str] = []
    videos = read_labels(path, notes=notes)
    return {video.name: video.segments for video in videos}, [f"{shown(path)}: {line}" for line in notes]


def all_results(prepared: Prepared, folder: Path, failures: Sequence[Failure] = ()) -> list[VideoResult]:
    """Return the results of a list's videos that are there by now, those that other tasks have made among them. What
    failed has none, though one of the video before it changed may be there."""
    found, failed = [], {failure.file for failure in failures}
    for video in prepared.videos:
        # What lies in the place of another task's result is for that task to refuse.
        with suppress(ForeignFileError):
            result = read_result(folder, video.name)
            old = result and video.file in failed and is_changed(result, video)
            if result and not old and result.made.fingerprint == prepared.model.fingerprint:
                found.append(result)
    return found


def draw(prepared: Prepared, results: Sequence[VideoResult], folder: Path, truth: Truth | None) -> Path:
    """Write the page of results; return its path."""
    paths = {video.name: str(video.path) for video in prepared.videos}
    videos = []
    for result in results:
        # Products with a classifier's scores may lie outside of the slider's range, which thresholds don't.
        found = [replace(s, score=min(max(s.score or 0.0, 0.0), 1.0)) for s in on_page(result)]
        labels = replace(result.labels(found), file=paths[result.name])
        # Under the results' name, or the file's, where videos of one name are told apart by more.
        annotated = None if truth is None else truth.get(labels.name, truth.get(Path(paths[result.name]).stem))
        videos.append(PageVideo(labels, annotated))
    if truth is not None and all(video.truth is None for video in videos):
        print(
            "note: --ground-truth annotates none of these videos; names are compared without endings", file=sys.stderr
        )
    least, classes = prepared.selection.threshold, prepared.selection.classes or prepared.model.labels
    thresholds = dict(least) if isinstance(least, Mapping) else dict.fromkeys(classes, least)
    # Which of many folders this is: nothing else on the page says what found it.
    facts = {"model": prepared.model.name}
    return write_page(folder / PAGE, videos, facts=facts, classes=classes, thresholds=thresholds)


def on_page(result: VideoResult) -> tuple[Segment, ...]:
    """Return what the page can show of a result: what counts, and candidates for a slider that goes down."""
    selection = result.selection
    # Of more the best K would be others.
    if selection.top_k is not None:
        return result.detections
    best = replace(selection, threshold=0.0, top_k=MAX_PAGE_CANDIDATES).of(result.candidates)
    known = set(best)
    return (*best, *(found for found in result.detections if found not in known))


def show(prepared: Prepared, request: Request, done: Done, as_json: bool, truth: Truth | None) -> None:
    """Write the page, and print what was found, or where it is."""
    folder = request.output
    results = done.results if folder is None else all_results(prepared, folder, done.failures)
    # Where standard output holds the document, lines go beside it.
    out = sys.stderr if as_json else sys.stdout
    if done.failures:
        print_failures(done, out)
    if folder is not None:
        print(summary_line(prepared, done), file=out)
        print(f"{'detections':12} {shown(folder)}", file=out)
        if request.page and results:
            print(f"{'page':12} {shown(draw(prepared, results, folder, truth))}", file=out)
    if as_json:
        print(json.dumps(activitynet(results), indent=1))
    elif folder is None:
        for result in results:
            print_detections(result)


def print_failures(done: Done, out: TextIO) -> None:
    """Print a table of the videos that couldn't be worked through."""
    table = Table("video", "why not")
    for failure in done.failures:
        table.add_row(shown(failure.file), failure.reason)
    print_table(table, out)


def summary_line(prepared: Prepared, done: Done) -> str:
    """Return a line on how many videos are done, and how fast that was."""
    failed, before = len(done.failures), len(prepared.plan.done) + len(prepared.plan.renew)
    parts = [f"{done.detected} done"]
    parts += [f"{before} done before"] * bool(before) + [f"{failed} failed"] * bool(failed)
    count = len(prepared.plan.todo) + before
    speed = done.video_seconds / max(done.seconds, 1e-9)
    took = f"; {done.video_seconds:,.0f} s of video in {done.seconds:,.0f} s, {speed:.1f}x real time"
    return f"{count} video{'s' * (count != 1)}: {', '.join(parts)}{took if done.detected else ''}"


def print_detections(result: VideoResult) -> None:
    """Print what was found in one video as a table, in the order of time."""
    found = sorted(result.detections, key=lambda segment: (segment.start_seconds, segment.end_seconds))
    if not found:
        # What to lower the threshold to.
        best = max((segment.score for segment in result.candidates), default=0.0)
        print(f"{shown(result.video.file)}: nothing found above the threshold; the best score is {best:.3f}")
        return
    table = Table("start", "end", "label", "score", title=shown(result.video.file))
    for segment in found:
        times = (clock(segment.start_seconds), clock(segment.end_seconds))
        table.add_row(*times, shown(segment.label), f"{segment.score:.3f}")
    print_table(table)


def clock(seconds: float) -> str:
    """Return a time as players show it, with hundredths: 1:02:03.45."""
    # Rounded first, so that 59.999 s is 1:00.00 and not 0:60.00.
    hundredths = round(max(seconds, 0.0) * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{start}:{rest / 100:05.2f}"
