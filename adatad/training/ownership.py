"""Which process may write a run's checkpoints: the last one that opened the run.

A node that was cut off from its cluster goes on working beside the run that was started again elsewhere. What it writes
must not take the place of anything that the new one wrote.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from adatad.errors import UserError
from adatad.training.life import successor

FILE = "owner.txt"


class TakenOver(UserError):  # noqa: N818, what happened is the name
    """Another process has opened the run since; the message says which."""


@dataclass(frozen=True)
class Owner:
    """One opening of a run. token: unlike that of any other opening; it may be part of a file's name."""

    folder: Path
    token: str

    def check(self) -> None:
        """Raises TakenOver if the run was opened by another process since."""
        text = (self.folder / FILE).read_text() if (self.folder / FILE).is_file() else "nobody"
        if text.split()[0] != self.token:
            raise TakenOver(
                f"{self.folder}: was opened by another process meanwhile ({text.strip()}); this one, {self.token}, "
                "writes nothing more to it: let the other one finish"
            )


def claim(folder: Path) -> Owner:
    """Make this process the owner of a run's folder; whoever was it before may write no more.

    Raises TakenOver in a life of a job that Slurm has started again already: a cut-off node may be slow to begin.
    """
    later = successor()
    if later:
        raise TakenOver(f"{folder}: life {later} of this job has begun since; this one leaves the run to it")
    owner = Owner(folder, uuid.uuid4().hex[:12])
    text = f"{owner.token} on {socket.gethostname()}, pid {os.getpid()}, {time.strftime('%F %T')}\n"
    unfinished = folder / f".{FILE}.{owner.token}"
    unfinished.write_text(text)
    unfinished.replace(folder / FILE)
    return owner
