"""The output of all ranks of an attempt as it comes: a file for each rank, and the first error again at the end.

Lines that srun labels go to rank-<n>.log, where one task is one rank, or where the launcher says which rank speaks
(torchrun); else to node-<n>.log. Everything goes to standard output, with its rank in front. Needs the standard library
alone, as the supervisor does.
"""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

LABEL = re.compile(r"^ *(\d+): ?")
RANK = re.compile(r"^\[rank(\d+)\]: ?")
"""torch's own label before tracebacks, and the one that torchrun is told to make."""
NAMED_FAULT = re.compile(r"^rank (\d+) on \S+ \(pid \d+\): .*(?<!\(after the other\))$")
"""The line by which all ranks name the one that failed first (`adatad.parallel.failures`)."""
# Python's and C's tracebacks, and errors in one line, as of this program and of compilers.
ERROR = re.compile(r"^(Traceback \(most recent call last\):|Fatal Python error|\S*\.py: |\S*Error: |\S+: error: )")
TASK_LEFT = re.compile(
    r"^srun: error: .*: tasks? (\d+).*: (Exited with|Killed|Terminated|Aborted|Segmentation|Bus|User)"
)
# Of each stream in memory: a traceback through torch's layers has a hundred lines.
MAX_KEPT_LINES = 400
MAX_SHOWN_LINES = 40


@dataclass
class Stream:
    """Output of one rank, or of one node whose ranks aren't told apart."""

    name: str
    path: Path
    last: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_KEPT_LINES))

    def write(self, text: str) -> None:
        """Append a line to the file. A disk that is full costs the line, not the job."""
        with suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def end(self) -> list[str]:
        """Return the last error and what follows it; without one the last lines."""
        lines = list(self.last)
        errors = [index for index, line in enumerate(lines) if ERROR.match(line)]
        tracebacks = [index for index in errors if lines[index].startswith(("Traceback", "Fatal"))]
        # A traceback says more than the one-line errors that may follow it.
        starts = tracebacks or errors
        lines = lines[starts[-1] :] if starts else lines[-10:]
        if len(lines) > MAX_SHOWN_LINES:
            # The head names the kind of error, the end its cause.
            lines = [*lines[:5], "...", *lines[5 - MAX_SHOWN_LINES :]]
        return lines


class RankLogs:
    """Sorter of labelled lines. header: a line that begins this attempt in every file."""

    def __init__(self, folder: Path, out: TextIO, header: str, one_task_a_rank: bool = True):
        self.folder, self.out, self.header, self.one_task_a_rank = folder, out, header, one_task_a_rank
        self.streams: dict[str, Stream] = {}
        self.first: Stream | None = None
        self.fault = ""
        self.named = False

    def take_and_flush(self, line: str) -> None:
        """`take`, for lines from processes that would die of a closed pipe: errors of the output are passed over."""
        with suppress(OSError):
            self.take(line)
            self.out.flush()

    def take(self, line: str) -> None:
        """Write a line to standard output and to its rank's file, and remember the first error."""
        label = LABEL.match(line)
        if not label:
            # srun's own messages, and lines of programs that print without their rank.
            self.out.write(line + "\n")
            left = TASK_LEFT.match(line)
            if left and not self.first:
                self.first, self.fault = self.stream(left[1]), line
            return
        text = line[label.end() :]
        rank = RANK.match(text)
        if rank:
            stream, text = self.stream(rank[1], is_rank=True), text[rank.end() :]
        else:
            stream = self.stream(label[1])
        self.out.write(f"{stream.name} | {text}\n")
        stream.write(text)
        stream.last.append(text)
        self.look_for_faults(stream, text)

    def stream(self, number: str, is_rank: bool = False) -> Stream:
        """Return the stream of a task's or rank's number, whose file begins with this attempt's header."""
        name = f"rank {number}" if is_rank or self.one_task_a_rank else f"node {number}"
        if name not in self.streams:
            self.streams[name] = Stream(name, self.folder / f"{name.replace(' ', '-')}.log")
            self.streams[name].write(self.header)
        return self.streams[name]

    def look_for_faults(self, stream: Stream, text: str) -> None:
        """Remember the first error. The rank that all ranks name counts for more than the one that was heard first."""
        # All ranks print the line when one has failed; what they heard first may be a time-out that followed from it.
        named = NAMED_FAULT.match(text)
        if named and not self.named:
            # Ranks behind one task of a launcher without prefixes have no stream of their own.
            own = self.one_task_a_rank or f"rank {named[1]}" in self.streams
            self.first = self.stream(named[1], is_rank=True) if own else stream
            self.fault, self.named = text, True
        elif not self.first and ERROR.match(text):
            self.first, self.fault = stream, text

    def repeat_first_error(self) -> None:
        """Write the first failing rank and its error again, at the end of the output."""
        if not self.first:
            return
        self.out.write(f"\nThe first failing rank was {self.first.name} ({self.first.path}):\n")
        for line in [self.fault, *self.first.end()] if self.named else self.first.end():
            self.out.write(f"{self.first.name} | {line}\n")
