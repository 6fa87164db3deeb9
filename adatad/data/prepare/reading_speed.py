"""Speed of loading an experiment's windows, what limits it, and how many loader processes are needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from adatad.data.annotations import read_annotations
from adatad.data.dataset import CHUNK_FRAMES, TrainingWindows, check_videos, open_named
from adatad.data.loader import Loader
from adatad.data.rng import epoch_order
from adatad.data.windows import Window
from adatad.spec import Spec
from adatad.spec.quirks import Quirks


@dataclass(frozen=True)
class DataSpeed:
    """Mean seconds for one training window: decoding, and transforms, in one process; and the loader with the spec's
    processes, from one batch to the next. All are measured from a video's second visit on."""

    windows: int
    decode_seconds: float
    transform_seconds: float
    loader_seconds: float
    workers: int

    @property
    def window_seconds(self) -> float:
        """Seconds of a window in one process."""
        return self.decode_seconds + self.transform_seconds

    @property
    def limit(self) -> str:
        """The slowest part: decode, transform, or loader if handing over costs more than both."""
        ideal = self.window_seconds / max(self.workers, 1)
        # A factor of two, for noise.
        if self.loader_seconds > 2 * ideal:
            return "loader"
        return "decode" if self.decode_seconds >= self.transform_seconds else "transform"

    def workers_for(self, step_seconds: float, windows: int) -> int:
        """Return how many loader processes have the `windows` of a step ready in time."""
        return max(1, math.ceil(windows * self.window_seconds / step_seconds))


def measure(spec: Spec, windows: int) -> DataSpeed:
    """Load the first `windows` of the first epoch in three ways. Raises the errors of reading them."""
    annotations = read_annotations(spec.data, Quirks.of(spec.compat))
    check_videos(spec.data, annotations.train)
    dataset = TrainingWindows(annotations.train, spec.data, spec.train.seed, Quirks.of(spec.compat))
    numbers = [int(number) for number in epoch_order(spec.train.seed, 0, len(dataset.videos))[:windows]]
    samples = [dataset[0, number] for number in numbers]
    # Above, every video was visited once: its index is built, and the disk's cache is warm.
    decode = whole = 0.0
    for number, sample in zip(numbers, samples, strict=True):
        decode += timed(lambda window=sample.window: decode_alone(spec, window))
        whole += timed(lambda number=number: dataset[0, number])
    count = len(numbers)
    # Twice as many batches: the first half isn't timed.
    loader = timed_loader(Loader(dataset, [[(0, number)] for number in numbers * 2], spec.data.workers))
    # A window's rest is a difference of two measured times: noise must not make it negative.
    return DataSpeed(count, decode / count, max(whole - decode, 0.0) / count, loader, spec.data.workers)


def timed(action: Callable[[], object]) -> float:
    """Return the wall seconds of a call, the better of two."""
    # The better of two: what else runs on the machine only ever adds time.
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def decode_alone(spec: Spec, window: Window) -> None:
    """Decode a window's frames at full size, a few at a time, and drop them."""
    with open_named(spec.data, window.video.name) as reader:
        for _ in reader.chunks(window.indices, CHUNK_FRAMES):
            pass


def timed_loader(loader: Loader) -> float:
    """Return the seconds from one batch to the next in the second half; in the first, processes start and index
    files."""
    half = len(loader) // 2
    batches = iter(loader)
    for _ in range(half):
        next(batches)
    started = time.perf_counter()
    rest = sum(1 for _ in batches)
    return (time.perf_counter() - started) / rest


def show(spec: Spec, speed: DataSpeed, world: int, step_seconds: float | None) -> None:
    """Print a table, the limit, and the number of loader processes for a step time. world: ranks of the run."""
    from rich.console import Console
    from rich.table import Table

    table = Table("a training window", "seconds", "share", title=f"mean of {speed.windows}", title_justify="left")
    for name, seconds in (("decode", speed.decode_seconds), ("transform", speed.transform_seconds)):
        table.add_row(name, f"{seconds:.3f}", f"{seconds / speed.window_seconds:.0%}")
    table.add_row(f"loader, data.workers {speed.workers}", f"{speed.loader_seconds:.3f}", "")
    Console().print(table)
    each = spec.train.global_batch // world
    print(f"{speed.limit} limits")
    if step_seconds is None:
        print(f"one loader process makes the {each} windows of a rank's step in {each * speed.window_seconds:.2f} s;")
        print("--step-seconds: how many processes a step of that time needs (metrics.jsonl has `step_seconds`)")
        return
    workers = speed.workers_for(step_seconds, each)
    print(f"steps of {step_seconds:g} s need data.workers {workers} on each of {world} ranks")
