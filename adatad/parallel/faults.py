"""When a rank fails: which one was the first, said by all that are left; and where each stood, when one hangs.

A rank that fails by itself says so in the store that the ranks share, and leaves. The others then get an error from
whatever they exchange, look there, and leave too. If nothing stands there a rank was killed or hangs: the others say in
the store that they noticed, and it is the one that doesn't.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil
import torch.distributed as dist

ANSWER_SECONDS = 10
"""How long the ranks that are left wait for one another, to find out who is missing."""
FIRST = "first fault"


class Witness:
    """Of one rank: knows the others' hosts, and finds out whose fault an error is."""

    def __init__(self, store: dist.Store, rank: int, world: int):
        self.store, self.rank, self.world = store, rank, world
        store.set(f"place {rank}", f"{socket.gethostname()} {os.getpid()}")
        self.places = [store.get(f"place {other}").decode().split() for other in range(world)]

    def report(self, error: Exception) -> None:
        """Print, before the traceback, the rank that failed first, its host and its error, then this rank's error."""
        own = f"{self.name(self.rank)}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        others = from_communication(error)
        first = (others and self.first()) or self.put_first(self.missing() if others else own)
        _say(first)
        if own != first:
            _say(f"{own} (after the other)")

    def name(self, rank: int) -> str:
        host, pid = self.places[rank]
        return f"rank {rank} on {host} (pid {pid})"

    def first(self) -> str | None:
        """What the rank that failed first said. A store that died with its rank says nothing."""
        with suppress(RuntimeError):
            return self.store.get(FIRST).decode() if self.store.check([FIRST]) else None
        return None

    def put_first(self, line: str) -> str:
        """Say it to all unless something was said before; returns what stands there now."""
        with suppress(RuntimeError):
            return self.store.compare_set(FIRST, "", line).decode()
        return line

    def missing(self) -> str:
        """Which ranks died, or don't notice that something is wrong."""
        silent = self.silent()
        if not silent:
            return "no rank is missing: the connection between them failed"
        dead = [rank for rank in silent if self.died(rank)]
        fate = "died without a word" if dead else "doesn't answer: it hangs, or its host is gone"
        return ", ".join(map(self.name, dead or silent)) + f": {fate}"

    def died(self, rank: int) -> bool:
        """Known of ranks on this host alone."""
        host, pid = self.places[rank]
        if host != self.places[self.rank][0]:
            return False
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
        return True

    def silent(self) -> list[int]:
        """Ranks that don't say in time that they noticed; one that is seen to have died ends the waiting."""
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
    """Whether an error says no more than that other ranks can't be reached. gloo's are plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    # Of the run's log the file alone: the console has it.
    record = logging.LogRecord("adatad", logging.ERROR, __file__, 0, line, None, None)
    for handler in logging.getLogger("adatad").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


class Stacks:
    """`folder`/rank-<n>.txt: where this rank stood when it didn't come on in time, or when it left with an error.

    Ranks that wait for a hanging one leave after `seconds` with an error of their group. The hanging one's stacks are
    written, and it is ended, by a timer outside of Python, a little later: until then the others find out who it is.
    """

    def __init__(self, folder: Path, rank: int, seconds: float):
        self.path, self.seconds = folder / f"rank-{rank}.txt", seconds

    def __enter__(self) -> Stacks:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("w")
        # NCCL ends a rank that has waited too long by a signal.
        faulthandler.enable(self.file)
        return self

    def beat(self) -> None:
        """Still alive; called at every step."""
        faulthandler.dump_traceback_later(self.seconds + 1.5 * ANSWER_SECONDS, exit=True, file=self.file)

    def rest(self) -> None:
        """Until the next beat time doesn't count."""
        faulthandler.cancel_dump_traceback_later()

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.rest()
        faulthandler.disable()
        if isinstance(error, Exception):
            traceback.print_exception(error, file=self.file)
        self.file.close()
        if not self.path.stat().st_size:
            self.path.unlink()
