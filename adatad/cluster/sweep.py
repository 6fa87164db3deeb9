"""The list of a sweep, and the table of one by an array of jobs: a row for each line, with its run's result so far.

The supervisor reads lists by this module, so it needs the standard library alone.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from adatad.files import FileError, read_text, shown
from adatad.report.run_files import Record, is_there, read_result


def sweep_lines(path: Path) -> list[str]:
    """Return the lines of a list of overrides, without comments and empty ones. Raises FileError."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def table(rows: list[str], folder: Path, first_id: int) -> str:
    """Return the table in Markdown. folder: that of the spec's runs."""
    lines = ["| id | overrides | average mAP | best | epochs |", "| --- | --- | --- | --- | --- |"]
    for number, row in enumerate(rows, first_id):
        file = folder / f"id{number}" / "result.json"
        # A bar would end the cell.
        lines.append(f"| {number} | {shown(row).replace('|', '&#124;')} | {' | '.join(_cells(file))} |")
    return "\n".join(lines) + "\n"


def _cells(file: Path) -> list[str]:
    if not is_there(file):
        return ["-", "-", "no result yet"]
    try:
        result: Record = read_result(file)
    except FileError:
        return ["-", "-", "result.json can't be read"]
    # In percent, as papers and the other tables have mAP.
    values = ["-" if result[key] is None else f"{100 * result[key]:.2f}" for key in ("average_mAP", "best_average_mAP")]
    return [*values, "-" if result["epochs"] is None else str(result["epochs"])]


def write_table(file: Path, folder: Path, first_id: int) -> str:
    """Write `sweep-<list>.md` and return it.

    Tasks that end at the same moment each write the table, on several hosts: the last one to write looks again, so that
    it leaves no other's result out.
    """
    rows, written = sweep_lines(file), ""
    while (text := table(rows, folder, first_id)) != written:
        # One name for each process on each host: tasks write at the same time.
        unfinished = folder / f".sweep-{socket.gethostname()}-{os.getpid()}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / f"sweep-{file.stem}.md")
        written = text
    return written
