"""Ranks of a real process group for tests: torch is imported once, and every rank is forked from there."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pictures

CONTEXT = multiprocessing.get_context("forkserver")
# Each would take a part of a second in every rank.
CONTEXT.set_forkserver_preload(["adatad.training.run", "deepspeed", "fairscale", "hypothesis", "pytest"])


def run_ranks(world: int, target: Callable[..., Any], *args: Any, timeout_seconds: float = 180) -> list[Any]:
    """Results of `target(*args)` on every rank, in rank order, within the environment that torchrun would give.

    `target` is a function of a module. The first error of any rank ends all of them and is raised here.
    """
    environment = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pipes, processes = [], []
    for rank in range(world):
        ours, theirs = CONTEXT.Pipe(duplex=False)
        mine = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
        process = CONTEXT.Process(target=_rank, args=(mine, theirs, target, args), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return _collect(pipes, time.monotonic() + timeout_seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for number, pipe in enumerate(pipes) if number not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        assert ready, f"ranks {sorted(set(range(len(pipes))) - results.keys())} gave no result in time"
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                error, results[rank] = pipe.recv()
            except EOFError:
                error = "died without an error message"
            assert error is None, f"rank {rank}: {error}"
    return [results[rank] for rank in range(len(pipes))]


def _rank(environment: dict[str, str], pipe: Connection, target: Callable[..., Any], args: tuple) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    pictures.draw(False)
    try:
        pipe.send((None, target(*args)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
