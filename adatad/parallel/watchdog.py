"""The end of a run when a rank is dead (`Monitor`) or its main thread hangs (`HangWatchdog`), saying which and where.

Over gloo a rank gets an error as soon as another one dies, and `FailureReporter` finds out which. A rank that waits for
NCCL gets none: after `hang_seconds` NCCL's watchdog ends the process from C++, and nobody is named. So every rank
counts heartbeats up in the store that all share and looks at those of the others. The first rank that finds one dead or
silent writes so to the store; every rank then has some time to leave by an error of its own, and is ended if it can't.

Heartbeats show that a process is alive, not that it makes progress: decoding, evaluation and checkpoints may take as
long as they like. For progress a step has a time limit of its own, and gloo and NCCL have theirs.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import torch._C._distributed_c10d as c10d

from adatad.parallel.failures import ANSWER_SECONDS, FailureReporter, heartbeat, say

BEAT_SECONDS = 2.0
"""Time between two heartbeats of a rank, and two looks at those of the others. All limits below count looks: a rank
that is itself slow, or was stopped for a while, looks less often and takes nobody else for dead."""
DEAD_LOOKS = 2
"""Looks without a heartbeat of a rank whose process is seen to be gone, on this host."""
SILENT_LOOKS = 15
"""Looks without a heartbeat of any rank: long enough for a call that holds Python's lock, or a file system that stalls;
short of srun's --wait, which ends the ranks that are left."""
LEAVE_LOOKS = 5
"""Looks after a fault is known until a rank that hasn't left is ended."""
REPORT_SECONDS = 4 * ANSWER_SECONDS
"""Time to leave for a rank that has begun to report an error of its own, for which it asks the others."""
END_SECONDS = 30.0
"""How long the end may take: traces are written, and a checkpoint that is being written is finished."""
HANG_FRACTION = 0.8
"""Share of `hang_seconds`: a step that has taken so long when ranks are found dead has a rank that hangs."""
STDERR = 2
"""File number: the object sys.stderr may have been replaced by one that has none."""
LEFT = "left"
"""A rank's last heartbeat, when it leaves in good order."""
EXCHANGES = "exchanges_rank_"
"""Prefix of the files of torch's flight recorder: the last collectives of a rank, and which of them were done. torch's
own reader of them, torch.distributed.flight_recorder.fr_trace, wants a prefix and the rank."""
PRIVATE_RECORDERS = ("_dump_nccl_trace", "_dump_fr_trace")
"""Private functions of c10d that dump the recorder: of NCCL where torch has it, of other backends. A torch without them
writes no such files; nothing else depends on them."""


class StoreView(NamedTuple):
    """The findings of one look at the store."""

    fault: str | None
    """Line on the rank that failed first."""
    quiet: list[int]
    """Looks since the last heartbeat, by rank; 0 for one that has left."""
    left: frozenset[int]
    """Ranks that have left in good order."""


