"""Libraries that decode videos, a module each, imported only where chosen. `FrameSource` is what each of them gives."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class IndexMismatchError(Exception):
    """A library finds other frames in a file than its packets announce; the message says which."""


class FrameSource(Protocol):
    """Frames of one open file, upright, RGB."""

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [n], ascending, each once -> uint8 [n, height, width, 3].

        Raises VideoError or IndexMismatchError. Cheap where the numbers go on from those read last.
        """

    def close(self) -> None:
        """Release the file and all that was kept of it."""
