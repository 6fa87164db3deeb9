"""The output of all ranks of a life as it comes: one file a rank, one with all, and the first error again at the end.

srun --label ... 2>&1 | python -m adatad.cluster.logs FOLDER LAUNCHER

What srun labels goes to FOLDER/rank-<n>.log, where one task is one rank, or where the launcher says which rank speaks
(torchrun); else to FOLDER/node-<n>.log. Everything goes to standard output, with its rank in front.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from adatad.training.life import DONE, LIFE, STOPPED

LABEL = re.compile(r"^ *(\d+): ?")
RANK = re.compile(r"^\[rank(\d+)\]: ?")
"""torch's own mark before tracebacks, and the one that torchrun is told to make."""
NAMED_FAULT = re.compile(r"^rank (\d+) on \S+ \(pid \d+\): .*(?<!\(after the other\))$")
"""What all ranks say of the one that failed first (`adatad.parallel.failures`)."""
ERROR = re.compile(r"^(Traceback \(most recent call last\):|Fatal Python error|\S*\.py: |\S*Error: |\S+: error: )")
TASK_LEFT = re.compile(
    r"^srun: error: .*: tasks? (\d+).*: (Exited with|Killed|Terminated|Aborted|Segmentation|Bus|User)"
)
KEPT_LINES = 400
SHOWN_LINES = 40


@dataclass
class Stream:
    """Of one rank, or of one node whose ranks aren't told apart."""

    name: str
    path: Path
    last: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))

    def write(self, text: str) -> None:
        """A disk that is full costs a line."""
        with suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def end(self) -> list[str]:
        """The last error and what follows it; without one the last lines."""
        lines = list(self.last)
        errors = [index for index, line in enumerate(lines) if ERROR.match(line)]
        tracebacks = [index for index in errors if lines[index].startswith(("Traceback", "Fatal"))]
        starts = tracebacks or errors
        lines = lines[starts[-1] :] if starts else lines[-10:]
        if len(lines) > SHOWN_LINES:
            lines = [*lines[:5], "...", *lines[5 - SHOWN_LINES :]]
        return lines


class RankLogs:
    """Sorts labelled lines. header: a line that begins this life in every file."""

    def __init__(self, folder: Path, out: TextIO, header: str, one_task_a_rank: bool = True):
        self.folder, self.out, self.header, self.one_task_a_rank = folder, out, header, one_task_a_rank
        self.streams: dict[str, Stream] = {}
        self.first: Stream | None = None
        self.fault = ""
        self.named = False

    def take(self, line: str) -> None:
        label = LABEL.match(line)
        if not label:
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
        name = f"rank {number}" if is_rank or self.one_task_a_rank else f"node {number}"
        if name not in self.streams:
            self.streams[name] = Stream(name, self.folder / f"{name.replace(' ', '-')}.log")
            self.streams[name].write(self.header)
        return self.streams[name]

    def look_for_faults(self, stream: Stream, text: str) -> None:
        """What the ranks agree on counts for more than who was heard first."""
        named = NAMED_FAULT.match(text)
        if named and not self.named:
            own = self.one_task_a_rank or f"rank {named[1]}" in self.streams
            self.first = self.stream(named[1], is_rank=True) if own else stream
            self.fault, self.named = text, True
        elif not self.first and ERROR.match(text):
            self.first, self.fault = stream, text

    def repeat_first_error(self) -> None:
        if not self.first:
            return
        self.out.write(f"\nThe first failing rank was {self.first.name} ({self.first.path}):\n")
        for line in [self.fault, *self.first.end()] if self.named else self.first.end():
            self.out.write(f"{self.first.name} | {line}\n")


def sort(lines: Iterable[str], logs: RankLogs) -> None:
    for line in lines:
        # Ranks would die of a closed pipe.
        with suppress(OSError):
            logs.take(line.rstrip("\r\n"))
            logs.out.flush()


def ended_well() -> bool:
    """Whether the ranks have left the marks of a life that ended as it should."""
    life = os.environ.get(LIFE, "")
    return any(Path(f"{life}.{kind}").exists() for kind in (DONE, STOPPED))


def main() -> int:
    folder, launcher = Path(sys.argv[1]), sys.argv[2]
    life = Path(os.environ.get(LIFE, "outside of a job")).name
    header = f"== life {life}, {time.strftime('%F %T')} =="
    # Without a folder lines still go through, and ranks don't die of a closed pipe.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    logs = RankLogs(folder, sys.stdout, header, one_task_a_rank=launcher == "srun")
    sys.stdin.reconfigure(errors="replace")
    sort(sys.stdin, logs)
    if not ended_well():
        logs.repeat_first_error()
    return 0


if __name__ == "__main__":
    sys.exit(main())
