"""tools/train.py without its pictures, and with something planted in its training steps, as the job's PROGRAM.

PLANT, words separated by spaces: of the first attempt only,
    hold:STEP          before this step (counted from 0) wait until a stop signal has been noted, or the file PLANT_GO
    keep-holding:STEP  the same, but signals don't end it
    fail:RANK:STEP     this rank raises an error in this step
PLANT_GO.held-<rank> says that a rank holds.
"""

import os
import runpy
import time
from pathlib import Path

import adatad
import adatad.training.signals as signals

HOLD_SECONDS = 300


def plant(words: list[str]) -> None:
    import adatad.training.loop as loop

    real = loop.train_step

    def train_step(parts, micro_batches, step):
        for word in words:
            kind, *numbers = word.split(":")
            if kind == "fail" and (parts.processes.rank, step) == tuple(map(int, numbers)):
                raise ValueError("planted in a step")
            if kind in ("hold", "keep-holding") and step == int(numbers[0]):
                hold(parts.processes.rank, signals_count=kind == "hold")
        return real(parts, micro_batches, step)

    loop.train_step = train_step


def hold(rank: int, signals_count: bool) -> None:
    go = Path(os.environ["PLANT_GO"])
    go.with_name(f"{go.name}.held-{rank}").touch()
    end = time.monotonic() + HOLD_SECONDS
    while not go.exists() and not (signals_count and REQUESTS[-1].signal_name):
        assert time.monotonic() < end, "nobody let this rank go on"
        time.sleep(0.05)


REQUESTS: list[signals.StopRequest] = []
"""The last one is the run's: a verb makes a new one each time that it is run in a process."""
real_init = signals.StopRequest.__init__


def remember(self) -> None:
    real_init(self)
    REQUESTS.append(self)


def draw_nothing() -> None:
    """A third of the processor time of so short a run goes into pictures, which these tests don't look at."""
    import adatad.report.page as page
    import adatad.report.timelines as timelines

    page.try_write_report = lambda *arguments, **options: None
    timelines.validation_timelines = lambda *arguments, **options: ()


if __name__ == "__main__":
    draw_nothing()
    signals.StopRequest.__init__ = remember
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and os.environ.get("PLANT"):
        plant(os.environ["PLANT"].split())
    runpy.run_path(str(Path(adatad.__file__).parents[1] / "tools" / "train.py"), run_name="__main__")
