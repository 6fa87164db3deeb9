"""One result of a check: what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from adatad.errors import UserError
from adatad.files import reason

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    """level: OK, WARNING (it may be meant so) or PROBLEM (something won't work)."""

    topic: str
    level: str
    text: str
    fix: str = ""


def guarded(topic: str, check: Callable[..., Iterable[Finding]], *arguments: object) -> list[Finding]:
    """The findings of a check. One that fails by itself is a finding too, never an error."""
    try:
        return list(check(*arguments))
    except Exception as error:  # Whatever a broken machine does; the other checks go on.
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {reason(error)}"
        return [Finding(topic, WARNING, f"{check.__name__.strip('_')} could not be checked: {text}")]
