"""Names for what code is doing, so that a meter can say to whom a tensor belongs, and a profile where time goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

WAIT = "wait for data"
"""Timed part of a step in which the next batch isn't there yet."""
RECOMPUTATION = "recomputation"
"""Timed part of what backward computes a second time."""
OpenRange = Callable[[str], AbstractContextManager]
# Open scopes of the one thread that trains, outermost first. A step runs on no other.
_names = ["other"]
# What makes a range of a profile; None while nothing is profiled, so that scopes cost one comparison more.
_open_range: OpenRange | None = None
_NO_RANGE = nullcontext()


def current_scope() -> str:
    """Return the innermost scope's name; "other" outside of all."""
    return _names[-1]


def scope_path() -> str:
    """Return what is being done, from outside in."""
    return " > ".join(_names[1:])


def show_ranges(open_range: OpenRange | None) -> None:
    """Have every scope and timed part that is opened from now on open a range of a profile, too; None: no longer."""
    global _open_range
    _open_range = open_range


class memory_scope:  # noqa: N801, used as a statement
    """`with memory_scope("saved inputs"):` new tensors are counted as saved inputs. Costs nothing worth mentioning."""

    _range: AbstractContextManager | None = None

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        _names.append(self.name)
        if _open_range is not None:
            self._range = _open_range(self.name)
            self._range.__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._range is not None:
            self._range.__exit__(kind, error, trace)
        # The innermost scope notes the path; those around it find it noted. It is what a report on an out-of-memory
        # error shows, and by then all scopes are closed.
        if error is not None and not hasattr(error, "scope_path"):
            error.scope_path = scope_path()
        _names.pop()


def timed_part(name: str) -> AbstractContextManager:
    """`with timed_part("losses"):` a range while a step is profiled, else nothing. Tensors stay with their scope."""
    return _NO_RANGE if _open_range is None else _open_range(name)


def scope_path_of(error: BaseException) -> str:
    """Return what was being done when an error was raised, from outside in; "" outside of all scopes."""
    return getattr(error, "scope_path", "")
