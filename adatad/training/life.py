"""Marks that one life of a job leaves beside its run: launchers lose exit codes, so a batch script looks at these."""

from __future__ import annotations

import os
from pathlib import Path

LIFE = "ADATAD_LIFE"
"""Environment variable: path of the life's marks without their endings; absent outside of a batch job."""
STOPPED, DONE = "stopped", "done"
"""stopped: all ranks agreed to stop, and what they saved is whole. done: trained to the end."""


def leave_mark(kind: str, text: str) -> None:
    """Written by the first rank alone, when all ranks are as far."""
    path = os.environ.get(LIFE)
    if path:
        unfinished = Path(f"{path}.{kind}.unfinished")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(f"{path}.{kind}")
