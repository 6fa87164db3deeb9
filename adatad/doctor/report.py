"""The findings on a terminal, problems last, or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adatad.doctor.examine import examine, missing_files
from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding
from adatad.files import FileError, shown
from adatad.spec import SpecError, load
from adatad.spec.arguments import overrides_from, spec_path


def doctor(args: argparse.Namespace) -> int:
    """args: of `tools/doctor.py`. Returns the exit code. Raises FileError where SPEC is no file."""
    spec, findings = None, []
    if args.spec is not None:
        path = spec_path(args.spec)
        if not Path(path).is_file():
            raise FileError(
                f"{args.spec}: {'is no regular file' if Path(path).exists() else 'no such file'}; name a spec"
            )
        try:
            # What isn't there is looked at below, file by file.
            spec = load(path, overrides_from(args), check_files=False, overlays=args.overlays)
        except SpecError as error:
            findings += missing_files(args.spec, error.problems)
        else:
            findings += unread_files(args, path)
    elif args.overrides or args.overlays or args.id is not None:
        raise FileError("--set, --overlay and --id change a spec: name one")
    findings += examine(spec)
    if args.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        print("\n".join(lines(findings)))
    return int(any(finding.level == PROBLEM for finding in findings))


def unread_files(args: argparse.Namespace, path: str) -> list[Finding]:
    """Files that the spec names and that aren't there, but for those that later checks say more of."""
    try:
        load(path, overrides_from(args), overlays=args.overlays)
    except SpecError as error:
        problems = [line for line in error.problems if "model.backbone.weights" not in line]
        return missing_files(args.spec, problems)
    return [Finding("spec", OK, f"{args.spec}: every value is one, and its files are there")]


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
