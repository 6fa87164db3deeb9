"""What has to be fetched before a spec can run: files that aren't there or are damaged, and where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from adatad.convert.weight_file import read_header, read_weight_file
from adatad.data.dataset import video_path
from adatad.errors import UserError
from adatad.spec import Spec
from adatad.spec.experiments import TRAINED, about_bytes, digest_start, drive, how_made, where_data, where_published
from adatad.training.checkpoint_check import why_broken
from adatad.training.resolve import annotations_for

NAMED = 10
"""Missing videos that are named; the rest is counted."""
READ_BYTES = 1 << 24


def missing(spec: Spec, checkpoint: Path | None = None) -> list[str]:
    """A line for everything that isn't there. checkpoint: what is tested, so that no training videos are needed."""
    files = [*_files(spec)]
    return [*_checkpoint(spec, checkpoint), *_weights(spec), *files, *_videos(spec, checkpoint is None, files)]


def _checkpoint(spec: Spec, checkpoint: Path | None) -> Iterator[str]:
    if checkpoint is not None and not checkpoint.exists():
        file = TRAINED.get(spec.name)
        yield f"checkpoint {checkpoint}{f'; of OpenTAD, published: {drive(file, str(checkpoint))}' if file else ''}"
        return
    try:
        if checkpoint is not None and (reason := _unusable(checkpoint)):
            yield f"checkpoint {checkpoint}: {reason}"
    except UserError as error:
        yield f"checkpoint {error}"


def _unusable(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that is there. Raises UserError for what is none."""
    if checkpoint.is_dir():
        return why_broken(checkpoint)
    if checkpoint.suffix == ".safetensors":
        read_header(checkpoint)
    else:
        # Mapped, not read.
        read_weight_file(checkpoint)
    return None


def _weights(spec: Spec) -> Iterator[str]:
    backbone = spec.model.backbone
    if backbone.weights in (None, "random"):
        return
    path, start = Path(backbone.weights), digest_start(backbone.weights)
    if not path.is_file():
        known = f", SHA-256 begins with {start}" if start else ""
        yield f"weights {path} (about {about_bytes(backbone) / 1e6:.0f} MB{known}){where_published(str(path))}"
    elif start and not (found := _digest(path)).startswith(start):
        yield f"weights {path}: damaged: SHA-256 begins with {found[:8]}, not {start}{where_published(str(path))}"
    else:
        try:
            read_weight_file(path)
        except UserError as error:
            yield f"weights {error}{where_published(str(path))}"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


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
        named = ", ".join(gone[:NAMED]) + (f" and {len(gone) - NAMED} more" if len(gone) > NAMED else "")
        yield f"{len(gone)} of {len(wanted)} videos in {spec.data.videos}: {named}{where}"
