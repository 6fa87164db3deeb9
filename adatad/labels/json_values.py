"""Parts of JSON files whose form nobody promises: objects and lists, or empty ones in their place."""

from __future__ import annotations

import math
from typing import Any

from adatad.labels.values import number


def as_object(value: Any) -> dict[str, Any]:
    """Return an object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list; an empty one for anything else."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """Return a text, also of a whole number; an empty one for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def first_text(content: dict[str, Any], *keys: str) -> str:
    """Return the first text that stands under one of the keys; empty if none does."""
    return next((text for key in keys if (text := as_text(content.get(key)).strip())), "")


def whole(value: Any) -> int | None:
    """Return a count above 0; None for anything else."""
    found = number(value)
    return int(found) if found is not None and math.isfinite(found) and found >= 1 else None
