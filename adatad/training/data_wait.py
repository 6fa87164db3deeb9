"""How much of training is spent waiting for data, and when that is too much."""

from __future__ import annotations

TOO_MUCH = 0.1
"""Share of the time of steps above which waiting is worth a warning."""


class DataWait:
    """Sums over the steps of an epoch. The first step of a run isn't counted: its loader has only just begun."""

    def __init__(self) -> None:
        self.waited_seconds = self.whole_seconds = 0.0
        self._started = self._said = False

    def add(self, waited_seconds: float, whole_seconds: float) -> None:
        """A step that took `whole_seconds`, of which it waited for its batch `waited_seconds`."""
        if self._started:
            self.waited_seconds += waited_seconds
            self.whole_seconds += whole_seconds
        self._started = True

    def end_epoch(self) -> str | None:
        """A line to log, once in a run, if waiting took too much of the epoch; the next one is counted afresh."""
        share = self.waited_seconds / self.whole_seconds if self.whole_seconds else 0.0
        self.waited_seconds = self.whole_seconds = 0.0
        if self._said or share <= TOO_MUCH:
            return None
        self._said = True
        return (
            f"{share:.0%} of this epoch's time went into waiting for data: raise data.workers; "
            "`adatad data benchmark SPEC` says what limits and how many are needed"
        )
