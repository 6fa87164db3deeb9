"""Functions compiled by numba on first use, and kept on disk for the next process where there is a place to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable)


def compiled(function: F) -> F:
    """The function compiled without Python objects; the source is numbers and arrays alone.

    The compiled code is kept beside the package, else in the user's cache directory (or where NUMBA_CACHE_DIR says).
    Where none can be written it is compiled anew in each process, which takes about a second.
    """
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError as error:
        # numba raises this while it looks for a place, and has no narrower class for it.
        if "locator" not in str(error):
            raise
        return numba.njit(function)
