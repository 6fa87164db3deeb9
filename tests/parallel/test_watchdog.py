"""Who failed is said while a rank waits inside something that never comes back, as NCCL's collectives do: real ranks
over gloo, stuck outside of Python, with a timer in place of NCCL's watchdog that ends the process by a signal."""

import ctypes
import os
import pickle
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from ranks import CONTEXT, free_port

from adatad.parallel import watchdog
from adatad.parallel.failures import FailureReporter, heartbeat
from adatad.parallel.processes import Processes, start_processes
from adatad.parallel.watchdog import LEFT, HangWatchdog, Monitor, missing_ranks

WATCHDOG_SECONDS = 60
"""Far past all that the monitor waits for, also on a busy machine."""


def stuck(processes: Processes) -> None:
    """In a wait that no error of another rank ends, past Python's reach."""
    ctypes.CDLL(None).sleep(2 * WATCHDOG_SECONDS)


def killed(processes: Processes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def frozen(processes: Processes) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def failing(processes: Processes) -> None:
    raise ValueError("planted")


def leaving(processes: Processes) -> None: ...


def working(processes: Processes) -> None:
    """Without a word to others for longer than a silent rank would be left alone, while they are gone or wait."""
    time.sleep(1.5 * watchdog.SILENT_LOOKS * watchdog.BEAT_SECONDS)


def rank_of(environment: dict[str, str], folder: Path, what) -> None:
    """A rank that takes part in one exchange and then does `what`; its output goes to a file of its own."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    for number in (1, 2):
        os.dup2(os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    watchdog.BEAT_SECONDS = 0.1
    with (
        start_processes() as processes,
        HangWatchdog(folder, rank, processes.monitor, 600, lambda: print("finished", flush=True)),
    ):
        dist.all_reduce(torch.ones(7))
        signal.setitimer(signal.ITIMER_REAL, WATCHDOG_SECONDS)
        what(processes)
    sys.exit(0)


def run_all(folder: Path, *tasks) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of ranks that do their tasks. One that is stopped is killed when all others have left."""
    shared = {"WORLD_SIZE": str(len(tasks)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        CONTEXT.Process(target=rank_of, args=({**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, folder, task))
        for r, task in enumerate(tasks)
    ]
    for rank in ranks:
        rank.start()
    try:
        for rank, task in zip(ranks, tasks, strict=True):
            if task is not frozen:
                rank.join(2 * WATCHDOG_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return [rank.exitcode for rank in ranks], [(folder / f"log-{r}.txt").read_text() for r in range(len(tasks))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        pytest.param((stuck, killed, stuck), "died without an error message", id="killed"),
        pytest.param((stuck, frozen), "doesn't answer: it hangs, or its host is gone", id="stopped"),
        # These have the store in their process.
        pytest.param((killed, stuck), "died without an error message", id="first_killed"),
        pytest.param((frozen, stuck), "doesn't answer: it hangs, or its host is gone", id="first_stopped"),
        pytest.param((failing, stuck), "ValueError: planted", id="first_failed"),
    ],
)
def test_ranks_that_are_stuck_name_the_one_that_failed_and_leave(tasks, says, tmp_path):
    codes, logs = run_all(tmp_path, *tasks)
    for rank, task in enumerate(tasks):
        if task is not stuck:
            continue
        assert codes[rank] == 1, f"ended by {codes[rank]}: {logs[rank]}"
        culprit = next(r for r, other in enumerate(tasks) if other is not stuck)
        lines = [line for line in logs[rank].splitlines() if re.match(r"rank \d on ", line)]
        assert len(lines) == 1
        assert re.fullmatch(rf"rank {culprit} on \S+ \(pid \d+\): {re.escape(says)}", lines[0])
        assert "in stuck" in (tmp_path / f"rank-{rank}.txt").read_text()
        assert "finished" in logs[rank]
        recorded = pickle.loads((tmp_path / f"exchanges_rank_{rank}").read_bytes())["entries"]
        assert [7] in recorded[-1]["input_sizes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "tasks",
    [
        # The first one takes the store along.
        pytest.param((leaving, working), id="first_leaves_early"),
        pytest.param((working, leaving, working), id="another_leaves_early"),
    ],
)
def test_ranks_that_work_long_or_leave_in_good_order_are_not_taken_for_dead(tasks, tmp_path):
    codes, logs = run_all(tmp_path, *tasks)
    assert codes == [0] * len(tasks), logs
    assert not any("rank" in log for log in logs)


def test_the_first_that_fell_silent_is_named_and_not_those_that_followed():
    late = watchdog.SILENT_LOOKS + 5
    assert missing_ranks([0, late, late - 1, late - 3, 2], gone=[]) == [1, 2]


def test_a_rank_whose_process_is_gone_is_missing_sooner_than_one_that_is_silent():
    quiet = [0, watchdog.DEAD_LOOKS, watchdog.DEAD_LOOKS]
    assert missing_ranks(quiet, gone=[1]) == [1]
    assert missing_ranks([0, 0, 0], gone=[1]) == [], "it beats: another container's processes aren't seen from here"


def test_the_first_rank_waits_with_its_store_for_one_that_looks_late(monkeypatch):
    store, clock = dist.HashStore(), [0.0]
    for key, value in (("place 1", "elsewhere 1"), (heartbeat(1), "0")):
        store.set(key, value)

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] > 5 * watchdog.BEAT_SECONDS:
            store.set(heartbeat(1), LEFT)

    watched = Monitor(FailureReporter(store, 0, 2), hang_seconds=600)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    watched.leave()
    assert store.get(heartbeat(0)) == store.get(heartbeat(1)) == LEFT.encode()
    assert clock[0] < 6 * watchdog.BEAT_SECONDS, "it leaves as soon as the other one knows"
