"""Pages of docs/ that are made from the code: `adatad dev docs` writes them, a test holds them against it."""

from __future__ import annotations

from collections.abc import Callable

PAGES: dict[str, Callable[[], str]] = {}
"""The text of each page, by its name in docs/."""
