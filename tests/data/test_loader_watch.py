"""Loader processes that die, are stopped or do nothing: named with their video and the cure, and never waited for."""

import os
import signal
import threading
from collections import namedtuple

import pytest
from torch.utils.data import Dataset

import adatad.data.loader as loader_module
from adatad.data.loader import Loader, LoaderError, fate_of, require_shared_memory


class Doing(Dataset):
    """Samples whose third does something to its own process."""

    def __init__(self, action):
        self.action = action

    def __getitem__(self, number: int) -> int:
        if number == 2:
            self.action()
        return number

    def video_of(self, number: int) -> str:
        return f"video_{number}"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    threading.Event().wait()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(loader_module, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(loader_module, "STOPPED_SECONDS", 0.3)
    monkeypatch.setattr(loader_module, "_collate_unless_error", list)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (die, r"was killed \(SIGKILL\), as the system does when memory runs out; it was to read video_\d\. Lower data"),
        (stop, r"is stopped; it was to read video_\d\. Look at that file and its disk; .*data\.workers=0"),
        (hang, r"has done nothing for 1\.\d+ s .*; it was to read video_2\."),
    ],
    ids=["killed", "stopped", "hangs"],
)
def test_the_process_is_named_with_its_video(quick, action, says):
    batches = iter(Loader(Doing(action), [[number] for number in range(4)], workers=1, idle_seconds=1.0))
    came = []
    with pytest.raises(LoaderError, match=says) as raised:
        came.extend(batches)
    # One that is killed or stopped may still hold what it had ready: then the first that it still owes is named.
    assert came == [[0], [1]][: len(came)]
    assert f"video_{len(came)}" in str(raised.value)
    assert came == [[0], [1]] or action is not hang


@pytest.mark.parametrize(
    ("code", "says", "cure"),
    [
        (-9, "SIGKILL", "memory"),
        (-7, "SIGBUS", "--shm-size"),
        (-11, "SIGSEGV", "workers"),
        (3, "exit code 3", "workers"),
    ],
)
def test_how_a_process_ended_says_what_helps(code, says, cure):
    fate, advice = fate_of(code)
    assert says in fate
    assert cure in advice


Disk = namedtuple("Disk", "f_flag f_bavail f_frsize")


@pytest.mark.parametrize(
    ("disk", "says"),
    [
        (
            Disk(0, 64, 10**6),
            r"has 64\.0 MB free; .* of 9\.6 MB there, up to 10 at a time: 96\.0 MB\..*--shm-size",
        ),
        (Disk(os.ST_RDONLY, 64, 10**9), r"can't be written to: .*data\.workers=0"),
    ],
)
def test_shared_memory_that_is_too_small_or_read_only_is_refused(monkeypatch, disk, says):
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    with pytest.raises(LoaderError, match=says):
        require_shared_memory(9_600_000, batches_ahead=5, processes=2)
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(0, 96, 10**6))
    require_shared_memory(9_600_000, batches_ahead=5, processes=2)
