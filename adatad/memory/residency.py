"""Where frozen weights are while the wave doesn't use them: always there, or gathered for a few blocks at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Residency(Protocol):
    """An engine that shards weights gives the wave one of these.

    Inside a range of blocks the weights of its blocks are whole, as the blocks' own parameters; afterwards they are
    let go. `following` are the blocks that will be wanted next: their weights may be fetched meanwhile.
    """

    def whole(self, blocks: range, following: range) -> AbstractContextManager[None]: ...


class AlwaysThere:
    """Every rank holds all weights."""

    def whole(self, blocks: range, following: range) -> AbstractContextManager[None]:
        return nullcontext()
