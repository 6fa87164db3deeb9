"""Decoding libraries, a module each, imported only where chosen; each implements `FrameSource`."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class IndexMismatchError(Exception):
    """Raised when a library finds other frames in a file than its packets announce; the message says which."""


class FrameSource(Protocol):
    """Frames of one open file, upright, RGB. A source that raised is in an unknown state and can only be closed."""

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Decode frames: int64 [n], ascending, each once -> uint8 [n, height, width, 3].

        Raises VideoError or IndexMismatchError. Cheap where the numbers go on from the last ones.
        """

    def close(self) -> None:
        """Release the file and all that was kept of it."""
