"""Ranks of a whole run, one of which has a fault at a step; also as a program for torchrun.

torchrun ... tests/parallel/faulty.py KIND RANK STEP SPEC [ARGUMENTS OF adatad train]
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pictures
import torch
from ranks import CONTEXT, free_port

NO_FAULT = ("none", 0, 0)
QUICK = ("--set", "schedule.epochs=2", "train.evaluate_every_epochs=9")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    threading.Event().wait()


def fail() -> None:
    raise ValueError("planted in a step")


def fill_disk() -> None:
    """From now on the system takes the beginning of a file, and no more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def stop() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


KINDS = {"stop": stop, "kill": kill, "hang": hang, "fail": fail, "full disk": fill_disk}


def plant(kind: str, rank: int, step: int) -> None:
    """Let one rank have its fault in the middle of the forward pass of one step (counted from 0)."""
    if os.environ["RANK"] != str(rank) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return
    import adatad.training.loop as loop

    real = loop.train_step

    def train_step(parts, batches, at):
        if at == step:
            in_mid_step(parts.model, kind)
        return real(parts, batches, at)

    loop.train_step = train_step


def in_mid_step(model: torch.nn.Module, kind: str) -> None:
    if kind in KINDS:
        model.register_forward_hook(lambda *_: KINDS[kind]())
        return
    handles: list = []
    parameter = next(p for name, p in model.named_parameters() if name.endswith("adapter.up.weight"))

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        handles.pop().remove()
        return tensor * torch.nan

    if kind == "nan gradient":
        handles.append(parameter.register_hook(spoil))
    if kind == "nan loss":
        handles.append(model.backbone.register_forward_hook(lambda module, inputs, out: spoil(out)))


def run_rank(environment: dict[str, str], log: Path, fault: tuple[str, int, int], arguments: list[str]) -> None:
    """In a new process: `adatad train` with those arguments, whatever it prints to a file that all ranks share."""
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    pictures.draw(False)
    plant(*fault)
    sys.exit(command()(arguments))


@dataclass
class Left:
    codes: list[int]
    log: str

    def lines(self) -> list[str]:
        """Return the ranks' lines about errors, in order."""
        return [line for line in self.log.splitlines() if re.match(r"rank \d on ", line)]


def run_all(
    spec: Path, fault: tuple[str, int, int], *arguments: str, world: int = 2, timeout_seconds: float = 240
) -> Left:
    """A run of six steps on several ranks to its end, which must come by itself. One evaluation, at the end."""
    log = spec.parent / "log.txt"
    log.unlink(missing_ok=True)
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank in range(world):
        mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(CONTEXT.Process(target=run_rank, args=(mine, log, fault, [str(spec), *QUICK, *arguments])))
        ranks[-1].start()
    try:
        for rank in ranks:
            rank.join(timeout_seconds)
            assert rank.exitcode is not None, f"still there after {timeout_seconds} s:\n{log.read_text()}"
        return Left([rank.exitcode for rank in ranks], log.read_text())
    finally:
        for rank in ranks:
            rank.kill()


def command() -> Callable[[list[str]], None]:
    """`adatad train`, as a process ends with it."""
    from adatad.cli.command import run
    from adatad.cli.main import main

    return lambda arguments: run(lambda: main(["train", *arguments]))


if __name__ == "__main__":
    plant(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(command()(sys.argv[4:]))
