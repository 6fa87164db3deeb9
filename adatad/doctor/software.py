"""Checks of the installed software, from Python to the GPU driver: versions, what fits together, what probes found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding

TOPIC = "software"
GPU_TOPIC = "GPUs"
QUERY = (
    "name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total",
    "mig.mode.current", "utilization.gpu",
)  # fmt: skip
BUSY_FRACTION = 0.1
"""Share of a GPU's memory used by other processes above which a warning is given."""
ROOT = Path(__file__).resolve().parents[2]
SETUP = "bash launch/setup.sh"
# "0" where any version works.
NEEDED = {
    "torch": "2.13", "timm": "1.0", "av": "18", "numpy": "2", "numba": "0", "pyyaml": "0", "pydantic": "2", "rich": "0",
    "safetensors": "0", "tensorboard": "0", "matplotlib": "0", "pillow": "0", "jinja2": "0", "psutil": "0",
}  # fmt: skip
"""Minimum versions, as setup.cfg has them (a test compares)."""
OPTIONAL = {
    "decord": "0.6",
    "deepspeed": "0.19.8",
    "fairscale": "0.4.13",
    "huggingface_hub": "2.4",
    "torchcodec": "0.13",
    "torchvision": "0.28",
    "wandb": "0.31",
}
VISION_AHEAD = 15
"""Offset of minor versions: torch 2.x goes with torchvision 0.(x + 15)."""
# NVIDIA's table of minor-version compatibility: newer toolkits of one major version run on these.
CUDA_NEEDS_DRIVER = {"13": 580, "12": 525, "11": 450}
"""Minimum driver on Linux by CUDA's major version."""


def installed() -> dict[str, str]:
    """Return the versions of installed packages that matter here, by name, without importing any."""
    found = {}
    for name in (*NEEDED, *OPTIONAL, "adatad"):
        try:
            # By its metadata: a broken library is the thing to be found, and importing one can crash.
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def pinned(constraints: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """Return the versions that were tested together; none without a constraints file."""
    if not constraints.is_file():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.strip() for name, version in pairs}


def check_python(version: tuple[int, ...] = sys.version_info[:3], prefix: str = sys.prefix) -> Iterator[Finding]:
    """Check Python's version."""
    text = ".".join(map(str, version))
    if version < (3, 11):
        fix = f"make a new environment with PYTHON=python3.11 {SETUP}"
        yield Finding(TOPIC, PROBLEM, f"Python {text} is older than 3.11", fix)
    else:
        yield Finding(TOPIC, OK, f"Python {text} in {prefix}")


def check_versions(have: Mapping[str, str], pins: Mapping[str, str]) -> Iterator[Finding]:
    """Check each package against its minimum version and against those that were tested together."""
    for name, least in NEEDED.items():
        if name not in have:
            yield Finding(TOPIC, PROBLEM, f"{name} isn't installed", SETUP)
        elif numbers(have[name]) < numbers(least):
            text = f"{name} {have[name]} is older than {least}"
            yield Finding(TOPIC, PROBLEM, text, f"pip install -c constraints.txt '{name}>={least}'")
    # torchvision's version follows torch's: `check_pairs`.
    for name, least in OPTIONAL.items():
        if name in have and numbers(have[name]) < numbers(least) and name != "torchvision":
            fix = f"pip install -c constraints.txt '{name}>={least}'"
            yield Finding(TOPIC, WARNING, f"{name} {have[name]} is older than {least}, which was tried", fix)
    # Patch releases are fine: only the first two numbers are compared.
    other = [
        f"{name} {have[name]} (tried: {pins[name]})"
        for name in have
        if name in pins and numbers(have[name])[:2] != numbers(pins[name])[:2]
    ]
    if other:
        yield Finding(TOPIC, WARNING, f"other versions than were tried together: {', '.join(other)}", SETUP)
    listed = ", ".join(f"{name} {have[name]}" for name in (*NEEDED, *OPTIONAL) if name in have)
    yield Finding(TOPIC, OK, f"installed: {listed}")


def check_pairs(have: Mapping[str, str]) -> Iterator[Finding]:
    """Check packages that only work in versions made for one another."""
    torch, vision = numbers(have.get("torch", "")), numbers(have.get("torchvision", ""))
    # torchvision's C++ is built against one version of torch.
    if torch and vision and torch[0] == 2 and vision[:2] != (0, torch[1] + VISION_AHEAD):
        text = f"torchvision {have['torchvision']} wasn't made for torch {have['torch']}"
        fix = f"pip install --no-deps 'torchvision==0.{torch[1] + VISION_AHEAD}.*'"
        yield Finding(TOPIC, PROBLEM, text, fix)
    # "2.13.0+cu130": the part behind the plus is the build.
    builds = {name: have[name].partition("+")[2] for name in ("torch", "torchvision") if "+" in have.get(name, "")}
    if len(set(builds.values())) > 1:
        text = ", ".join(f"{name} is built for {build}" for name, build in builds.items())
        yield Finding(TOPIC, PROBLEM, text, "install both from the same wheel index")


