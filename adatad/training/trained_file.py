"""Trained weights as users name them: a run, a checkpoint, an exported file, OpenTAD's checkpoint; and what each is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from adatad.convert.weight_file import WeightsError, brief, read_header, read_weight_file
from adatad.files import FileError, read_start
from adatad.spec import Spec, SpecError, load
from adatad.training.checkpoint import BEST, all_checkpoints, newest_checkpoint
from adatad.training.checkpoint_check import MANIFEST, SPEC, read_spec_text, read_state, spec_problem, why_broken
from adatad.training.model_facts import MERGED, CheckpointError, ModelFacts, facts_in_header

PROBLEMS_SHOWN = 5
"""Of a spec that can't be used."""


class TrainedFile(NamedTuple):
    """What a checkpoint or a file of weights says of itself; None where it says nothing (older files, OpenTAD's)."""

    facts: ModelFacts | None
    spec_yaml: str | None


def find_checkpoint(named: Path) -> tuple[Path, list[str]]:
    """The checkpoint or file of weights that a path means, and lines on what was chosen: of a run, or of its folder
    `checkpoints`, the best one, or the newest whole one where there is no best. Raises CheckpointError."""
    try:
        if not named.is_dir():
            # Says what is wrong with it, if it is no file.
            read_start(named)
            return named, []
        folder = named / "checkpoints" if (named / "checkpoints").is_dir() else named
        holds_checkpoints = bool(all_checkpoints(folder)) or (folder / BEST).exists()
    except FileError as error:
        raise CheckpointError(f"{error}; expected a run, a checkpoint of it, or a file of weights") from error
    except OSError as error:
        raise CheckpointError(f"{named}: can't be read: {error.strerror}") from error
    if (named / MANIFEST).exists() or not holds_checkpoints:
        return named, []
    lines = []
    if (folder / BEST).is_dir():
        reason = why_broken(folder / BEST)
        if reason is None:
            return folder / BEST, [f"{named}: its best checkpoint, {(folder / BEST).resolve().name}, is taken"]
        lines.append(f"skipped {folder / BEST}: {reason}")
    newest, skipped = newest_checkpoint(folder)
    if newest is None:
        raise CheckpointError(f"{named}: holds no whole checkpoint: {'; '.join([*lines, *skipped])}")
    return newest, [*lines, *skipped, f"{named}: its newest whole checkpoint, {newest.name}, is taken"]


def read_trained_file(path: Path) -> TrainedFile:
    """What a checkpoint or a file says of itself. Raises CheckpointError or WeightsError for what is none."""
    if path.is_dir():
        if not (path / MANIFEST).exists():
            raise CheckpointError(
                f"{path}: is no checkpoint: it has no {MANIFEST}; name a folder such as checkpoints/best of a run, or "
                "the run"
            )
        return TrainedFile(read_state(path)[1], read_spec_text(path))
    header = _header(path)
    facts = facts_in_header(header, path)
    return TrainedFile(facts, header.get("spec"))


def _header(path: Path) -> dict[str, str]:
    return read_header(path)[1] if path.suffix == ".safetensors" else read_weight_file(path).header


def holds_frozen_weights(path: Path) -> bool:
    """Whether a file of weights is whole, so that none of pretrained weights is needed beside it: a merged one, or a
    checkpoint of OpenTAD."""
    if path.suffix != ".safetensors":
        return path.is_file()
    try:
        return _header(path).get("content") == MERGED
    except WeightsError:
        return False


def own_spec(
    path: Path, overrides: Sequence[str] = (), overlays: Sequence[str | Path] = (), check_files: bool = True
) -> Spec:
    """The spec that weights were trained by, under overrides. Raises CheckpointError if the file holds none, or one
    that this program doesn't know."""
    text = read_trained_file(path).spec_yaml
    if text is None:
        raise CheckpointError(f"{path}: doesn't hold the spec that it was trained by; give SPEC")
    where = path / SPEC if path.is_dir() else f"{path}: spec"
    # The reader of specs takes files.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / SPEC
        copy.write_text(text, encoding="utf-8")
        try:
            if problem := spec_problem(text):
                raise CheckpointError(f"{where}: {problem}")
            return load(copy, overrides, check_files, overlays)
        except SpecError as error:
            problems = [problem.replace(str(copy), str(where)) for problem in error.problems]
            more = [f"and {len(problems) - PROBLEMS_SHOWN} more"] if len(problems) > PROBLEMS_SHOWN else []
            reason = "; ".join(problems[:PROBLEMS_SHOWN] + more)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = brief(str(error).splitlines()[0])
    raise CheckpointError(
        f"{where}: can't be used as a spec here: {reason}; set what is wrong with --set, or give SPEC"
    )
