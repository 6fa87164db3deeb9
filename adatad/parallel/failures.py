"""Find out which rank failed first, and let all ranks that are left print it.

A rank that fails by itself writes its error to the store that the ranks share, and leaves. The others then get an
error from their next collective, look there, and leave too. If no error is there, a rank was killed or hangs: the
others write to the store that they noticed, and it is the one that doesn't.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import torch.distributed as dist

ANSWER_SECONDS = 10
"""How long the ranks that are left wait for one another, to find out who is missing."""
FIRST = "first fault"
"""Key of the line on the rank that failed first."""


class FailureReporter:
    """Finds out, on one rank, which rank an error comes from; knows the hosts and process ids of all."""

    def __init__(self, store: dist.Store, rank: int, world: int):
        self.store, self.rank, self.world = store, rank, world
        self.quiet: Callable[[], list[int]] = list
        """Ranks whose heartbeats have stopped; a `Monitor` knows."""
        # The heartbeat comes first: whoever has a place has one, and others may ask for it at once.
        store.set(heartbeat(rank), "")
        store.set(f"place {rank}", f"{socket.gethostname()} {os.getpid()}")
        self.places = [store.get(f"place {other}").decode().split() for other in range(world)]

    def report(self, error: Exception) -> None:
        """Print, before the traceback, the rank that failed first, its host and its error, then this rank's error."""
        own = f"{self.name(self.rank)}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        others = from_communication(error)
        first = (others and self.first()) or self.put_first(self.missing() if others else own)
        say(first)
        if own != first:
            say(f"{own} (after the other)")

    def name(self, rank: int) -> str:
        """Return a rank's number, host and process id."""
        host, pid = self.places[rank]
        return f"rank {rank} on {host} (pid {pid})"

    def first(self) -> str | None:
        """Return the line on the rank that failed first; None if there is none, or the store died with its rank."""
        with suppress(RuntimeError):
            return self.store.get(FIRST).decode() if self.store.check([FIRST]) else None
        return None

    def put_first(self, line: str) -> str:
        """Write the line on the first failure, unless there is one; return the one that counts."""
        with suppress(RuntimeError):
            return self.store.compare_set(FIRST, "", line).decode()
        return line

    def missing(self) -> str:
        """Return a line on the ranks that died, or don't notice that something is wrong."""
        silent = self.silent()
        if not silent:
            return "no rank is missing: the connection between them failed"
        # A rank that waits inside NCCL doesn't notice either, but has a heartbeat.
        quiet = set(self.quiet())
        return self.fate([rank for rank in silent if rank in quiet] or silent)

    def fate(self, ranks: list[int]) -> str:
        """Return a line on missing ranks: on those that are seen to have died, or on all."""
        dead = [rank for rank in ranks if self.died(rank)]
        fate = "died without an error message" if dead else "doesn't answer: it hangs, or its host is gone"
        return ", ".join(map(self.name, dead or ranks)) + f": {fate}"

    def died(self, rank: int) -> bool:
        """Return whether a rank's process is gone; False of ranks on other hosts, which nobody here can tell."""
        host, pid = self.places[rank]
        if host != self.places[self.rank][0]:
            return False
        try:
            return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, OSError):
            # Nothing can be read of it at present.
            return False

    def silent(self) -> list[int]:
        """Return the ranks that don't write in time that they noticed; one seen to have died ends the waiting."""
        end, silent = time.monotonic() + ANSWER_SECONDS, list(range(self.world))
        try:
            self.store.set(f"noticed {self.rank}", "")
            while silent and not any(map(self.died, silent)) and time.monotonic() < end:
                # Not store.wait, which logs its own time-out before anybody is named.
                time.sleep(0.1)
                silent = [rank for rank in silent if not self.store.check([f"noticed {rank}"])]
        except RuntimeError:
            # The store was in the first rank's process, or in its launcher's.
            return [0]
        return silent


def from_communication(error: Exception) -> bool:
    """Return whether an error says no more than that other ranks can't be reached."""
    # gloo's errors are plain RuntimeErrors.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def heartbeat(rank: int) -> str:
    """Return the key of a rank's heartbeats."""
    return f"heartbeat {rank}"


def say(line: str) -> None:
    """Print a line on what failed, and write it to the run's log."""
    print(line, file=sys.stderr, flush=True)
    # To the log's file alone: its other handler prints, as the line above did.
    record = logging.LogRecord("adatad", logging.ERROR, __file__, 0, line, None, None)
    for handler in logging.getLogger("adatad").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
