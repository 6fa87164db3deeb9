"""Train or test a published experiment: what has to be fetched first, and its figures beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from adatad.convert.weight_file import read_header, read_weight_file
from adatad.data.dataset import video_path
from adatad.errors import UserError
from adatad.evaluation.score_files import read_detections
from adatad.files import FileError, check_output_folder, listed, read_json, write_json
from adatad.parallel.processes import Processes, is_first_rank
from adatad.report.scores import Reproduction, write_reproduction
from adatad.spec import Spec, to_yaml
from adatad.spec.downloads import about_bytes, digest_start, how_made, where_data, where_published
from adatad.spec.published import trained_model
from adatad.training.checkpoint_check import sha256, why_broken
from adatad.training.resolve import annotations_for, resolve_run
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.score import score_checkpoint
from adatad.training.validation import score_summary

TESTED = "tested.json"
"""File of the checkpoint, its files and the spec that detections.json beside it comes from."""


class MissingFilesError(UserError):
    """Files that an experiment needs and that aren't there."""


def reproduce(spec: Spec, checkpoint: Path | None = None) -> tuple[dict[str, Any], Reproduction | None]:
    """Return the scores, and on the first rank what they come to beside the published ones.

    checkpoint: test it instead of training. Raises MissingFilesError before anything is done.
    """
    lines = missing(spec, checkpoint)
    if lines:
        rows = "".join(f"\n  {line}" for line in lines)
        raise MissingFilesError(f"{spec.name} can't run yet; {len(lines)} things are missing:{rows}")
    folder = run_directory(spec).path
    if checkpoint is None:
        result, how = train(spec, resume="auto"), f"Trained here: {folder}."
    else:
        folder = folder.with_name(f"{folder.name}_test")
        result, how = _test(spec, checkpoint, folder), f"Tested: {checkpoint}."
    return result, write_reproduction(folder, spec, result, how) if is_first_rank() else None


def _test(spec: Spec, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Return the scores of a checkpoint, of the detections that were kept if the same one has been tested before."""
    detections, record = folder / "detections.json", folder / TESTED
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file()) if checkpoint.is_dir() else [checkpoint]
    # Size in bytes and time of change in ns: a checksum of gigabytes would take longer than the scoring it saves.
    stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()}
    wanted = {"checkpoint": str(checkpoint.resolve()), "files": stamps, "spec": to_yaml(spec)}
    # Testing takes hours, scoring seconds: a command that is typed again scores what it has found before. Files that
    # were cut or changed since don't count.
    with suppress(FileError):
        if record.is_file() and detections.is_file() and read_json(record) == wanted:
            annotations = annotations_for(spec, training=False)
            run = resolve_run(spec, Processes(0, 1, torch.device("cpu")), annotations)
            return score_summary(read_detections(detections), run)
    check_output_folder(folder)
    if is_first_rank():
        record.unlink(missing_ok=True)
    result = score_checkpoint(spec, checkpoint, detections)
    if is_first_rank():
        # Last: detections that were cut off by a stop must not count.
        write_json(record, wanted)
    return result


MAX_LISTED_VIDEOS = 10
"""Missing videos that a line names; the rest is counted."""


def missing(spec: Spec, checkpoint: Path | None = None) -> list[str]:
    """Return a line for everything that isn't there. checkpoint: what is tested, so that no training videos are
    needed."""
    files = [*_files(spec)]
    return [*_checkpoint(spec, checkpoint), *_weights(spec), *files, *_videos(spec, checkpoint is None, files)]


def _checkpoint(spec: Spec, checkpoint: Path | None) -> Iterator[str]:
    if checkpoint is not None and not checkpoint.exists():
        entry = trained_model(spec.name)
        # To its own name: the file that a user names may be one of their own.
        fetch = f"; OpenTAD's, which comes to {entry.path}: {entry.fetch()}" if entry else ""
        yield f"checkpoint {checkpoint}{fetch}"
        return
    if checkpoint is None:
        return
    try:
        if checkpoint.is_dir():
            if reason := why_broken(checkpoint):
                yield f"checkpoint {checkpoint}: {reason}"
        elif checkpoint.suffix == ".safetensors":
            read_header(checkpoint)
        else:
            # torch maps the file: its pages aren't read here.
            read_weight_file(checkpoint)
    except UserError as error:
        yield f"checkpoint {error}"


def _weights(spec: Spec) -> Iterator[str]:
    backbone = spec.model.backbone
    # Nothing to fetch; whether training may begin without weights is for the model to say.
    if backbone.weights in (None, "random"):
        return
    path, start = Path(backbone.weights), digest_start(backbone.weights)
    if not path.is_file():
        known = f", SHA-256 begins with {start}" if start else ""
        yield f"weights {path} (about {about_bytes(backbone) / 1e6:.0f} MB{known}){where_published(str(path))}"
    elif start and not (found := sha256(path)).startswith(start):
        yield f"weights {path}: damaged: SHA-256 begins with {found[:8]}, not {start}{where_published(str(path))}"
    else:
        try:
            read_weight_file(path)
        except UserError as error:
            yield f"weights {error}{where_published(str(path))}"


def _files(spec: Spec) -> Iterator[str]:
    classes, blocked, classifier = spec.data.classes, spec.data.blocked_videos, spec.postprocess.classifier
    for what, path in (
        ("annotations", spec.data.annotations),
        ("class list", classes if isinstance(classes, str) else None),
        ("list of blocked videos", blocked if isinstance(blocked, str) else None),
        ("list of videos that aren't scored", spec.evaluate.blocked_videos),
        ("classifier's scores", classifier.file if classifier else None),
    ):
        if path is not None and not Path(path).is_file():
            yield f"{what} {path}{how_made(path)}"


def _videos(spec: Spec, training: bool, files: list[str]) -> Iterator[str]:
    where = where_data(spec.data.videos)
    if not Path(spec.data.videos).is_dir():
        yield f"videos, folder {spec.data.videos}{where}"
        return
    # Which videos there should be is in the annotations, which are missing, too.
    if files:
        return
    try:
        annotations = annotations_for(spec, training)
    except UserError as error:
        yield str(error)
        return
    wanted = (*annotations.train, *annotations.validation) if training else annotations.validation
    gone = [path.name for video in wanted if not (path := video_path(spec.data, video.name)).is_file()]
    if gone:
        yield (f"{len(gone)} of {len(wanted)} videos in {spec.data.videos}: {listed(gone, MAX_LISTED_VIDEOS)}{where}")
