"""Train or test a published row, going on from where an earlier attempt stopped, and hold it against its figures."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from adatad.errors import UserError
from adatad.evaluation.score_files import read_detections
from adatad.files import FileError, check_output_folder, read_json, write_json
from adatad.parallel.processes import Processes, is_first_rank
from adatad.report.reproduction import Reproduction, write_reproduction
from adatad.spec import Spec, to_yaml
from adatad.training.missing import missing
from adatad.training.resolve import annotations_for, resolve_run
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.score import score_checkpoint
from adatad.training.validation import scores

TESTED = "tested.json"
"""What detections.json beside it comes from."""


class MissingFilesError(UserError):
    """Files that a row needs and that aren't there."""


def reproduce(spec: Spec, checkpoint: Path | None = None) -> tuple[dict[str, Any], Reproduction | None]:
    """The scores, and on the first rank what they come to beside the published ones.

    checkpoint: test it instead of training. Raises MissingFilesError before anything is done.
    """
    lines = missing(spec, checkpoint)
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise MissingFilesError(f"{spec.name} can't run yet; {len(lines)} things are missing:{listed}")
    folder = run_directory(spec).path
    if checkpoint is None:
        result, how = train(spec, resume="auto"), f"Trained here: {folder}."
    else:
        folder = folder.with_name(f"{folder.name}_test")
        result, how = _test(spec, checkpoint, folder), f"Tested: {checkpoint}."
    return result, write_reproduction(folder, spec, result, how) if is_first_rank() else None


def _test(spec: Spec, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Scores of a checkpoint; where the same one has been tested before, from the detections that were kept."""
    detections, record = folder / "detections.json", folder / TESTED
    wanted = {"checkpoint": str(checkpoint.resolve()), "files": _stamps(checkpoint), "spec": to_yaml(spec)}
    # Files that were cut or changed since don't count.
    with suppress(FileError):
        if record.is_file() and detections.is_file() and read_json(record) == wanted:
            annotations = annotations_for(spec, training=False)
            run = resolve_run(spec, Processes(0, 1, torch.device("cpu")), annotations)
            return scores(read_detections(detections), run)
    check_output_folder(folder)
    if is_first_rank():
        record.unlink(missing_ok=True)
    result = score_checkpoint(spec, checkpoint, detections)
    if is_first_rank():
        # Last: detections that were cut off by a stop must not count.
        write_json(record, wanted)
    return result


def _stamps(checkpoint: Path) -> dict[str, list[int]]:
    """Size and time of change of a checkpoint's files."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file()) if checkpoint.is_dir() else [checkpoint]
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()}