def check_torch(facts: Mapping[str, Any], driver: str | None, gpus_there: bool) -> Iterator[Finding]:
    """Check torch's build against the driver. facts: of its probe; gpus_there: whether nvidia-smi lists a GPU."""
    if "failed" in facts:
        yield Finding(TOPIC, PROBLEM, f"torch {facts['failed']}", f"install again: rm -r .venv && {SETUP}")
        return
    for name, error in facts.get("errors", {}).items():
        yield Finding(TOPIC, PROBLEM, f"{name} can't be imported: {error}", f"install again: rm -r .venv && {SETUP}")
    if "version" not in facts:
        return
    build = facts["cuda_build"]  # None: for CPUs
    if build is None:
        if gpus_there:
            fix = f"ADATAD_TORCH_INDEX=INDEX {SETUP}, with the wheel index of a CUDA build that the driver takes"
            yield Finding(TOPIC, PROBLEM, f"torch {facts['version']} is built for CPUs, and there are GPUs", fix)
        else:
            yield Finding(TOPIC, OK, f"torch {facts['version']} for CPUs")
        return
    least = CUDA_NEEDS_DRIVER.get(build.partition(".")[0])
    if driver and least and (numbers(driver) or (0,))[0] < least:
        text = f"torch is built for CUDA {build}, which needs driver {least} or newer; this one is {driver}"
        yield Finding(TOPIC, PROBLEM, text, "update the driver, or install torch from the index of an older CUDA")
    elif facts["cuda_error"]:
        fix = "see that nvidia-smi works here, and that a container was started with --gpus all"
        yield Finding(TOPIC, PROBLEM, f"torch can't use CUDA: {facts['cuda_error']}", fix)
    else:
        yield Finding(TOPIC, OK, f"torch {facts['version']}, CUDA {build}, NCCL {facts['nccl'] or 'none'}")