class Monitor:
    """Watches the other ranks from the moment it is made. `report` or `leave` ends that, on the main thread."""

    def __init__(self, reporter: FailureReporter, hang_seconds: float):
        """Begin to watch. hang_seconds: how long a rank waits for the others; heartbeats come more often."""
        self.reporter = reporter
        # A client of its own for the threads: a store's client serves one thread at a time, and waits without limit for
        # a server that is stopped.
        self.own = copy(reporter)
        self.own.store = reporter.store.clone()
        # Shorter with a short limit, as tests have it: ranks must be found dead before the group's limit ends all.
        self.seconds = min(BEAT_SECONDS, hang_seconds / (1.5 * SILENT_LOOKS))
        self.file: TextIO | int = STDERR
        """File that stacks are written to."""
        self.last_words: Callable[[], None] = _nothing
        """Function that is called before the process is ended."""
        self.step_began: float | None = None
        """Start of the step that is being made, by the monotonic clock; None between steps."""
        self.hang_seconds = hang_seconds
        self.view, self.looks, self.lost = StoreView(None, [0] * reporter.world, frozenset()), 0, False
        # Containers may share a host's name and not its processes.
        self.seen = [rank for rank in range(reporter.world) if not reporter.died(rank)]
        self.reporting = self.said = False
        # The lock keeps the two threads' decision to end the process apart from the main thread's to leave.
        self.lock, self.stopped = threading.Lock(), threading.Event()
        reporter.quiet = lambda: [rank for rank, looks in enumerate(self.view.quiet) if looks >= DEAD_LOOKS]
        self.threads = [
            threading.Thread(target=loop, name="monitor", daemon=True) for loop in (self._beat, self._watch)
        ]
        for thread in self.threads:
            thread.start()

    def report(self, error: Exception) -> None:
        """Print which rank an error of the main thread comes from, before the process leaves."""
        with self.lock:
            self.reporting = True
        self.reporter.report(error)
        self.said = True
        self.leave()

    def detach(self) -> None:
        """Write stacks to stderr again: their file is closed."""
        self.file, self.last_words, self.step_began = STDERR, _nothing, None

    def leave(self) -> None:
        """Leave in good order, or after a report: the others won't take this rank for dead."""
        with self.lock:
            self.stopped.set()
        for thread in self.threads:
            # No heartbeat may come after the last one; and a thread that comes back when Python has ended aborts.
            thread.join(self.seconds)
        if self._store_left():
            return
        with suppress(RuntimeError):
            self.reporter.store.set(heartbeat(self.reporter.rank), LEFT)
            self._outlast_the_others()

    def _store_left(self) -> bool:
        """Return whether the first rank has left in good order, and the store with it: nothing is left to watch."""
        return 0 in self.view.left and store_is_in_first_rank()

    def _outlast_the_others(self) -> None:
        """Keep the store that is in this process until all others that live have seen that it leaves, or have left."""
        if self.reporter.rank or not store_is_in_first_rank():
            return
        others = [rank for rank, looks in enumerate(self.view.quiet) if rank and looks < DEAD_LOOKS]
        end = time.monotonic() + SILENT_LOOKS * self.seconds
        while others and time.monotonic() < end:
            beats = self.reporter.store.multi_get([heartbeat(rank) for rank in others])
            others = [
                rank for rank, beat in zip(others, beats, strict=True)
                if beat != LEFT.encode() and not self.reporter.died(rank)
            ]  # fmt: skip
            time.sleep(self.seconds / 100)

    def _beat(self) -> None:
        """Run the thread that talks with the store. If that keeps it waiting, the other one notices."""
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
                # One assignment: the other thread and `report` see a whole view or the one before.
                before, self.view = beats, StoreView(fault, quiet, left)
                self.looks += 1
                if self._store_left():
                    # The first rank waits for that.
                    self.own.store.set(keys[self.own.rank], LEFT)
                    return
        except RuntimeError:
            # The store is gone; `_watch` ends the process if it must.
            self.lost = True

    def _line(self, missing: list[int]) -> str:
        """Return a line on missing ranks. NCCL's watchdog ends all ranks but the one that they wait for."""
        line, began = self.own.fate(missing), self.step_began
        if began is None or time.monotonic() - began < HANG_FRACTION * self.hang_seconds:
            return line
        return f"{line}, after no step was done for {self.hang_seconds:g} s: a rank hangs, and stacks/ says which"

    def _watch(self) -> None:
        """Run the thread that ends the process. It touches nothing that could keep it waiting."""
        looks, stalled, since = -1, 0, 0
        while not self.stopped.wait(self.seconds):
            stalled = 0 if looks != self.looks else stalled + 1
            looks = self.looks
            fault = self._store_fault() if self._store_is_gone(stalled) else self.view.fault
            # Looks since there is a fault that the main thread hasn't left for.
            since = since + 1 if fault or self.reporting else 0
            if since > (REPORT_SECONDS / self.seconds if self.reporting else LEAVE_LOOKS):
                self._end(fault)

    def _store_is_gone(self, stalled: int) -> bool:
        """Return whether the store is gone. stalled: looks that it hasn't answered for."""
        # Loader processes of a first rank that died keep its connections open for a while.
        dead = store_is_in_first_rank() and 0 in self.seen and self.own.died(0)
        return self.lost or stalled >= (DEAD_LOOKS if dead else SILENT_LOOKS)

    def _store_fault(self) -> str | None:
        """Return the line on a store that is gone or doesn't answer; None if its rank has left in good order."""
        if self.view.fault or not store_is_in_first_rank():
            return self.view.fault or "the launcher, which holds the store that the ranks share, doesn't answer"
        return None if self._store_left() else self.own.fate([0])

    def _end(self, fault: str | None) -> None:
        """Print the line on the first failure, write this rank's stacks, and end the process past its main thread."""
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


