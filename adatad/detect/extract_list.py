"""Features of the videos of a list, shared among ranks and tasks: `prepare` checks all before a model is loaded,
`carry_out` loads it and works."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from adatad.data.feature_file import (
    FORMATS,
    FeatureError,
    FeatureFacts,
    array_path,
    facts_path,
    read_feature_facts,
    write_features,
)
from adatad.detect.extractor import Extractor, find_extractor
from adatad.detect.output_folder import remove_unfinished
from adatad.detect.result_file import as_text, stamp_of
from adatad.detect.run_list import Failure, Report, work_through
from adatad.detect.shares import slurm_share, split
from adatad.detect.sources import SourceVideo, find_videos
from adatad.detect.video import open_file
from adatad.errors import UserError
from adatad.files import check_output_folder, shown
from adatad.library import Detector
from adatad.memory.stream import drawn_within
from adatad.models.backbone import PIXEL_MEAN, PIXEL_STD
from adatad.parallel.processes import Processes
from adatad.training.determinism import run_arithmetic
from adatad.training.video_features import Steps, features_of, steps_for


class ExtractRequest(NamedTuple):
    """Order of a user. stride, window: in frames, None for the default; fps: at which frames are counted; format: of
    the arrays; force: do all anew; dtype: of the numbers, float32 or float16."""

    model: Path
    sources: tuple[str, ...]
    output: Path
    spec: str | None = None
    weights: Path | None = None
    stride: int | None = None
    window: int | None = None
    fps: float | None = None
    format: str = "npy"
    force: bool = False
    dtype: str = "float32"


class ExtractPlan(NamedTuple):
    """Work to be done. videos: all of the list; todo: of this task's share; done: how many of it are done; notes: lines
    for the user."""

    extractor: Extractor
    steps: Steps
    videos: tuple[SourceVideo, ...]
    todo: tuple[SourceVideo, ...]
    done: int
    notes: tuple[str, ...]


class Extracted(NamedTuple):
    """Features of one video, on their way to the disk."""

    name: str
    features: torch.Tensor
    facts: FeatureFacts


def prepare(request: ExtractRequest) -> ExtractPlan:
    """Find the videos and the backbone, and say what is to be done. Raises UserError for anything that can't be
    used."""
    check_output_folder(request.output)
    found = find_videos(request.sources)
    extractor = find_extractor(request.model, request.spec, request.weights, request.fps)
    backbone, window = extractor.spec.model.backbone, extractor.spec.data.window
    sampling = max(1, window.stride_frames // window.frames_per_position)
    steps = steps_for(backbone, sampling, request.stride, request.window)
    share = slurm_share()
    mine = [found.videos[n] for n in split([video.size_bytes for video in found.videos], share.count)[share.index]]
    remove_unfinished(request.output, mine, endings=[".json", *(f".{form}" for form in FORMATS)])
    wanted = _settings(extractor, steps, request)
    todo = [video for video in mine if not _is_done(video, request, wanted)]
    notes = [*extractor.notes, *found.notes]
    return ExtractPlan(extractor, steps, found.videos, tuple(todo), len(mine) - len(todo), tuple(notes))


def _settings(extractor: Extractor, steps: Steps, request: ExtractRequest) -> dict[str, object]:
    """Return the facts that features of a request have in common."""
    data = extractor.spec.data
    return {
        "stride_frames": steps.stride,
        "window_frames": steps.span_frames(extractor.spec.model.backbone.tubelet),
        "format": request.format,
        "dtype": request.dtype,
        "weights_sha256": extractor.sha256,
        "preprocessing": {
            "size_pixels": data.size_pixels,
            "crop": "short side resized, centre",
            "mean": list(PIXEL_MEAN),
            "std": list(PIXEL_STD),
            "sampling_frames": steps.sampling,
            "kind": "stream" if steps.window is None else "windows",
            "fps": data.fps,
        },
    }


def _is_done(video: SourceVideo, request: ExtractRequest, wanted: dict[str, object]) -> bool:
    """Return whether a video's features are there. Raises UserError for those made otherwise, unless forced, and for
    files that aren't ours."""
    folder, path = request.output, facts_path(request.output, video.name)
    if not os.path.lexists(path):
        stray = array_path(folder, video.name, request.format)
        if os.path.lexists(stray):
            raise UserError(f"{shown(stray)}: wasn't written by adatad extract, which would replace it; name another "
                            "folder")  # fmt: skip
        return False
    try:
        facts = read_feature_facts(folder, video.name)
    except FeatureError as error:
        raise UserError(f"{error}; its features would replace it") from error
    if request.force:
        return False
    for key, value in wanted.items():
        if getattr(facts, key) != value:
            raise UserError(
                f"{shown(path)}: was made with {key} {getattr(facts, key)}, asked for is {value}; name another folder, "
                "or do all anew with --force"
            )
    # A changed video is done anew; one that has vanished stays as it is.
    there = stamp_of(video)
    same = there == (0, 0) or [facts.video.get("size_bytes"), facts.video.get("modified_ns")] == list(there)
    return same and array_path(folder, video.name, facts.format).is_file()


