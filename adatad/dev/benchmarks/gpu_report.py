"""A page of what was measured on a card, for docs/benchmarks: everybody with another card can add theirs."""

from __future__ import annotations

import datetime
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from adatad.dev.benchmarks.results import Result
from adatad.memory.offload import GIB
from adatad.memory.planner import Machine

ROOT = Path(__file__).parents[3]
UNKNOWN = "unknown"


class Sheet(NamedTuple):
    """A table of words."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def describe(device: torch.device) -> str:
    if device.type != "cuda":
        return f"CPU, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def facts(device: torch.device, rates: tuple[float, float], machine: Machine) -> dict[str, str]:
    """What figures depend on. rates: FLOP/s of a large product before and after the suite."""
    has_gpu = device.type == "cuda"
    changed = " and changes that aren't committed" if output_of("git", "status", "--porcelain") else ""
    return {
        "device": torch.cuda.get_device_name(device) if has_gpu else "CPU",
        "memory": f"{machine.memory_bytes / GIB:.1f} GiB" if has_gpu else UNKNOWN,
        "driver": driver(device) if has_gpu else "none",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "commit": (output_of("git", "rev-parse", "--short", "HEAD") or UNKNOWN) + changed,
        "date": datetime.date.today().isoformat(),
        "16-bit matrix product": " before, ".join(f"{rate / 1e12:.1f} TFLOP/s" for rate in rates) + " after",
        "host to device": f"{machine.pcie_gbps:.1f} GB/s",
    }


def driver(device: torch.device) -> str:
    """Version of the driver, by nvidia-smi. The number of a GPU may be another one there; the driver is the same."""
    lines = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0].strip() if lines else UNKNOWN


def output_of(*command: str) -> str:
    """ "" where there is no such program, or where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def command_line() -> str:
    """The command of this process, as it is typed in the checkout."""
    return shlex.join(["adatad", *sys.argv[1:]])


def write_page(folder: Path, known: dict[str, str], sheets: list[Sheet], results: list[Result]) -> Path:
    """Write gpu-NAME.md, in the place of an older one of such a card; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{slug(known['device'])}.md"
    path.write_text(page(known, sheets, results), encoding="utf-8")
    return path


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def page(known: dict[str, str], sheets: list[Sheet], results: list[Result]) -> str:
    """Markdown."""
    met = sum(result.passed for result in results)
    parts = [
        f"# Training steps on {known['device']}",
        f"```bash\n{command_line()}\n```",
        as_table(("", ""), [(name, value) for name, value in known.items()]),
        "Steps of `adatad train`'s own code on random frames, medians; variants are interleaved. Peak: bytes that "
        "tensors took at most; reserved: that the allocator held for them. Planned: by the formulas that "
        "`memory.policy: auto` goes by, told the rates above. The rate is that of the matrix product; useful FLOPs are "
        "those of a step that recomputes nothing.",
    ]
    for sheet in sheets:
        parts += [f"## {sheet.title}", as_table(sheet.columns, sheet.rows)]
    rows = [(r.name, f"{r.value:.2f}", "" if r.bar is None else f"{r.bar:.2f}", "yes" if r.passed else "**no**")
            for r in results]  # fmt: skip
    parts += [f"## Bars: {met} of {len(results)} met", as_table(("", "measured", "at most", "met"), rows)]
    return "\n\n".join(parts) + "\n"


def as_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
