"""Detection in the videos of a list, shared among ranks and tasks: `prepare` checks all before a model is loaded,
`carry_out` loads it and works."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from adatad.data.decode import open_video
from adatad.detect.known_model import KnownModel, examine
from adatad.detect.model_file import DEFAULT_THRESHOLD
from adatad.detect.output_folder import FolderPlan, plan, refuse_foreign_page, remove_unfinished, save
from adatad.detect.result_file import Looked, MadeBy, VideoResult, stamp_of
from adatad.detect.run_list import Failure, Report, failure_of, work_through
from adatad.detect.selection import Selection, best_first
from adatad.detect.shares import ListShare, slurm_share, split
from adatad.detect.sources import SourceVideo, find_videos
from adatad.detect.video import check_there
from adatad.errors import UserError
from adatad.files import check_output_folder, shown
from adatad.labels.problems import LabelError
from adatad.labels.records import Segment
from adatad.library import Detector, load_detector
from adatad.parallel.processes import Processes
from adatad.spec.text import nearest

BEST = "best"
"""The threshold that stands for the model's own."""


@dataclass(frozen=True)
class Request:
    """Order of a user. spec: of a model that doesn't hold its own; output: None where results are returned alone;
    threshold: a score, BEST, or None for the model's own if it has one; classes: names, or several with commas between
    them; windows: instead of every frame through the backbone once; force: do all anew; many: False where several
    videos are an error; page: draw one in the output folder."""

    model: Path
    sources: tuple[str, ...]
    spec: str | None = None
    output: Path | None = None
    formats: tuple[str, ...] = ()
    threshold: float | str | None = None
    classes: tuple[str, ...] | None = None
    top_k: int | None = None
    windows: bool = False
    force: bool = False
    many: bool = True
    page: bool = True


class Prepared(NamedTuple):
    """Videos and model that were found, and the work to be done. videos: all of the list; plan: of this task's share;
    notes: lines for the user."""

    model: KnownModel
    selection: Selection
    videos: tuple[SourceVideo, ...]
    share: ListShare
    plan: FolderPlan
    notes: tuple[str, ...]


class Done(NamedTuple):
    """Outcome of a list. results: new ones, where no folder holds them; detected: how many videos were worked
    through; video_seconds: their length; seconds: how long the slowest rank took."""

    results: tuple[VideoResult, ...]
    failures: tuple[Failure, ...]
    detected: int
    video_seconds: float
    seconds: float


def prepare(request: Request) -> Prepared:
    """Find the videos and the model, and say what is to be done. Raises UserError for anything that can't be used."""
    # Before the model is hashed, which may take a minute.
    if request.output is not None:
        check_output_folder(request.output)
    found = find_videos(request.sources)
    if len(found.videos) > 1 and not request.many:
        raise UserError(f"{len(found.videos)} videos: --output FOLDER writes what is found, --json prints it")
    # After the videos: a mistyped folder is said at once.
    model = examine(request.model, request.spec)
    selection, notes = selection_of(request, model)
    # What is returned alone is all that was asked for, whoever else is at work.
    share = slurm_share() if request.output else ListShare(0, 1)
    mine = [found.videos[n] for n in split([video.size_bytes for video in found.videos], share.count)[share.index]]
    if request.output is None:
        work = FolderPlan(todo=mine)
    else:
        if request.page:
            refuse_foreign_page(request.output)
        remove_unfinished(request.output, mine)
        work = plan(mine, request.output, made_by(model, request), selection, request.formats, request.force)
    lines = (*model.notes, *notes, *found.notes, *work.notes)
    if share.count > 1:
        part = f"part {share.index + 1} of {share.count} of the list"
        lines = (*lines, f"{part}: {len(mine)} of {len(found.videos)} videos")
    return Prepared(model, selection, found.videos, share, work, lines)


def selection_of(request: Request, model: KnownModel) -> tuple[Selection, list[str]]:
    """Return what is kept of candidates, and lines on what was chosen. Raises UserError for a class that the model
    doesn't know, and thresholds that it doesn't have."""
    classes = None if request.classes is None else tuple(known_classes(request.classes, model))
    threshold, notes = request.threshold, []
    reason = f" ({model.no_thresholds})" if model.no_thresholds else ""
    none_because = f"{shown(model.name)} has no thresholds of its own{reason}"
    if threshold == BEST and model.thresholds is None:
        raise UserError(f"--threshold best: {none_because}; give a number")
    if threshold in (None, BEST):
        threshold = model.thresholds
    if threshold is None:
        threshold = DEFAULT_THRESHOLD
        notes.append(f"{none_because}: {threshold} for all classes (--threshold sets another)")
    return Selection(threshold, classes, request.top_k), notes