def carry_out(plan: ExtractPlan, request: ExtractRequest, processes: Processes) -> list[Failure]:
    """Extract what is to be done, this rank in its part; return the videos that failed on any rank, on every rank."""
    numbers = split([video.size_bytes for video in plan.todo], processes.world)[processes.rank]
    mine = [plan.todo[number] for number in numbers]
    failures: list[Failure] = []
    if mine:
        extract = extraction(plan.extractor.load(processes.device), plan, request)
        failures = work_through(mine, extract, lambda result: keep(result, request.output), not processes.is_main)
    return [failure for rank in processes.gather(failures) for failure in rank]


def keep(result: Extracted, folder: Path) -> None:
    """Write the features of one video. Raises FileError."""
    write_features(folder, result.name, result.features.numpy(), result.facts)


def extraction(
    detector: Detector, plan: ExtractPlan, request: ExtractRequest
) -> Callable[[SourceVideo, Report], Extracted]:
    """Return the function that extracts the features of one video, and raises UserError for one that can't be read."""
    from adatad import __version__

    spec, steps, backbone = detector.spec, plan.steps, detector.module.backbone
    span = steps.span_frames(backbone.tubelet)
    wanted = _settings(plan.extractor, steps, request)

    def extract(video: SourceVideo, report: Report) -> Extracted:
        """Extract from a video; report the seconds that are done."""
        size_bytes, modified_ns = stamp_of(video)
        parts: list[torch.Tensor] = []
        with open_file(video.path, spec.data) as (source, known):
            rows = features_of(backbone, detector._run, detector.device, source, steps)
            # Kernels as the spec asks for, but not around what else this process does.
            for part in drawn_within(lambda: run_arithmetic(spec.train, detector.device), rows):
                parts.append(part)
                report(sum(map(len, parts)) * steps.stride / known.fps)
        features = torch.cat(parts)
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"{video.path}: the backbone gives numbers that are none (NaN): its weights are damaged")
        features = features.to(getattr(torch, request.dtype))
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"{video.path}: its features are too large for float16; leave --dtype out")
        facts = FeatureFacts(
            fps=float(known.fps),
            stride_seconds=steps.stride / known.fps,
            first_seconds=span / 2 / known.fps,
            last_seconds=((len(features) - 1) * steps.stride + span / 2) / known.fps,
            duration_seconds=float(known.duration_seconds),
            positions=len(features),
            channels=features.shape[1],
            backbone=as_text(plan.extractor.name),
            preset=str(spec.model.backbone.preset),
            adapters=plan.extractor.has_adapters,
            video={"file": as_text(video.file), "size_bytes": size_bytes, "modified_ns": modified_ns},
            program=f"adatad {__version__}",
            **wanted,
        )
        return Extracted(video.name, features, facts)

    return extract


def summary(plan: ExtractPlan, failures: Sequence[Failure]) -> str:
    """Return a line on how many videos are done."""
    new = len(plan.todo) - len(failures)
    parts = [
        f"{new} done",
        *[f"{plan.done} done before"] * bool(plan.done),
        *[f"{len(failures)} failed"] * bool(failures),
    ]
    count = new + plan.done + len(failures)
    return f"{count} video{'s' * (count != 1)}: {', '.join(parts)}"
