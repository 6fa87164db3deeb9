"""Marks that one life of a job leaves beside its run: launchers lose exit codes, so a batch script looks at these."""

from __future__ import annotations

import os
from pathlib import Path

LIFE = "ADATAD_LIFE"
"""Environment variable: path of the life's marks without their endings; absent outside of a batch job."""
STOPPED, DONE = "stopped", "done"
"""stopped: all ranks agreed to stop, and what they saved is whole. done: trained to the end."""


def successor() -> str | None:
    """Name of a later life of this job, if one has begun: this one's node was cut off, and it doesn't know.

    By the times of their files on the shared disk: numbers of jobs come again.
    """
    here = Path(os.environ.get(LIFE, ""))
    job, _, restarts = here.name.rpartition("-")
    if not (restarts and here.with_name(f"{here.name}.start").is_file()):
        return None
    latest = max(here.parent.glob(f"{job}-*.start"), key=lambda start: (start.stat().st_mtime_ns, start.name))
    return latest.stem if latest.stem != here.name else None


def leave_mark(kind: str, text: str) -> None:
    """Written by the first rank alone, when all ranks are as far."""
    path = os.environ.get(LIFE)
    if path:
        unfinished = Path(f"{path}.{kind}.unfinished")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(f"{path}.{kind}")
