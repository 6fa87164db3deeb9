"""A thread of each rank that finds out which rank failed, also while the rank itself waits inside NCCL.

Over gloo a rank gets an error as soon as another one dies, and `Witness` says whose fault it was. A rank that waits for
NCCL gets none: after `hang_seconds` NCCL's watchdog ends the process from C++, and nobody is named. So every rank
counts heartbeats up in the store that all share and looks at those of the others. The first rank that finds one dead or
silent says so in the store; every rank then has some time to leave by an error of its own, and is ended if it can't.

Heartbeats show that a process lives, not that it makes progress: decoding, evaluation and checkpoints may take as long
as they like. A rank whose main thread hangs is the case of `Stacks`, and of the limits of gloo and NCCL.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import NamedTuple, TextIO

from adatad.parallel.faults import ANSWER_SECONDS, Witness, heartbeat, say

BEAT_SECONDS = 2.0
"""Between two heartbeats of a rank, and two looks at those of the others. All limits below count looks: a rank that is
itself slow, or was stopped for a while, looks less often and takes nobody else for dead."""
DEAD_LOOKS = 2
"""Looks without a heartbeat of a rank whose process is seen to be gone, on this host."""
SILENT_LOOKS = 15
"""Looks without a heartbeat of any rank: long enough for a call that holds Python's lock, or a file system that stalls;
short of srun's --wait, which ends the ranks that are left."""
LEAVE_LOOKS = 5
"""Looks after a fault is known until a rank that hasn't left is ended."""
REPORT_SECONDS = 4 * ANSWER_SECONDS
"""The same for a rank that has begun to report an error of its own, for which it asks the others."""
END_SECONDS = 30.0
"""How long the end may take: traces are written, and a checkpoint that is being written is finished."""
HANG_FRACTION = 0.8
"""Of `hang_seconds`: a step that has taken so long when ranks are found dead has a rank that hangs."""
STDERR = 2
"""As a file number: the object may have been replaced by one that has none."""
LEFT = "left"
"""A rank's last heartbeat, when it leaves in good order."""


class View(NamedTuple):
    """What one look at the store showed."""

    fault: str | None
    """What the rank that failed first said, or what was said of it."""
    quiet: list[int]
    """By rank, looks since its last heartbeat; 0 for one that has left."""
    left: frozenset[int]
    """Ranks that said goodbye."""


