"""Files by which an attempt of a batch job says how it ended: the supervisor reads them, as launchers lose exit codes.

Imports nothing heavy: the supervisor (`adatad.cluster.supervisor`) needs the standard library alone.
"""

from __future__ import annotations

import os
from pathlib import Path

ATTEMPT = "ADATAD_ATTEMPT"
"""Environment variable: path of the attempt's markers without their endings; absent outside of a batch job."""
STOPPED, DONE = "stopped", "done"
"""stopped: all ranks agreed to stop, and their checkpoint is complete. done: trained to the end."""


def later_attempt() -> str | None:
    """Return the name of a later attempt of this job, if one has begun: this one's node was cut off without knowing.

    The times of the files on the shared disk tell which is later: numbers of jobs come again.
    """
    # Within a batch job, named <job>-<restarts>; anything else is no attempt.
    here = Path(os.environ.get(ATTEMPT, ""))
    job, _, restarts = here.name.rpartition("-")
    if not (restarts and here.with_name(f"{here.name}.start").is_file()):
        return None
    latest = max(here.parent.glob(f"{job}-*.start"), key=lambda start: (start.stat().st_mtime_ns, start.name))
    return latest.stem if latest.stem != here.name else None


def write_marker(kind: str, text: str) -> None:
    """Write a marker; do nothing outside of a job. For the first rank alone, when all ranks are as far."""
    path = os.environ.get(ATTEMPT)
    if path:
        # Renamed when complete: the supervisor takes an empty marker for a decision, too.
        unfinished = Path(f"{path}.{kind}.unfinished")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(f"{path}.{kind}")
