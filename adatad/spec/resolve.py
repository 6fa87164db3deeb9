"""What a run's `compat` means, settled once: below this module nobody asks for the word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quirks:
    """Habits of the reference implementation that a run repeats (docs/compat.md): all under `compat: reference`."""

    ambiguous_class: bool = False
    """THUMOS-14's "Ambiguous" counts as a class in lists taken from a file, is trained on never, and is scored."""
    subset_by_part: bool = False
    """A video belongs to a training subset if its subset's name lies in the wanted one."""
    truncated_frames: bool = False
    """Seconds become frames by truncation, without care for rounding at a frame's own time."""
    signs_of_run: bool = False
    """RandAugment's signs and the order of color jitter are drawn once a run in place of once a sample."""
    repeated_windows: bool = False
    """A last sliding window that fits exactly comes twice, and a tail that no step reaches is left out."""
    misplaced_numbers: bool = False
    """A detected EPIC number that isn't annotated is taken for the class that stands at that place."""

    @classmethod
    def of(cls, compat: Literal["fixed", "reference"]) -> Quirks:
        """All of the reference's habits, or none."""
        return cls(True, True, True, True, True, True) if compat == "reference" else cls()
