"""Kill training at random moments, resume it each time, and compare what it ends with, bit for bit.

python tests/kill_night.py --kills 200 [--seed 1]

Moments are drawn over the whole of an attempt: start-up, training, saving, evaluating, the report; every tenth attempt
is a new process, which may be killed while it imports. Leaves with 1 if any run ended otherwise than the one that was
left alone, or if a signal that asks wasn't answered with exit code 75, 130 or 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny_spec import TINY_SPEC

# All that training imports and compiles, once: attempts are children of this process.
from adatad.data.prepare.demo import make_demo
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training.checkpoint import BEST, all_checkpoints, read_checkpoint
from adatad.training.resolve import resolve_run
from adatad.training.run_directory import RunDirectory, run_directory, with_id
from adatad.training.validation import score_summary

TRAIN = str(Path(__file__).parents[1] / "tools" / "train.py")
EPOCHS, STEPS = 3, 9
NEW_PROCESS_EVERY = 10
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ANSWERS = {75: "left with 75", 130: "left with 130", 0: "done"}
ANSWER_SECONDS = 300
"""Of a signal that asks, on a machine that does much else."""


@dataclass
class Night:
    """Record of kills: what, when, and what went wrong."""

    spec_file: Path
    moments: random.Random
    seconds: float = 0.0
    """That an attempt takes which is left alone."""
    table: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    attempts: int = 0

    @property
    def kills(self) -> int:
        return self.table.total()

    def run(self, number: int) -> RunDirectory:
        return run_directory(with_id(load(self.spec_file), number))

    def start(self, number: int) -> int:
        """Begin, or resume, a run; returns the process's number."""
        arguments = [TRAIN, str(self.spec_file), "--resume", "auto", "--id", str(number)]
        self.attempts += 1
        log = self.spec_file.with_name("output.txt").open("ab")
        if self.attempts % NEW_PROCESS_EVERY == 0:
            return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, start_new_session=True).pid
        child = os.fork()
        if child:
            log.close()
            return child
        os.setsid()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.argv = arguments
        code = 1
        try:
            runpy.run_path(TRAIN, run_name="__main__")
        except SystemExit as left:
            code = left.code
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 0)

    def left_alone(self, number: int) -> None:
        """A run, from where it stands to its end."""
        began, child = time.monotonic(), self.start(number)
        code = _wait(child, ANSWER_SECONDS)
        self.seconds = self.seconds or time.monotonic() - began
        if code != 0:
            self.problems.append(f"id{number}: left alone it ended with {code}")

    def kill_once(self, number: int) -> bool:
        """Begin, or resume, a run, and kill it; whether it came to its end before."""
        child, number_of_attempt = self.start(number), self.attempts
        end = time.monotonic() + self.moments.uniform(0, 1.2 * self.seconds)
        while time.monotonic() < end:
            code = _poll(child)
            if code is not None:
                if code != 0:
                    self.problems.append(f"id{number}: an attempt ended by itself, with {code}")
                return True
            time.sleep(0.002)
        moment, how = self.moment(number, child), self.moments.choice(SIGNALS)
        os.kill(child, how)
        code = _wait(child, ANSWER_SECONDS)
        # Nobody can answer before the interpreter runs.
        early = moment == "start-up" and number_of_attempt % NEW_PROCESS_EVERY == 0
        fate = "killed" if code == -how and (how == signal.SIGKILL or early) else ANSWERS.get(code)
        if fate is None:
            fate = f"exit code {code}"
            self.problems.append(f"id{number}: {how.name} in {moment} was answered with {code}")
        self.table[moment, how.name, fate] += 1
        return code == 0

    def moment(self, number: int, child: int) -> str:
        """Return what a run is doing, by what stands in its directory."""
        run = self.run(number)
        owner = run.path / "owner.txt"
        if not owner.is_file() or f"pid {child}," not in owner.read_text():
            return "start-up"
        if list(run.checkpoints.glob(".step-*.unfinished")):
            return "saving"
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines() if line.endswith("}")]
        last = lines[-1] if lines else {"kind": "train", "step": 0}
        if last["kind"] == "evaluation":
            return "report" if last["step"] == STEPS else "training"
        return "evaluating" if last["step"] and last["step"] % (STEPS // EPOCHS) == 0 else "training"

    def compare(self, number: int, expected: int) -> None:
        """Weights, averages, optimizer, detections, scores and the best checkpoint of two runs."""
        ours, theirs = self.run(number), self.run(expected)
        for name, place in {"last": lambda run: all_checkpoints(run.checkpoints)[-1], "best": _best}.items():
            if place(ours).name != place(theirs).name:
                self.problems.append(f"id{number}: its {name} is {place(ours).name}, expected {place(theirs).name}")
                continue
            mine, other = (read_checkpoint(place(run)) for run in (ours, theirs))
            tensors = other.tensors()
            if mine.tensors().keys() != tensors.keys():
                self.problems.append(f"id{number}: other tensors in its {name} checkpoint")
            elif differ := [key for key, tensor in mine.tensors().items() if not torch.equal(tensor, tensors[key])]:
                self.problems.append(f"id{number}: {len(differ)} tensors of {name} differ, {differ[0]} among them")
        for file, keys in {"detections.json": ("results",), "result.json": ("average_mAP", "best_average_mAP")}.items():
            mine, other = (json.loads((run.path / file).read_text()) for run in (ours, theirs))
            self.problems += [f"id{number}: {file}: {key} differs" for key in keys if mine[key] != other[key]]
        if not (ours.path / "report.html").is_file():
            self.problems.append(f"id{number}: no report.html")
        left = [*ours.path.glob(".*"), *ours.checkpoints.glob(".*")]
        self.problems += [f"id{number}: {path.name} was left" for path in left]


def _best(run: RunDirectory) -> Path:
    return (run.checkpoints / BEST).resolve()


def _poll(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _wait(child: int, seconds: float) -> int | None:
    """Exit code of a process; None, and it is killed, if it hasn't left in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        code = _poll(child)
        if code is not None:
            return code
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def spend(kills: int, seed: int, folder: Path, data: Path | None) -> Night:
    """Runs in `folder`, killed so often in all, the last one then left alone."""
    if data is None:
        data = folder / "data"
        make_demo(data, train_videos=6, validation_videos=2, seed=5)
    spec_file = folder / "tiny.yaml"
    spec_file.write_text(TINY_SPEC.format(data=data, runs=folder / "runs"))
    spec = load(spec_file)
    score_summary({}, resolve_run(spec, Processes(0, 1, torch.device("cpu"))))
    night, number = Night(spec_file, random.Random(seed)), 1
    night.left_alone(0)
    while night.kills < kills and len(night.problems) < 10:
        if night.kill_once(number):
            night.compare(number, 0)
            number += 1
    night.left_alone(number)
    night.compare(number, 0)
    print(f"{night.kills} kills in {night.attempts} attempts of {number} runs (seed {seed})")
    return night


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--data", type=Path, help="a demo data set that make_demo wrote; default: a new one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        night = spend(args.kills, args.seed, Path(folder), args.data)
        if night.problems:
            print(Path(folder, "output.txt").read_text()[-4000:], file=sys.stderr)
    for (moment, how, fate), count in sorted(night.table.items()):
        print(f"{moment:12} {how:8} {fate:20} {count:4}")
    print("\n".join(night.problems) or "every run ended with the same bits, detections, scores and best checkpoint")
    return 1 if night.problems else 0


if __name__ == "__main__":
    sys.exit(main())
