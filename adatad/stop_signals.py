"""The signals that ask a run to stop. Imports nothing heavy, as processes of a pool start with it."""

from __future__ import annotations

import signal

# Each would end a process at once by default, without a checkpoint.
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
"""Signals with which systems, launchers, terminals and resource limits ask a process to end; Ctrl-C sends SIGINT."""


def leave_interruptions_to_the_parent() -> None:
    """Ignore SIGINT in a process of a pool: Ctrl-C reaches it too, and each process would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
