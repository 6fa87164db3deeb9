"""The directory of a run: `<root>/<spec name>/id<N>/`, its files, and that none is overwritten by accident."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from adatad.errors import UserError
from adatad.spec import Spec
from adatad.training.ownership import Owner, claim


class RunDirectoryError(UserError):
    """A run that can't be started here; the message says what to do."""


@dataclass(frozen=True)
class RunDirectory:
    """owner: of one that was opened to train."""

    path: Path
    owner: Owner | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def detections(self) -> Path:
        return self.path / "detections.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of the run whole."""
        unfinished = self.path / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.path / name)

    def write_json(self, name: str, content: Any) -> None:
        self.write_text(name, json.dumps(content, indent=1))


def run_directory(spec: Spec) -> RunDirectory:
    return RunDirectory(Path(spec.run.root) / spec.name / f"id{spec.run.id}")


def open_run(spec: Spec, resume: bool, overwrite: bool) -> RunDirectory:
    """Make the run's directory, or take over the one there: with `resume` as it is, with `overwrite` emptied."""
    run = run_directory(spec)
    if run.metrics.exists() or run.checkpoints.exists():
        if overwrite:
            shutil.rmtree(run.path)
        elif not resume:
            raise RunDirectoryError(
                f"{run.path} already holds a run: --resume auto continues it, --id N starts another beside it, "
                "--overwrite deletes it"
            )
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(run.path, claim(run.path))
    for unfinished in run.checkpoints.glob(".*.unfinished"):
        shutil.rmtree(unfinished, ignore_errors=True)
    return run


def log_to(run: RunDirectory, console: Console) -> logging.Logger:
    """The run's logger: lines on the console, and with times in log.txt."""
    logger = logging.getLogger("adatad")
    logger.setLevel(logging.INFO)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    file = logging.FileHandler(run.path / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(file)
    logger.addHandler(RichHandler(console=console, show_time=False, show_level=False, show_path=False, markup=False))
    return logger
