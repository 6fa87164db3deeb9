"""Being asked to stop: SIGTERM and SIGUSR1 finish the step, save, and leave with exit code 75."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_CODE_RESUME = 75
"""EX_TEMPFAIL: not finished, start again with `--resume auto`."""


class StopRequest:
    """Set by SIGTERM or SIGUSR1; the training loop looks at it after each step and each evaluated window. More signals
    change nothing."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)
        # A launcher may hold them back until somebody is here to note them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name


class Stopped(SystemExit):
    """Training was asked to stop and has saved; leaves the program with EXIT_CODE_RESUME."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE_RESUME)