class HangWatchdog:
    """Ends this rank if it makes no step in time, and writes its stacks to `folder`/rank-<n>.txt; also after an error.

    Ranks that wait for a hanging one leave after `seconds` with an error of their group. The hanging one's stacks are
    written, and it is ended, by a timer outside of Python, a little later: until then the others find out who it is.
    """

    def __init__(self, folder: Path, rank: int, monitor: Monitor | None, seconds: float, before_end: Callable[[], Any]):
        """Make a watchdog that is off until it is entered and pinged.

        before_end: called when the process is ended in the middle of its work, to finish what can be finished.
        """
        self.folder, self.rank, self.monitor = folder, rank, monitor
        self.seconds, self.before_end = seconds, before_end
        self.path = folder / f"rank-{rank}.txt"

    def __enter__(self) -> HangWatchdog:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("w")
        # NCCL ends a rank that has waited too long by a signal; its watchdog looks here for where its records go.
        faulthandler.enable(self.file)
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(self.folder / EXCHANGES))
        if self.monitor:
            self.monitor.file, self.monitor.last_words = self.file, self.last_words
        return self

    def ping(self) -> None:
        """Start the time limit anew; called at every step."""
        faulthandler.dump_traceback_later(self.seconds + 1.5 * ANSWER_SECONDS, exit=True, file=self.file)
        self._step_began(time.monotonic())

    def pause(self) -> None:
        """Let time not count until the next ping."""
        faulthandler.cancel_dump_traceback_later()
        self._step_began(None)

    def _step_began(self, at: float | None) -> None:
        if self.monitor:
            self.monitor.step_began = at

    def last_words(self) -> None:
        """Write the last exchanges and call `before_end`, before the process is ended. No error leaves this."""
        with suppress(Exception):
            write_exchanges(self.folder / f"{EXCHANGES}{self.rank}")
        with suppress(Exception):
            self.before_end()

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.pause()
        faulthandler.disable()
        if self.monitor:
            self.monitor.detach()
        if isinstance(error, Exception):
            traceback.print_exception(error, file=self.file)
        self.file.close()
        if not self.path.stat().st_size:
            self.path.unlink()


def missing_ranks(quiet: list[int], gone: list[int]) -> list[int]:
    """Return the ranks that died or fell silent first. quiet: looks since each one's last heartbeat; gone: ranks
    whose process isn't there any more, as far as this host knows."""
    missing = [r for r, looks in enumerate(quiet) if looks >= (DEAD_LOOKS if r in gone else SILENT_LOOKS)]
    # Others fall silent for the first one's sake: when their watchdogs end them.
    longest = max((quiet[rank] for rank in missing), default=0)
    return [rank for rank in missing if quiet[rank] >= longest - 1]


def store_is_in_first_rank() -> bool:
    """Return whether the store ends with the first rank; a launcher's outlives all."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _nothing() -> None: ...


def write_exchanges(path: Path) -> None:
    """Dump torch's flight recorder, where this torch has one. Raises OSError."""
    for name in PRIVATE_RECORDERS:
        if hasattr(c10d, name):
            path.write_bytes(getattr(c10d, name)())
            return
