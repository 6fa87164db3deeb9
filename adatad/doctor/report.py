"""The findings on a terminal, problems last, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from adatad.doctor.examine import examine, missing_files
from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding
from adatad.files import FileError, shown
from adatad.spec import SpecError, load


def doctor(spec_file: str | None, overrides: Sequence[str], overlays: Sequence[str], as_json: bool = False) -> int:
    """Print what was found of this machine and, with a spec, of an experiment; returns the exit code. Raises FileError
    where `spec_file` is no file."""
    spec, findings = None, []
    if spec_file is not None:
        if not Path(spec_file).is_file():
            what = "is no regular file" if Path(spec_file).exists() else "no such file"
            raise FileError(f"{spec_file}: {what}; name a spec")
        try:
            # What isn't there is looked at below, file by file.
            spec = load(spec_file, overrides, check_files=False, overlays=overlays)
        except SpecError as error:
            findings += missing_files(spec_file, error.problems)
        else:
            findings += unread_files(spec_file, overrides, overlays)
    findings += examine(spec)
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        print("\n".join(lines(findings)))
    return int(any(finding.level == PROBLEM for finding in findings))


def unread_files(spec_file: str, overrides: Sequence[str], overlays: Sequence[str]) -> list[Finding]:
    """Return findings on files that the spec names and that aren't there, but for those that later checks look at."""
    try:
        load(spec_file, overrides, overlays=overlays)
    except SpecError as error:
        problems = [line for line in error.problems if "model.backbone.weights" not in line]
        return missing_files(spec_file, problems)
    return [Finding("spec", OK, f"{spec_file}: every value is one, and its files are there")]


def lines(findings: Sequence[Finding]) -> list[str]:
    """What is in order, a line each; then warnings and problems, each with its fix."""
    found = [f"ok       {finding.topic}: {shown(finding.text)}" for finding in findings if finding.level == OK]
    for level in (WARNING, PROBLEM):
        for finding in findings:
            if finding.level == level:
                found.append(f"{level:<8} {finding.topic}: {shown(finding.text)}")
                found += [f"         fix: {shown(finding.fix)}"] if finding.fix else []
    counts = {level: sum(finding.level == level for finding in findings) for level in (PROBLEM, WARNING)}
    problems, warnings = counts[PROBLEM], counts[WARNING]
    return [*found, f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}"]
