"""What a run writes down while it trains: TensorBoard scalars, and JSON lines of the same.

Neither is needed to train: what a full disk doesn't take is kept (lines) or left out (scalars), and tried again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from adatad.training.log import Dispensable

RETRY_SECONDS = 60
MAX_PENDING_LINES = 100_000
"""Of metrics.jsonl, kept while they can't be written: about 100 MB."""


class Metrics:
    """metrics.jsonl and tensorboard/ of a run directory. Only the first rank makes one."""

    def __init__(self, run_directory: Path, first_step: int, dispensable: Dispensable):
        self._path, self._folder, self._dispensable = run_directory / "metrics.jsonl", run_directory, dispensable
        self._pending: list[bytes] = []
        self._board: SummaryWriter | None = None
        self._retry_at = 0.0
        _silence_board_threads()
        # A resumed run repeats the steps after its checkpoint: TensorBoard drops what it had of them.
        self._open_board(first_step + 1 if first_step else None)

    def write(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Scalars, or dictionaries of scalars to any depth, of one moment; lists go to the JSON lines alone."""
        line = json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n"
        self._pending = [*self._pending, line.encode()][-MAX_PENDING_LINES:]
        with self._dispensable.writing("metrics.jsonl"):
            self._append()
        self._to_board(lambda board: [board.add_scalar(tag, scalar, step) for tag, scalar in _scalars(kind, values)])

    def text(self, name: str, text: str) -> None:
        self._to_board(lambda board: board.add_text(name, f"```yaml\n{text}\n```"))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """image: uint8 [height, width, 3]."""
        self._to_board(lambda board: board.add_image(name, image, step, dataformats="HWC"))

    def close(self) -> None:
        self._to_board(lambda board: board.close())
        self._board = None

    def _append(self) -> None:
        """All lines or none: half a line would join with the next one."""
        with self._path.open("ab", buffering=0) as file:
            size, content = os.fstat(file.fileno()).st_size, b"".join(self._pending)
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise
        self._pending = []

    def _open_board(self, purge_step: int | None = None) -> None:
        with self._dispensable.writing("tensorboard"):
            self._board = SummaryWriter(self._folder / "tensorboard", purge_step=purge_step)

    def _to_board(self, action: Any) -> None:
        if self._board is None and time.monotonic() >= self._retry_at:
            self._open_board()
        if self._board is None:
            return
        with self._dispensable.writing("tensorboard"):
            try:
                action(self._board)
            except OSError:
                # Its thread has ended: another writer begins another file.
                self._board, self._retry_at = None, time.monotonic() + RETRY_SECONDS
                raise


def memory_values(allocated: int, device: torch.device) -> dict[str, int]:
    """Peak bytes as metrics name them: what tensors took, and on a GPU what the allocator held for them, with gaps."""
    reserved = {"reserved_bytes": torch.cuda.max_memory_reserved(device)} if device.type == "cuda" else {}
    return {"memory_bytes": allocated, **reserved}


def _silence_board_threads() -> None:
    """A full disk ends TensorBoard's thread with an error, which its writer raises again: no traceback besides."""
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            previous(args)

    hook.of_board = True
    if not getattr(previous, "of_board", False):
        threading.excepthook = hook


def _scalars(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers inside a value, each with the names that lead to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _scalars(f"{tag}/{name}", inner)
    elif isinstance(value, (int, float)):
        yield tag, value
