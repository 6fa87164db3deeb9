"""Names for what code is doing, so that a meter can say to whom a tensor belongs."""

from __future__ import annotations

from types import TracebackType

# Open scopes of the one thread that trains, outermost first. A step runs on no other.
_names = ["other"]


def current_scope() -> str:
    """Return the innermost scope's name; "other" outside of all."""
    return _names[-1]


def scope_path() -> str:
    """Return what is being done, from outside in."""
    return " > ".join(_names[1:])


class memory_scope:  # noqa: N801, used as a statement
    """`with memory_scope("saved inputs"):` new tensors are counted as saved inputs. Costs nothing worth mentioning."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        _names.append(self.name)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The innermost scope notes the path; those around it find it noted. It is what a report on an out-of-memory
        # error shows, and by then all scopes are closed.
        if error is not None and not hasattr(error, "scope_path"):
            error.scope_path = scope_path()
        _names.pop()


def scope_path_of(error: BaseException) -> str:
    """Return what was being done when an error was raised, from outside in; "" outside of all scopes."""
    return getattr(error, "scope_path", "")
