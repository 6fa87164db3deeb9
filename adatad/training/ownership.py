"""Ownership of a run: the last process that opened it may write its checkpoints, and no other.

A node that was cut off from its cluster goes on working beside the run that was started again elsewhere. What it writes
must not take the place of anything that the new one wrote.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from adatad.errors import UserError
from adatad.files import FileError, read_text, reason
from adatad.printing import program
from adatad.training.markers import later_attempt

OWNER_FILE = "owner.txt"
OWNER_LINE = re.compile(
    r"\S+ on (?P<host>\S+), pid (?P<pid>\d{1,9}), (?P<since>[^,\n]*)"
    r"(, by (?P<command>[^,\n]*), start (?P<start>\d{1,18}))?"
)

logger = logging.getLogger("adatad")


class RunOwnershipLost(UserError):  # noqa: N818, what happened is the name
    """Another process has opened the run since; the message says which."""


@dataclass(frozen=True)
class Owner:
    """One opening of a run, which owner.txt names until the next. token: of this opening alone; it may be part of a
    file's name. text: the file's content."""

    folder: Path
    token: str
    text: str

    def check(self) -> None:
        """Raise RunOwnershipLost if the run was opened by another process since.

        A file that was emptied or deleted, alone or with the run's whole folder, names nobody: it is written anew, so
        that what this process holds can be saved.
        """
        try:
            text = (self.folder / OWNER_FILE).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise FileError(
                f"{self.folder / OWNER_FILE}: can't be read: {reason(error)}; is the disk still there?"
            ) from error
        # Somebody's clean-up, or a full disk: nobody else has claimed the run.
        if not text.strip():
            logger.warning("%s was deleted or emptied while this run trains: written anew", self.folder / OWNER_FILE)
            self.write()
        elif text.split()[0] != self.token:
            raise RunOwnershipLost(
                f"{self.folder}: was opened by another process meanwhile ({text.strip()}); this one, {self.token}, "
                "writes nothing more to it: let the other one finish"
            )

    def write(self) -> None:
        """Write owner.txt. Raises FileError."""
        # The thread that writes checkpoints may find it missing at the same moment: each thread has its own file.
        unfinished = self.folder / f".{OWNER_FILE}.{self.token}.{threading.get_ident()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(self.text, encoding="utf-8")
            unfinished.replace(self.folder / OWNER_FILE)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            saved = any(self.folder.glob("checkpoints/step-*"))
            then = f"{resume_arguments(self.folder)} goes on from the last checkpoint" if saved else "start again"
            raise FileError(
                f"{self.folder / OWNER_FILE}: can't be written: {reason(error)}; make room, and {then}"
            ) from error


@dataclass(frozen=True)
class Opening:
    """Content of owner.txt: the last process that opened a run. command: the tool's file name, "" if not known; start:
    as `process_start`, 0 if not known."""

    host: str
    pid: int
    since: str
    command: str
    start: int

    def describe(self) -> str:
        """Return process, host and time in words."""
        by = f"{self.command}, " if self.command else ""
        return f"{by}pid {self.pid} on {self.host}, since {self.since}"

    def alive(self) -> bool:
        """Return whether that process still runs on this host; False for one of another host, which isn't known."""
        # A file of an older version doesn't tell when its process was started.
        start = process_start(self.pid)
        return self.host == socket.gethostname() and start is not None and self.start in (0, start)


def resume_arguments(folder: Path) -> str:
    """Return the arguments that continue the run in a folder."""
    # Without --id it would be id0.
    number = folder.name.removeprefix("id")
    named = number != folder.name and number.isdecimal() and int(number)
    return "--resume auto" + (f" --id {number}" if named else "")


def process_start(pid: int) -> int | None:
    """Return what tells a process from a later one of the same number; None if there is none.

    On Linux clock ticks since the machine's start, which no change of the clock moves; elsewhere seconds since 1970.
    """
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        # The command's name, in brackets, may hold anything.
        state, *rest = stat[stat.rindex(")") + 2 :].split()
        # Field 22 of proc(5); a zombie has ended already.
        return None if state in "ZX" else int(rest[18])
    with suppress(psutil.Error):
        return int(psutil.Process(pid).create_time())
    return None


def last_opening(folder: Path) -> Opening | None:
    """Return who opened a run last; None where owner.txt is missing or unreadable."""
    with suppress(FileError):
        found = OWNER_LINE.match(read_text(folder / OWNER_FILE))
        if found:
            start = int(found["start"] or 0)
            return Opening(found["host"], int(found["pid"]), found["since"], found["command"] or "", start)
    return None


def new_owner(folder: Path) -> Owner:
    """Return this process as the owner of a run's folder; `write` makes it known.

    Raises RunOwnershipLost in an attempt of a job that Slurm has started again already.
    """
    # A node that was cut off may come this far after the next attempt has begun on others.
    later = later_attempt()
    if later:
        raise RunOwnershipLost(f"{folder}: attempt {later} of this job has begun since; this one leaves the run to it")
    # A random token: a process number and a host may come again, on the same machine or in a container.
    token, pid = uuid.uuid4().hex[:12], os.getpid()
    text = f"{token} on {socket.gethostname()}, pid {pid}, {time.strftime('%F %T')}"
    return Owner(folder, token, f"{text}, by {this_command()}, start {process_start(pid) or 0}\n")


def claim(folder: Path) -> Owner:
    """Make this process the owner of a run's folder; whoever was it before may write no more. Raises
    RunOwnershipLost as `new_owner`, FileError."""
    owner = new_owner(folder)
    owner.write()
    return owner


def this_command() -> str:
    """Return the command that this process runs, in one word: adatad-train."""
    return re.sub(r"[^\w.-]", "_", Path(program()).name.replace(" ", "-")) or "python"
