"""Requests to stop: after a signal the step is finished and saved, and the program leaves with exit code 75; a second
Ctrl-C ends it at once.

Imports nothing heavy: `adatad train` installs a StopRequest before all else.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from adatad.printing import program
from adatad.stop_signals import STOP_SIGNALS
from adatad.training.markers import ATTEMPT

EXIT_CODE_RESUME = 75
"""Exit code of a run that isn't finished (EX_TEMPFAIL): start it again with `--resume auto`."""
EXIT_CODE_INTERRUPTED = 130
ECHO_SECONDS, LAUNCHER_ECHO_SECONDS = 1.0, 5.0
"""A SIGINT that comes sooner after the first is the same Ctrl-C: `timeout` and launchers pass on to a process what its
terminal sends to it too."""
IGNORED_IF_INHERITED = {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""nohup, and a shell that starts a command in the background, have these ignored; so they stay."""
FINISHING = "finishing this step, then saving; Ctrl-C again stops at once, without saving"
NOTHING_SAVED = "nothing was saved"
DRAWING = "training is done and saved, its report is being drawn; Ctrl-C again stops at once"


class StopRequest:
    """A request to stop, made by any of STOP_SIGNALS; training looks at it after each step and each evaluated window.

    More signals change nothing, but a second Ctrl-C, which ends the process at once, even while it waits for others.
    Before training begins there is nothing to save: a process alone leaves at its first signal.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.first_rank = os.environ.get("RANK", "0") in ("", "0")
        launched = "RANK" in os.environ
        self.echo_seconds = LAUNCHER_ECHO_SECONDS if launched else ECHO_SECONDS
        # Other ranks must not be left waiting; and a batch job that saves its first step doesn't count as idle.
        self.leaves_at_once = not launched and ATTEMPT not in os.environ
        self.importing = False
        """Set by a command until it has imported all that it needs: libraries make other errors of an interruption."""
        self.meanwhile = FINISHING
        """Line that is said at the first Ctrl-C."""
        self.what_is_saved: Callable[[], str] = lambda: NOTHING_SAVED
        """Function that returns the line on the run when it is stopped at once."""
        self._before: dict[signal.Signals, Any] = {}
        self._bytes: tuple[socket.socket, socket.socket] | None = None

    def install(self) -> StopRequest:
        """Take the signals over, once."""
        if self._bytes is not None:
            return self
        for number in STOP_SIGNALS:
            if number in IGNORED_IF_INHERITED and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._note)
        # Python's handlers run between two of its instructions: never, while a rank waits for one that hangs. The
        # number of each signal also goes through a socket to a thread, at once.
        self._bytes = socket.socketpair()
        self._bytes[1].setblocking(False)
        signal.set_wakeup_fd(self._bytes[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._bytes[0],), name="stop", daemon=True).start()
        # A launcher may hold them back until somebody is here to note them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS))
        return self

    def training_begins(self) -> None:
        """Note that there is something to save from now on: signals are no longer answered at once."""
        self.leaves_at_once = False

    def ignore_signals(self) -> None:
        """Ignore all further signals: everything is saved, and nothing may change the exit code any more."""
        # By the system itself: Python gives its own handlers up while it ends.
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Give the signals back to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
        if self._bytes is not None:
            signal.set_wakeup_fd(-1)
            for end in self._bytes:
                # Also wakes the thread that reads from it.
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self._bytes = None

    def nothing_saved(self) -> tuple[str, int]:
        """Return the line and the exit code of a run that is asked to stop before it has anything to save."""
        if self.signal_name == "SIGINT":
            return "interrupted before the first step: nothing was to be saved", EXIT_CODE_INTERRUPTED
        why = self.signal_name or "a signal to another rank"
        return f"asked to stop ({why}) before the first step: nothing was to be saved, start it again", EXIT_CODE_RESUME

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.signal_name = self.signal_name, self.signal_name or signal.Signals(number).name
        if self.leaves_at_once and again is None:
            line, code = self.nothing_saved()
            say(line)
            # An exception out of a module's import may be caught there, or leave half a module behind.
            if self.importing:
                os._exit(code)
            raise SystemExit(code)

    def _watch(self, arriving: socket.socket) -> None:
        first: float | None = None
        with suppress(OSError):
            while numbers := arriving.recv(64):
                if signal.SIGINT not in numbers:
                    continue
                now = time.monotonic()
                if first is None:
                    first = now
                    if self.first_rank and not self.leaves_at_once:
                        say(self.meanwhile)
                # Straight from this thread: the main one may be waiting in a collective that never ends.
                elif now - first >= self.echo_seconds:
                    if self.first_rank:
                        say(f"stopped at once; {self.what_is_saved()}")
                    os._exit(EXIT_CODE_INTERRUPTED)


class Stopped(SystemExit):
    """Training was asked to stop and has saved; leaves the program with EXIT_CODE_RESUME."""

    def __init__(self, code: int = EXIT_CODE_RESUME) -> None:
        super().__init__(code)


def say(text: str) -> None:
    """Write a line to stderr, past Python's buffers: a signal may have come in the middle of a print."""
    with suppress(OSError):
        os.write(2, f"{program()}: {text}\n".encode(errors="backslashreplace"))
