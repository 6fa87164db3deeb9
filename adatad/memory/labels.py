"""Names for what code is doing, so that a meter can say to whom a tensor belongs."""

from __future__ import annotations

from types import TracebackType

_names = ["other"]


def current_label() -> str:
    return _names[-1]


def place() -> str:
    """What is being done, from outside in."""
    return " > ".join(_names[1:])


class label:  # noqa: N801, used as a statement
    """`with label("saved rows"):` new tensors belong to the saved rows. Costs nothing worth mentioning."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        _names.append(self.name)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not hasattr(error, "place"):
            error.place = place()
        _names.pop()


def place_of(error: BaseException) -> str:
    """What was being done when an error was raised, from outside in; "" outside of all labels."""
    return getattr(error, "place", "")
