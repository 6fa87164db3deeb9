"""What a run writes down while it trains: TensorBoard scalars, and JSON lines of the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class Metrics:
    """metrics.jsonl and tensorboard/ of a run directory. Only the first rank makes one."""

    def __init__(self, run_directory: Path, first_step: int):
        self._lines = (run_directory / "metrics.jsonl").open("a", encoding="utf-8")
        # A resumed run repeats the steps after its checkpoint: TensorBoard drops what it had of them.
        self._board = SummaryWriter(run_directory / "tensorboard", purge_step=first_step + 1 if first_step else None)

    def write(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Scalars, or dictionaries of scalars to any depth, of one moment; lists go to the JSON lines alone."""
        self._lines.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
        self._lines.flush()
        for tag, scalar in _scalars(kind, values):
            self._board.add_scalar(tag, scalar, step)

    def text(self, name: str, text: str) -> None:
        self._board.add_text(name, f"```yaml\n{text}\n```")

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """image: uint8 [height, width, 3]."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._lines.close()
        self._board.close()


def _scalars(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers inside a value, each with the names that lead to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _scalars(f"{tag}/{name}", inner)
    elif isinstance(value, (int, float)):
        yield tag, value