def check_libraries(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that libraries can be imported. facts: of their probe."""
    if "failed" in facts:
        yield Finding(TOPIC, PROBLEM, f"a library {facts['failed']}", f"install again: rm -r .venv && {SETUP}")
    for name, error in facts.get("errors", {}).items():
        yield Finding(TOPIC, PROBLEM, f"{name} can't be imported: {error}", f"install again: rm -r .venv && {SETUP}")


def check_decoders(facts: Mapping[str, Any], have: Mapping[str, str], decoder: str = "pyav") -> Iterator[Finding]:
    """Check the decoders. facts: of their probe; decoder: data.decoder of the spec."""
    if "failed" in facts:
        yield Finding("decoders", PROBLEM, f"decoding {facts['failed']}", f"install again: rm -r .venv && {SETUP}")
        return
    for name, error in facts.get("errors", {}).items():
        # PyAV indexes every video and takes another decoder's place, so nothing works without it.
        level = PROBLEM if name in ("av", "pyav", decoder) else WARNING
        fix = "set data.decoder to pyav" if name not in ("av", "pyav") else f"install again: rm -r .venv && {SETUP}"
        yield Finding("decoders", level, f"{name} doesn't decode a test clip: {error}", fix)
    if decoder not in ("pyav", *have) and decoder not in facts.get("errors", {}):
        fix = f"pip install -c constraints.txt {decoder}, or --set data.decoder=pyav"
        yield Finding("decoders", WARNING, f"{decoder} isn't installed; videos are decoded by pyav instead", fix)
    if facts.get("worked"):
        yield Finding("decoders", OK, f"a test clip is decoded rightly by {', '.join(facts['worked'])}")


def check_copies(path: list[str], package: Path, tools: Path, pythonpath: str = "") -> Iterator[Finding]:
    """Check for other copies of adatad. path: sys.path; package: the imported one; tools: the folder of the command."""
    # An old shell may run a command of one checkout with the packages of another.
    beside = tools.resolve().parent / "adatad"
    if (beside / "__init__.py").is_file() and beside != package.resolve():
        text = f"commands of {beside.parent} run the adatad of {package.parent}"
        fix = "unset PYTHONPATH" if pythonpath else f"cd {beside.parent} && {SETUP}, and use its .venv"
        yield Finding(TOPIC, PROBLEM, text, fix)
    places = [Path(entry or ".").resolve() / "adatad" / "__init__.py" for entry in path]
    found = dict.fromkeys(place.parent for place in places if place.is_file())
    for other in [place for place in found if place not in (package.resolve(), beside)]:
        text = f"another adatad lies at {other}, where other programs may import it instead of {package}"
        # The fix depends on how that copy got onto the path.
        listed = [str(Path(entry).resolve()) for entry in pythonpath.split(":") if entry]
        fix = (
            "unset PYTHONPATH" if str(other.parent) in listed else "pip uninstall adatad, then pip install --editable ."
        )
        yield Finding(TOPIC, WARNING, text, fix)


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparison: 2.13.0+cpu is (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


class Smi(NamedTuple):
    """Answer of nvidia-smi. gpus: for each GPU, values by name of QUERY; error: why there are none."""

    gpus: list[dict[str, str]]
    error: str = ""

    @property
    def driver(self) -> str | None:
        """Version of the driver, if there is a GPU."""
        return self.gpus[0]["driver_version"] if self.gpus else None


def ask_smi(limit_seconds: float = 4.0) -> Smi:
    """Ask nvidia-smi; a driver that hangs gives an answer with an error."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Smi([], "there is no nvidia-smi")
    # By nvidia-smi and not torch: it also answers where torch is built for CPUs or can't start CUDA.
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
    """Read nvidia-smi's CSV; lines of another form, such as warnings, are left out."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    return Smi([dict(zip(QUERY, row, strict=True)) for row in rows if len(row) == len(QUERY)])


def check_gpus(smi: Smi, torch: Mapping[str, Any], visible: str | None) -> Iterator[Finding]:
    """Check the GPUs, as nvidia-smi and torch see them. torch: facts of its probe; visible: CUDA_VISIBLE_DEVICES."""
    # No nvidia-smi is no problem: a machine may have no GPU.
    if smi.error and not smi.error.startswith("there is no"):
        fix = "reload or update the driver, or restart the machine; in a container, start it with --gpus all"
        yield Finding(GPU_TOPIC, PROBLEM, smi.error, fix)
    seen = torch.get("gpus", [])
    if smi.gpus and torch.get("cuda_build") and not seen and visible is not None:
        text = f"CUDA_VISIBLE_DEVICES={visible!r} hides all {len(smi.gpus)} GPUs"
        yield Finding(GPU_TOPIC, PROBLEM, text, "unset CUDA_VISIBLE_DEVICES")
    for number, gpu in enumerate(smi.gpus):
        yield from check_health(number, gpu)
    for number, gpu in enumerate(seen):
        yield from check_architecture(number, gpu, torch.get("arch_list", []))
    if seen:
        listed = ", ".join(
            f"{g['name']} with {g['free'] / 2**30:.1f} of {g['total'] / 2**30:.1f} GiB free" for g in seen
        )
        yield Finding(GPU_TOPIC, OK, listed)
    elif not smi.gpus and not smi.error.startswith("nvidia-smi"):
        yield Finding(GPU_TOPIC, OK, "none: training runs on the CPU")


def check_health(number: int, gpu: Mapping[str, str]) -> Iterator[Finding]:
    """Check a GPU for other users, memory errors and MIG."""
    name = f"GPU {number} ({gpu['name']})"
    used, total = number_of(gpu["memory.used"]), number_of(gpu["memory.total"])
    if total and used > BUSY_FRACTION * total:
        text = f"{name}: {used / 1024:.1f} of {total / 1024:.1f} GiB are in use by other processes"
        yield Finding(
            GPU_TOPIC, WARNING, text, "nvidia-smi lists them: end yours, or take another GPU (CUDA_VISIBLE_DEVICES)"
        )
    if errors := number_of(gpu["ecc.errors.uncorrected.volatile.total"]):
        text = f"{name}: {errors:.0f} memory errors that weren't corrected since the driver was loaded"
        yield Finding(
            GPU_TOPIC, PROBLEM, text, "take this GPU out and have it tested; meanwhile train.recheck_every finds flips"
        )
    if gpu["mig.mode.current"] == "Enabled":
        text = f"{name}: is cut into MIG instances; a process sees one, and NCCL can't join two of one GPU"
        yield Finding(
            GPU_TOPIC, WARNING, text, "one process for each instance, or ask your administrator to switch MIG off"
        )


def check_architecture(number: int, gpu: Mapping[str, Any], built_for: list[str]) -> Iterator[Finding]:
    """Check that torch has kernels for a GPU: of its capability, of an older one of its generation, or as PTX."""
    major, minor = gpu["capability"]
    kernels = [arch.removeprefix("sm_") for arch in built_for if arch.startswith("sm_")]
    # PTX is NVIDIA's intermediate code.
    texts = [arch.removeprefix("compute_") for arch in built_for if arch.startswith("compute_")]
    # A kernel for 8.0 runs on 8.6, not on 9.0; PTX is compiled for any later card.
    fits = any(split_arch(arch)[0] == major and split_arch(arch)[1] <= minor for arch in kernels)
    later = any(split_arch(arch) <= (major, minor) for arch in texts)
    if built_for and not fits and not later:
        has = f"GPU {number} ({gpu['name']}) has compute capability {major}.{minor}"
        fix = "install a build of torch for this GPU (ADATAD_TORCH_INDEX of launch/setup.sh)"
        yield Finding(GPU_TOPIC, PROBLEM, f"{has}; torch is built for {' '.join(built_for)}", fix)


def split_arch(text: str) -> tuple[int, int]:
    """Return a compute capability as numbers: "90a" is (9, 0), "120" is (12, 0)."""
    digits = "".join(c for c in text if c.isdigit())
    return int(digits[:-1] or 0), int(digits[-1:] or 0)


def number_of(text: str) -> float:
    """Return a number of nvidia-smi; 0 for one that it doesn't tell ("[N/A]")."""
    try:
        return float(text)
    except ValueError:
        return 0.0
