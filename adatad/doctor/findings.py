"""Findings: the result of a check and what to do about it, and how findings are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from adatad.errors import UserError
from adatad.files import reason, shown

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    """One result of a check. level: OK, WARNING (may be intended) or PROBLEM (something won't work)."""

    topic: str
    level: str
    text: str
    fix: str = ""


def guarded(topic: str, check: Callable[..., Iterable[Finding]], *arguments: object) -> list[Finding]:
    """Return the findings of a check. A check that fails itself gives a finding too, never an error."""
    try:
        return list(check(*arguments))
    except Exception as error:  # a broken machine can raise anything; the other checks go on
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {reason(error)}"
        return [Finding(topic, WARNING, f"{check.__name__.strip('_')} could not be checked: {text}")]


def lines(findings: Sequence[Finding]) -> list[str]:
    """Return the lines to print: what is in order first, then warnings and problems, each with its fix."""
    # Problems last: in a long list the end is what a terminal still shows.
    found = [f"ok       {finding.topic}: {shown(finding.text)}" for finding in findings if finding.level == OK]
    for level in (WARNING, PROBLEM):
        for finding in findings:
            if finding.level == level:
                found.append(f"{level:<8} {finding.topic}: {shown(finding.text)}")
                found += [f"         fix: {shown(finding.fix)}"] if finding.fix else []
    counts = {level: sum(finding.level == level for finding in findings) for level in (PROBLEM, WARNING)}
    problems, warnings = counts[PROBLEM], counts[WARNING]
    return [*found, f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}"]
