"""How several processes share a list of videos: each takes a fixed part of it, so that none is done twice.

Parts follow from the list and the number of processes alone: no process waits for another or leaves claims behind that
outlive it when it is killed (docs/decisions/fixed-shares.md).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import NamedTuple

from adatad.errors import UserError
from adatad.files import shown

MAX_SHARES = 10**7
ARRAY, STEP = "SLURM_ARRAY_TASK", "SLURM_STEP_NUM_TASKS"


class ListShare(NamedTuple):
    """This process's part of a list: number `index`, from 0, of `count`."""

    index: int
    count: int


def slurm_share(environment: Mapping[str, str] = os.environ) -> ListShare:
    """Return the part of this task among those of a Slurm array, and of a step that srun started with several tasks
    unless torchrun's variables say that its ranks share the part themselves. Raises UserError for tasks of an array
    whose numbers aren't evenly spaced."""
    array = _array_share(environment)
    # Of a batch script SLURM_NTASKS counts tasks that nobody has started: only a step's own number tells.
    if STEP not in environment or "WORLD_SIZE" in environment:
        return array
    tasks, task = _number(environment, STEP, 1), _number(environment, "SLURM_PROCID", 0)
    return ListShare(array.index * tasks + task, array.count * tasks)


def _array_share(environment: Mapping[str, str]) -> ListShare:
    """Return the part of a task of an array; the whole without one."""
    if f"{ARRAY}_ID" not in environment:
        return ListShare(0, 1)
    count = _number(environment, f"{ARRAY}_COUNT", 1)
    first, step = _number(environment, f"{ARRAY}_MIN", 0), _number(environment, f"{ARRAY}_STEP", 1) or 1
    task, last = _number(environment, f"{ARRAY}_ID", 0), environment.get(f"{ARRAY}_MAX")
    index, off = divmod(task - first, step)
    # An array such as 3,5,9 doesn't say which of its tasks is the second.
    even = last is None or _number(environment, f"{ARRAY}_MAX", 0) == first + (count - 1) * step
    if off or not even or not 0 <= index < count:
        raise UserError(
            f"task {task} of the array: its {count} tasks aren't evenly spaced, so that nobody knows which part of the "
            f"list is whose; submit it with --array=0-{max(count, 1) - 1}"
        )
    return ListShare(index, count)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and int(text[:9]) <= MAX_SHARES and len(text) < 9):
        raise UserError(f"{name} is {shown(text, 40)!r}; expected a whole number, as Slurm sets it")
    return int(text)


def take_own_gpu(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set LOCAL_RANK, by which a process takes one of its node's GPUs, for a task that srun started by itself; as
    slurm/rank.sh does."""
    if STEP not in environment or "WORLD_SIZE" in environment or "LOCAL_RANK" in environment:
        return
    # A task that is shown its own GPU alone takes that one.
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    own_alone = visible and "," not in visible
    environment["LOCAL_RANK"] = "0" if own_alone else environment.get("SLURM_LOCALID", "0")


def split(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divide things among `count` takers: the largest first, each to whoever has least. Returns the numbers of each
    taker's things, ascending. sizes: of the things, at least 0, in any unit."""
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, taker) for taker in range(count)]
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        load, taker = heapq.heappop(loads)
        shares[taker].append(number)
        # One more: things without a known size are spread, too.
        heapq.heappush(loads, (load + sizes[number] + 1, taker))
    return [sorted(share) for share in shares]
