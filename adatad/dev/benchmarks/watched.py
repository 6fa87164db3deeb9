"""A command in a process of its own, watched from outside: wall-clock, CPU time and peak resident memory."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Watched:
    """Cost of a process without its children. peak_bytes: of resident memory, as the kernel counts it for /proc."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def watch(command: Sequence[str], until: Callable[[], bool] | None = None) -> Watched:
    """Run a command to its end, or until something is seen, when it is ended with all that it started.

    Raises RuntimeError with what it wrote if it fails, or ends before it is seen.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    # A session of its own: loader processes end with it.
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    last = Watched(0.0, 0.0, 0)
    try:
        # VmHWM and not ru_maxrss, which begins with the memory of the process that started this one.
        while process.poll() is None and not (until and until()):
            last = _cost(process.pid, started) or last
            time.sleep(POLL_SECONDS)
        last = _cost(process.pid, started) or last
        ended = process.poll()
    finally:
        # The group's number is its leader's, which is there until it is waited for.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
    if ended is not None and (ended or until):
        raise RuntimeError(f"{' '.join(command)}: exit code {ended}\n{output[-2000:]}")
    return last


def _cost(pid: int, started: float) -> Watched | None:
    """Return what a process has cost so far; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        # Fields after the command's name, which may hold blanks: utime and stime are the 14th and 15th of all.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return None
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    # A process that has ended, but wasn't waited for, has no memory any more.
    if peak is None:
        return None
    cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return Watched(time.monotonic() - started, cpu, int(peak.split()[1]) * 1024)
