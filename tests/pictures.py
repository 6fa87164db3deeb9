"""Whether runs of this process draw timelines and a report: two thirds of a tiny run's time goes into them."""

from __future__ import annotations

import sys
from typing import Any

RUN = "adatad.training.run"
_drawn_by: dict[str, Any] = {}
"""What draws, by its name in that module."""


def draw(wanted: bool) -> None:
    """Let whole runs draw their pictures, or leave them out."""
    run = sys.modules.get(RUN)
    if run is None:
        return
    for name in ("try_write_report", "_draw_timelines", "_draw_first_batch"):
        drawing = _drawn_by.setdefault(name, getattr(run, name))
        setattr(run, name, drawing if wanted else _draw_nothing)


def _draw_nothing(*_: object) -> None:
    return
