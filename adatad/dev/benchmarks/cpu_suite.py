"""Resident memory and CPU time of real training steps on one thread, compared with the reference's recorded ones.

VideoMAE-S with adapters in all blocks, 128 frames of 160 pixels, batch 1, float32. Every policy runs in processes of
its own, one for time and one for memory; times are compared through a calibration (a fixed matrix product) taken in the
same process.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from ctypes import CDLL
from pathlib import Path
from typing import NamedTuple

from adatad.dev.benchmarks.tables import Result

CONFIG = "configs/thumos/s_768x160_adapter.yaml"
OVERRIDES = "data.window.size_grid=128 model.detector.max_length=128 train.precision=fp32 train.global_batch=1"
POLICIES = {
    "none": "memory.policy=none",
    "block": "memory.policy=block",
    "tile": "memory.policy=tile memory.tile_clips=1",
}
STEPS = 5
NOISE = 1.1
"""Factor allowed for other work on the machine."""


class Recorded(NamedTuple):
    """A reference step, recorded in two rounds: median CPU seconds over its calibration, and peak rise of resident
    memory. torch 2.13.0, one thread."""

    seconds_per_calibration: float
    rise_bytes: float


# Means of the two rounds.
PLAIN = Recorded((14.3162 / 0.02814 + 11.9858 / 0.02361) / 2, (2916888576 + 2989043712) / 2)
RECOMPUTED = Recorded((20.3818 / 0.02908 + 17.2741 / 0.02437) / 2, (1212055552 + 1064542208) / 2)
REFERENCE = {"none": PLAIN, "block": RECOMPUTED, "tile": RECOMPUTED}
"""The reference without and with its checkpointing of blocks, by the policy that is compared with it."""
MAX_TILE_RISE = 0.44


def run() -> list[Result]:
    """Measure eight steps of each policy; about eight minutes."""
    measured = {name: measure(name, "time") | measure(name, "memory") for name in POLICIES}
    results = []
    for name in reversed(POLICIES):
        rise = measured[name]["rise_bytes"]
        bar = MAX_TILE_RISE if name == "tile" else None
        ratio = rise / REFERENCE[name].rise_bytes
        results.append(Result(f"{name}: memory rise / reference's", ratio, bar, 1.0, f"{rise / 1e6:.0f} MB"))
    for name, m in measured.items():
        # In units of the calibration, so that a slower machine gives the same figure.
        ratio = m["seconds"] / m["calibration"] / REFERENCE[name].seconds_per_calibration
        note = f"{m['seconds']:.2f} s a step, calibration {1000 * m['calibration']:.1f} ms"
        results.append(Result(f"{name}: time / reference's", ratio, NOISE, 1.0, note))
    return results


def measure(policy: str, what: str) -> dict[str, float]:
    """Measure steps of one policy in a fresh process of one thread. what: time or memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if what == "memory":
        # glibc keeps freed blocks below a threshold, which it raises by itself unless it is set. Set, every large
        # block is mapped and returned, so that memory is measured right, and time isn't: hence two processes.
        environment["MALLOC_MMAP_THRESHOLD_"] = "262144"
    command = [sys.executable, "-m", "adatad.dev.benchmarks.cpu_suite", policy, what]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def steps_of(policy: str, what: str) -> dict[str, float]:
    """Run a warm-up step in this process, then STEPS timed ones, or one whose memory is measured."""
    # Imported here: the parent process only starts others.
    import torch

    from adatad.models.detector import build_model
    from adatad.parallel.processes import Processes
    from adatad.spec import load
    from adatad.training.metered import random_batch
    from adatad.training.resolve import resolve_model
    from adatad.training.setup import build_train_state
    from adatad.training.step import train_step

    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = load(CONFIG, [*OVERRIDES.split(), *POLICIES[policy].split()], check_files=False)
    processes = Processes(0, 1, torch.device("cpu"))
    parts = build_train_state(resolve_model(spec, processes, 20), processes, build_model(spec.model, 20))
    batch = random_batch(spec, windows=1, num_classes=20, device=torch.device("cpu"))
    calibrate(torch)  # loads the library of matrix products before memory is measured
    floor = resident_floor()
    seconds, calibrations = [], []
    # The first step makes the optimizer's state and warms up caches.
    for step in range(1 + (STEPS if what == "time" else 1)):
        calibrations.append(calibrate(torch))
        started = time.process_time()
        train_step(parts, [batch], step)
        seconds.append(time.process_time() - started)
    if what == "memory":
        return {"rise_bytes": peak_resident() - floor}
    return {"seconds": statistics.median(seconds[1:]), "calibration": statistics.median(calibrations)}


def calibrate(torch) -> float:
    """Return the CPU seconds of a float32 product of two 1024 x 1024 matrices, the median of three."""
    a = torch.ones(1024, 1024)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        a @ a
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def resident_floor() -> int:
    """Give freed pages back, and return the resident bytes; the kernel's peak is reset to them."""
    gc.collect()
    CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, proc(5)
    return _status("VmRSS")


def peak_resident() -> int:
    """Return the most resident bytes since `resident_floor`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024  # "VmRSS:   1234 kB"


if __name__ == "__main__":
    print(json.dumps(steps_of(*sys.argv[1:])))
