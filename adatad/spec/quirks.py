"""Habits of the reference implementation: the one place that says what `compat: reference` means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quirks:
    """The habits that a run repeats (docs/compat.md): all of them under `compat: reference`, by default none.

    What reads data and scores asks for one of them by name, never for `compat`.
    """

    # False is always the corrected behaviour, so that a default Quirks() has none.
    keep_ambiguous: bool = False
    """THUMOS-14's "Ambiguous" is a class in lists taken from the annotation file, and is scored; none trains on it."""
    match_subset_parts: bool = False
    """A video is in a subset if its own subset's name is a part of the wanted name ("val" in "validation")."""
    keep_empty: bool = False
    """Instances that end before they start, or lie outside their video, are trained on unless `filter_short` is set."""
    truncate_frames: bool = False
    """Seconds become frame numbers by truncation, also where rounding put a time just below a frame's own."""
    draw_once_per_run: bool = False
    """RandAugment's signs and color jitter's order are drawn once a run instead of once a sample."""
    repeat_windows: bool = False
    """A last sliding window that fits exactly comes twice, and a tail that no step reaches has no window."""
    misplace_classes: bool = False
    """A detected EPIC class number that isn't annotated counts as the annotated class at that position."""

    @classmethod
    def of(cls, compat: Literal["fixed", "reference"]) -> Quirks:
        """Return all of the reference's habits for `reference`, none otherwise."""
        return cls(True, True, True, True, True, True, True) if compat == "reference" else cls()
