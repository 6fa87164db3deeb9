"""Where each rank stood when it hung, failed, or was ended, and what it last exchanged: files of the run directory."""

from __future__ import annotations

import faulthandler
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch._C._distributed_c10d as c10d

from adatad.parallel.faults import ANSWER_SECONDS
from adatad.parallel.processes import Processes

EXCHANGES = "exchanges_rank_"
"""Files of torch's flight recorder: the last collectives of a rank, and which of them were done. The name is what
torch's own reader wants, torch.distributed.flight_recorder.fr_trace: a prefix and the rank."""
RECORDERS = ("_dump_nccl_trace", "_dump_fr_trace")
"""torch's functions that dump the recorder, private ones: of NCCL where torch has it, of other backends."""


class Stacks:
    """`folder`/rank-<n>.txt: where this rank stood when it didn't come on in time, or when it left with an error.

    Ranks that wait for a hanging one leave after `seconds` with an error of their group. The hanging one's stacks are
    written, and it is ended, by a timer outside of Python, a little later: until then the others find out who it is.
    before_end: called when the process is ended in the middle of its work, to finish what can be finished.
    """

    def __init__(self, folder: Path, processes: Processes, seconds: float, before_end: Callable[[], Any]):
        self.folder, self.processes, self.seconds, self.before_end = folder, processes, seconds, before_end
        self.path = folder / f"rank-{processes.rank}.txt"

    def __enter__(self) -> Stacks:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("w")
        # NCCL ends a rank that has waited too long by a signal; its watchdog looks here for where its records go.
        faulthandler.enable(self.file)
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(self.folder / EXCHANGES))
        if self.processes.monitor:
            self.processes.monitor.file, self.processes.monitor.last_words = self.file, self.last_words
        return self

    def beat(self) -> None:
        """Still alive; called at every step."""
        faulthandler.dump_traceback_later(self.seconds + 1.5 * ANSWER_SECONDS, exit=True, file=self.file)
        self._step_began(time.monotonic())

    def rest(self) -> None:
        """Until the next beat time doesn't count."""
        faulthandler.cancel_dump_traceback_later()
        self._step_began(None)

    def _step_began(self, at: float | None) -> None:
        if self.processes.monitor:
            self.processes.monitor.step_began = at

    def last_words(self) -> None:
        """Before the process is ended: its last exchanges, and what `before_end` finishes."""
        with suppress(Exception):
            write_exchanges(self.folder / f"{EXCHANGES}{self.processes.rank}")
        with suppress(Exception):
            self.before_end()

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.rest()
        faulthandler.disable()
        if self.processes.monitor:
            self.processes.monitor.detach()
        if isinstance(error, Exception):
            traceback.print_exception(error, file=self.file)
        self.file.close()
        if not self.path.stat().st_size:
            self.path.unlink()


def write_exchanges(path: Path) -> None:
    """Dump torch's flight recorder, where this torch has one. Raises OSError."""
    for name in RECORDERS:
        if hasattr(c10d, name):
            path.write_bytes(getattr(c10d, name)())
            return
