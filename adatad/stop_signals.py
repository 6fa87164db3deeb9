"""The signals that ask a run to stop. Imports nothing heavy."""

from __future__ import annotations

import signal

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGXCPU,
)
"""What systems, launchers, terminals and limits send to a process that is to end; a person presses Ctrl-C (SIGINT)."""


def leave_interruptions_to_the_parent() -> None:
    """For processes of a pool: a terminal's Ctrl-C reaches them too, and each would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
