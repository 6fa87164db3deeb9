"""Detections in the validation videos as streams: every frame goes through the backbone once (`evaluate.stream`).

Each rank detects in videos of its own, where an evaluation by windows has windows of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from adatad.data.annotations import Video
from adatad.data.dataset import SKIPPABLE_ERRORS, Skipped, SkippedVideos, open_annotated
from adatad.data.time_check import TimeLog, TimeNotes
from adatad.evaluation.postprocess import Detection
from adatad.models.detector import TemporalActionDetector
from adatad.parallel.processes import Processes
from adatad.progress_bar import progress
from adatad.spec import Spec
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS
from adatad.spec.sizes import adapter_reach
from adatad.training.resolve import ResolvedRun, SetupError
from adatad.training.validation import Detections
from adatad.training.video_detections import VideoDetector


def check_stream(spec: Spec, learns: bool) -> None:
    """Raise SetupError if the videos of an evaluation can't be streamed though `evaluate.stream` asks for it.

    spec: with the engine that was chosen; learns: an engine has the model.
    """
    if not spec.evaluate.stream:
        return
    backbone, parallel, off = spec.model.backbone, spec.parallel, "set evaluate.stream to false"
    if parallel.clip > 1:
        raise SetupError(
            f"evaluate.stream: ranks that share a window (parallel.clip {parallel.clip}) can't share a stream; {off}, "
            "or parallel.clip to 1"
        )
    if learns and parallel.engine in SHARDS_FROZEN_WEIGHTS:
        # Videos differ in length, and every gather of weights waits for all ranks.
        raise SetupError(
            f"evaluate.stream: parallel.engine {parallel.engine} gathers weights from all ranks, which would wait for "
            f"one another at every few clips of videos that differ in length; {off} for training, and stream in adatad "
            "test, where each rank holds all weights; or use the engine ddp, zero1 or zero2"
        )
    reach, planes = adapter_reach(backbone.adapter.kernel, backbone.adapter.dilation), backbone.clip_frames
    planes //= backbone.tubelet
    if backbone.mode == "adapter" and reach > planes:
        raise SetupError(
            f"evaluate.stream: the adapters reach {reach} tubelets to each side, further than one clip of {planes}; "
            f"{off}"
        )


def detect_streams(
    model: TemporalActionDetector,
    run: ResolvedRun,
    processes: Processes,
    skipped: SkippedVideos,
    after_window: Callable[[], None] | None = None,
    times: TimeLog | None = None,
) -> Detections:
    """Return the detections of every validation video, on every rank, as `validation.detect` does; arguments as there.

    model: without an engine's wrapper.
    """
    training = model.training
    model.eval()
    # The same code as `adatad detect`, so that both find the same.
    detector = VideoDetector(model, run, processes.device)
    # Whole videos: a stream can't be cut without seeing clips twice.
    mine = list(run.annotations.validation[processes.rank :: processes.world])
    windows = sum(len(detector.places(video, stream=True)) for video in mine)
    # Ranks talk after each window: all must have as many.
    most, done = max(processes.gather(windows)), 0
    found: Detections = {}
    missed: list[Skipped] = []
    notes = TimeNotes(run.spec.data)
    with progress("windows evaluated", windows, quiet=not processes.is_main) as bar:
        for video in mine:
            try:
                for detections in _windows_of(video, detector, notes, times):
                    found[video.name] = detections
                    done += 1
                    bar.advance()
                    if after_window:
                        after_window()
            except SKIPPABLE_ERRORS as error:
                if run.spec.data.on_error == "raise":
                    raise
                missed.append(Skipped(video.name, str(error)))
                # Part of a video's windows would count as all of it.
                found.pop(video.name, None)
    if after_window:
        for _ in range(most - done):
            after_window()
    model.train(training)
    skipped.add(item for part in processes.gather(missed) for item in part)
    if times:
        times.share(processes.gather)
    everything = {name: items for part in processes.gather(found) for name, items in part.items()}
    return dict(sorted(everything.items()))


def _windows_of(
    video: Video, detector: VideoDetector, notes: TimeNotes, times: TimeLog | None
) -> Iterator[list[Detection]]:
    """Yield the detections of a video after each of its windows: none until the last one, then all."""
    with open_annotated(detector.run.spec.data, video) as reader:
        if times:
            times.add(notes.notes(video, reader.timeline, reader.stamp))
        for part in detector.parts(reader, video, stream=True):
            yield part.whole or []