class Monitor:
    """Watches the other ranks from the moment it is made. `report` or `leave` ends that, on the main thread."""

    def __init__(self, witness: Witness, hang_seconds: float):
        self.witness = witness
        # A store's client serves one thread at a time, and waits without limit for a server that is stopped.
        self.own = copy(witness)
        self.own.store = witness.store.clone()
        self.seconds = min(BEAT_SECONDS, hang_seconds / (1.5 * SILENT_LOOKS))
        self.file: TextIO | int = STDERR
        """Where stacks go."""
        self.last_words: Callable[[], None] = _nothing
        """Called before the process is ended."""
        self.step_began: float | None = None
        """By the monotonic clock, while a step is being made."""
        self.hang_seconds = hang_seconds
        self.view, self.looks, self.lost = View(None, [0] * witness.world, frozenset()), 0, False
        # Containers may share a host's name and not its processes.
        self.seen = [rank for rank in range(witness.world) if not witness.died(rank)]
        self.reporting = self.said = False
        self.lock, self.stopped = threading.Lock(), threading.Event()
        witness.quiet = lambda: [rank for rank, looks in enumerate(self.view.quiet) if looks >= DEAD_LOOKS]
        self.threads = [
            threading.Thread(target=loop, name="monitor", daemon=True) for loop in (self._beat, self._watch)
        ]
        for thread in self.threads:
            thread.start()

    def report(self, error: Exception) -> None:
        """Say whose fault an error of the main thread is, before the process leaves."""
        with self.lock:
            self.reporting = True
        self.witness.report(error)
        self.said = True
        self.leave()

    def detach(self) -> None:
        """Forget where stacks went: that file is closed."""
        self.file, self.last_words, self.step_began = STDERR, _nothing, None

    def leave(self) -> None:
        """Say goodbye: the others don't miss a rank that leaves in good order, or that has said why it leaves."""
        with self.lock:
            self.stopped.set()
        for thread in self.threads:
            # No heartbeat may come after the last one; and a thread that comes back when Python has ended aborts.
            thread.join(self.seconds)
        if self._store_left():
            return
        with suppress(RuntimeError):
            self.witness.store.set(heartbeat(self.witness.rank), LEFT)
            self._outlast_the_others()

    def _store_left(self) -> bool:
        """Whether the first rank has left in good order, and taken the store along: there is nothing more to watch."""
        return 0 in self.view.left and store_is_in_first_rank()

    def _outlast_the_others(self) -> None:
        """The store that is in this process stays until all others that live have seen that it leaves, or have left."""
        if self.witness.rank or not store_is_in_first_rank():
            return
        others = [rank for rank, looks in enumerate(self.view.quiet) if rank and looks < DEAD_LOOKS]
        end = time.monotonic() + SILENT_LOOKS * self.seconds
        while others and time.monotonic() < end:
            beats = self.witness.store.multi_get([heartbeat(rank) for rank in others])
            others = [
                rank for rank, beat in zip(others, beats, strict=True)
                if beat != LEFT.encode() and not self.witness.died(rank)
            ]  # fmt: skip
            time.sleep(self.seconds / 100)

    def _beat(self) -> None:
        """The thread that talks with the store. Where it is kept waiting, the other one notices."""
        keys = [heartbeat(rank) for rank in range(self.own.world)]
        before, quiet = [b""] * self.own.world, [0] * self.own.world
        try:
            while not self.stopped.wait(self.seconds):
                gone = [rank for rank in self.seen if self.own.died(rank)]
                self.own.store.set(keys[self.own.rank], str(self.looks))
                beats = self.own.store.multi_get(keys)
                left = frozenset(rank for rank, beat in enumerate(beats) if beat == LEFT.encode())
                quiet = [
                    0 if rank in left or beat != last else looks + 1
                    for rank, (looks, last, beat) in enumerate(zip(quiet, before, beats, strict=True))
                ]
                missing = missing_ranks(quiet, gone)
                fault = self.own.put_first(self._line(missing)) if missing else self.own.first()
                before, self.view = beats, View(fault, quiet, left)
                self.looks += 1
                if self._store_left():
                    # The first rank waits for that.
                    self.own.store.set(keys[self.own.rank], LEFT)
                    return
        except RuntimeError:
            self.lost = True

    def _line(self, missing: list[int]) -> str:
        """A line on missing ranks. NCCL's watchdog ends all ranks but the one that they wait for."""
        line, began = self.own.fate(missing), self.step_began
        if began is None or time.monotonic() - began < HANG_FRACTION * self.hang_seconds:
            return line
        return f"{line}, after no step was done for {self.hang_seconds:g} s: a rank hangs, and stacks/ says which"

    def _watch(self) -> None:
        """The thread that ends the process. It touches nothing that could keep it waiting."""
        looks, stalled, since = -1, 0, 0
        while not self.stopped.wait(self.seconds):
            stalled = 0 if looks != self.looks else stalled + 1
            looks = self.looks
            fault = self._store_fault() if self._store_is_gone(stalled) else self.view.fault
            since = since + 1 if fault or self.reporting else 0
            if since > (REPORT_SECONDS / self.seconds if self.reporting else LEAVE_LOOKS):
                self._end(fault)

    def _store_is_gone(self, stalled: int) -> bool:
        """Whether nothing more is to be had from the store. stalled: looks that it hasn't answered for. Loader
        processes of a first rank that died keep its connections open for a while."""
        dead = store_is_in_first_rank() and 0 in self.seen and self.own.died(0)
        return self.lost or stalled >= (DEAD_LOOKS if dead else SILENT_LOOKS)

    def _store_fault(self) -> str | None:
        """Of a store that is gone, or doesn't answer."""
        if self.view.fault or not store_is_in_first_rank():
            return self.view.fault or "the launcher, which holds the store that the ranks share, doesn't answer"
        return None if self._store_left() else self.own.fate([0])

    def _end(self, fault: str | None) -> None:
        """Say whose fault it is, write where this rank stands, and end the process past its main thread."""
        with self.lock:
            if self.stopped.is_set():
                return
            # Whatever below hangs: this timer needs nothing of Python.
            faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=self.file)
            if fault and not self.said:
                say(fault)
            # The main thread may have closed the file meanwhile.
            with suppress(ValueError):
                faulthandler.dump_traceback(self.file)
            self.last_words()
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(1)


def missing_ranks(quiet: list[int], gone: list[int]) -> list[int]:
    """Ranks that died or fell silent first; [] if none did. quiet: looks since each one's last heartbeat; gone: ranks
    whose process isn't there any more, as far as this host knows."""
    missing = [r for r, looks in enumerate(quiet) if looks >= (DEAD_LOOKS if r in gone else SILENT_LOOKS)]
    # Others fall silent for the first one's sake: when their watchdogs end them.
    longest = max((quiet[rank] for rank in missing), default=0)
    return [rank for rank in missing if quiet[rank] >= longest - 1]


def store_is_in_first_rank() -> bool:
    """Whether it ends with that rank, or lies with a launcher that outlives all."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _nothing() -> None: ...