def known_classes(texts: Sequence[str], model: KnownModel) -> list[str]:
    """Return the classes that texts name, each a class or several with commas between them. Raises UserError for one
    that the model doesn't know, with a near one."""
    found: list[str] = []
    for text in texts:
        # A class's own name may hold commas.
        for name in [text] if text in model.labels else map(str.strip, text.split(",")):
            if name not in model.labels:
                near = nearest(name, model.labels)
                hint = f"did you mean {near}?" if near else f"it knows {', '.join(map(shown, model.labels))}"
                raise UserError(f"--classes: {shown(model.name)} knows no class {shown(name, 60)!r}; {hint}")
            found.append(name)
    # A class that is named twice is one class.
    return list(dict.fromkeys(found))


def carry_out(prepared: Prepared, request: Request, processes: Processes) -> Done:
    """Detect in what is to be done, this rank in its part; return what came of it on all ranks, on every rank."""
    todo, results, lengths, took_seconds = prepared.plan.todo, [], [], 0.0
    mine = [todo[number] for number in split([video.size_bytes for video in todo], processes.world)[processes.rank]]

    def keep(result: VideoResult) -> None:
        """Write a result, or hold it where no folder does."""
        # For the speed alone: headers may say another length than the frames have.
        lengths.append(result.video.duration_seconds or 0.0)
        if request.output is None:
            results.append(result)
        else:
            save(request.output, result, request.formats)

    # Without a model, and so at once.
    failures = [failed for result in prepared.plan.renew if processes.is_main and (failed := renewed(result, request))]
    if mine:
        known = prepared.model
        detector = load_detector(known.checkpoint, known.spec, known.outputs, processes.device)
        detect = detection(detector, made_by(known, request), prepared.selection)
        began = time.monotonic()
        failures += work_through(mine, detect, keep, quiet=not processes.is_main)
        took_seconds = time.monotonic() - began
    # Every rank comes here, also one that had nothing to do.
    ranks = processes.gather((results, failures, lengths, [took_seconds]))
    results, failures, lengths, took = ([item for rank in ranks for item in rank[part]] for part in range(4))
    # Whichever rank did a video, it stands where the list has it.
    place = {video.file: number for number, video in enumerate(prepared.videos)}
    results.sort(key=lambda result: place[result.video.file])
    failures.sort(key=lambda failure: place[failure.file])
    return Done(tuple(results), tuple(failures), len(lengths), sum(lengths), max(took))


def made_by(model: KnownModel, request: Request) -> MadeBy:
    """Return what candidates of a request follow from."""
    return MadeBy(model.fingerprint, model.name, request.windows)


def renewed(result: VideoResult, request: Request) -> Failure | None:
    """Write a result anew by its selection; return the failure, if a form can't hold it."""
    try:
        save(request.output, result, request.formats)
    except LabelError as error:
        return failure_of(result.video.file, error)
    return None


def detection(detector: Detector, made: MadeBy, selection: Selection) -> Callable[[SourceVideo, Report], VideoResult]:
    """Return the function that detects in one video, and raises UserError for one that can't be read."""

    def detect(video: SourceVideo, report: Report) -> VideoResult:
        """Detect in a video; report the seconds that are done."""
        check_there(video.path)
        size_bytes, modified_ns = stamp_of(video)
        # Facts for other tools, from the packets that are read anyway.
        with open_video(video.path) as reader:
            frame_count, fps = reader.frame_count, reader.timeline.usual_fps
        # Parts come as windows are done; the last one holds all that was found.
        for part in detector.parts(video.path, windows=made.windows):
            report(part.end_seconds)
        candidates = [Segment(item["label"], *item["segment"], item["score"]) for item in part.whole]
        numbers = [number for c in candidates for number in (c.start_seconds, c.end_seconds, c.score)]
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"{video.path}: the model gives numbers that are none (NaN): its weights are damaged")
        looked = Looked(video.file, size_bytes, modified_ns, part.end_seconds, fps or None, frame_count)
        return VideoResult(video.name, best_first(candidates), looked, made, selection)

    return detect
