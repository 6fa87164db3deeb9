"""Which run of an experiment this is, settled on the first rank before anything else, for all ranks alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.training.run_directory import ids_of, names_its_id, reserved, run_directory, with_id

T = TypeVar("T")
OPENED = "run opened"
"""Noted for later attempts of a job that torchrun restarts."""
SETTLED = "id of the run"


@dataclass(frozen=True)
class Settled:
    """spec: with the run's id. is_reserved: its directory was made for this process. notes: what is to be said."""

    spec: Spec
    is_reserved: bool = False
    notes: tuple[str, ...] = ()


@contextmanager
def settled(spec: Spec, processes: Processes, resume: str | None, overwrite: bool) -> Iterator[Settled]:
    """Which run it becomes. A fresh one that the user gave no id takes the next free id, of which nothing is left if
    the run isn't opened while the context lasts. Raises RunDirectoryError, FileError, on all ranks."""
    earlier = processes.noted_text(SETTLED)
    if earlier is not None:
        # What an earlier attempt of this job has taken is this one's too.
        yield Settled(with_id(spec, int(earlier)), is_reserved=True)
        return
    if resume is not None or overwrite or names_its_id(spec):
        yield Settled(spec, notes=on_main(processes, lambda: _which_of_several(spec, resume)))
        return
    with ExitStack() as stack:
        number = on_main(processes, lambda: stack.enter_context(reserved(spec)).run.id)
        processes.note(SETTLED, str(number))
        own, notes = with_id(spec, number), ()
        if number != spec.run.id:
            taken, here = run_directory(spec).path, run_directory(own).path
            notes = (f"{taken} holds a run (--resume auto continues it, --overwrite deletes it): this one is {here}",)
        yield Settled(own, True, notes)


def _which_of_several(spec: Spec, resume: str | None) -> tuple[str, ...]:
    """A line if `--resume auto` could mean several runs."""
    others = [number for number in ids_of(spec) if number != spec.run.id]
    if resume is None or names_its_id(spec) or not others:
        return ()
    names = ", ".join(f"id{number}" for number in others)
    return (f"--resume continues {run_directory(spec).path}; there are {names} too, which --id would name",)


def on_main(processes: Processes, action: Callable[[], T]) -> T:
    """What the first rank's action returns, on every rank; what stops it stops every rank."""
    result, error = None, None
    if processes.is_main:
        try:
            result = action()
        except Exception as caught:
            error = caught
    # Every rank must see the same, also while files change.
    result, error = processes.gather((result, error))[0]
    if error is not None:
        raise error
    return result
