"""GPUs: what nvidia-smi says of them, and what torch's build makes of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding

TOPIC = "GPUs"
QUERY = (
    "name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total",
    "mig.mode.current", "utilization.gpu",
)  # fmt: skip
BUSY_FRACTION = 0.1
"""Of a GPU's memory, in use by others: more is said."""


class Smi(NamedTuple):
    """gpus: facts by name of QUERY, one a GPU; error: why there are none."""

    gpus: list[dict[str, str]]
    error: str = ""

    @property
    def driver(self) -> str | None:
        return self.gpus[0]["driver_version"] if self.gpus else None


def ask_smi(limit_seconds: float = 4.0) -> Smi:
    """nvidia-smi's answer; a driver that hangs is one too."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Smi([], "there is no nvidia-smi")
    command = [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds, errors="replace")
    except subprocess.TimeoutExpired:
        return Smi([], f"nvidia-smi gives no answer in {limit_seconds:g} s")
    if done.returncode:
        said = (done.stdout + done.stderr).strip().partition("\n")[0]
        return Smi([], f"nvidia-smi left with {done.returncode}: {said}")
    return parse_smi(done.stdout)


def parse_smi(text: str) -> Smi:
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    return Smi([dict(zip(QUERY, row, strict=True)) for row in rows if len(row) == len(QUERY)])


def check_gpus(smi: Smi, torch: Mapping[str, Any], visible: str | None) -> Iterator[Finding]:
    """torch: of its probe; visible: CUDA_VISIBLE_DEVICES."""
    if smi.error and not smi.error.startswith("there is no"):
        fix = "reload or update the driver, or restart the machine; in a container, start it with --gpus all"
        yield Finding(TOPIC, PROBLEM, smi.error, fix)
    seen = torch.get("gpus", [])
    if smi.gpus and torch.get("cuda_build") and not seen and visible is not None:
        text = f"CUDA_VISIBLE_DEVICES={visible!r} hides all {len(smi.gpus)} GPUs"
        yield Finding(TOPIC, PROBLEM, text, "unset CUDA_VISIBLE_DEVICES")
    for number, gpu in enumerate(smi.gpus):
        yield from check_health(number, gpu)
    for number, gpu in enumerate(seen):
        yield from check_architecture(number, gpu, torch.get("arch_list", []))
    if seen:
        listed = ", ".join(
            f"{g['name']} with {g['free'] / 2**30:.1f} of {g['total'] / 2**30:.1f} GiB free" for g in seen
        )
        yield Finding(TOPIC, OK, listed)
    elif not smi.gpus and not smi.error.startswith("nvidia-smi"):
        yield Finding(TOPIC, OK, "none: training runs on the CPU")


def check_health(number: int, gpu: Mapping[str, str]) -> Iterator[Finding]:
    name = f"GPU {number} ({gpu['name']})"
    used, total = number_of(gpu["memory.used"]), number_of(gpu["memory.total"])
    if total and used > BUSY_FRACTION * total:
        text = f"{name}: {used / 1024:.1f} of {total / 1024:.1f} GiB are in use by other processes"
        yield Finding(
            TOPIC, WARNING, text, "nvidia-smi lists them: end yours, or take another GPU (CUDA_VISIBLE_DEVICES)"
        )
    if errors := number_of(gpu["ecc.errors.uncorrected.volatile.total"]):
        text = f"{name}: {errors:.0f} memory errors that weren't corrected since the driver was loaded"
        yield Finding(
            TOPIC, PROBLEM, text, "take this GPU out and have it tested; meanwhile train.recheck_every finds flips"
        )
    if gpu["mig.mode.current"] == "Enabled":
        text = f"{name}: is cut into MIG instances; a process sees one, and NCCL can't join two of one GPU"
        yield Finding(
            TOPIC, WARNING, text, "one process for each instance, or ask your administrator to switch MIG off"
        )


def check_architecture(number: int, gpu: Mapping[str, Any], built_for: list[str]) -> Iterator[Finding]:
    """Whether torch holds kernels for a GPU: of its own capability, of an older one of its generation, or as PTX."""
    major, minor = gpu["capability"]
    kernels = [arch.removeprefix("sm_") for arch in built_for if arch.startswith("sm_")]
    texts = [arch.removeprefix("compute_") for arch in built_for if arch.startswith("compute_")]
    fits = any(split_arch(arch)[0] == major and split_arch(arch)[1] <= minor for arch in kernels)
    later = any(split_arch(arch) <= (major, minor) for arch in texts)
    if built_for and not fits and not later:
        has = f"GPU {number} ({gpu['name']}) has compute capability {major}.{minor}"
        fix = "install a build of torch for this GPU (ADATAD_TORCH_INDEX of launch/setup.sh)"
        yield Finding(TOPIC, PROBLEM, f"{has}; torch is built for {' '.join(built_for)}", fix)


def split_arch(text: str) -> tuple[int, int]:
    """ "90a" is (9, 0), "120" is (12, 0)."""
    digits = "".join(c for c in text if c.isdigit())
    return int(digits[:-1] or 0), int(digits[-1:] or 0)


def number_of(text: str) -> float:
    """0 for what nvidia-smi doesn't tell ("[N/A]")."""
    try:
        return float(text)
    except ValueError:
        return 0.0
