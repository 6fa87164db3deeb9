"""Python, the packages and how they fit together: from what is installed, and from what probes say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding

TOPIC = "software"
ROOT = Path(__file__).resolve().parents[2]
SETUP = "bash launch/setup.sh"
NEEDED = {
    "torch": "2.13", "timm": "1.0", "av": "18", "numpy": "2", "numba": "0", "pyyaml": "0", "pydantic": "2", "rich": "0",
    "safetensors": "0", "tensorboard": "0", "matplotlib": "0", "jinja2": "0", "psutil": "0",
}  # fmt: skip
"""Least versions, as setup.cfg has them (a test compares)."""
OPTIONAL = {"decord": "0.6", "deepspeed": "0.19.8", "fairscale": "0.4.13", "torchcodec": "0.13", "torchvision": "0.28"}
VISION_AHEAD = 15
"""torch 2.x is made for torchvision 0.(x + 15)."""
CUDA_NEEDS_DRIVER = {"13": 580, "12": 525, "11": 450}
"""By CUDA's major version: the least driver on Linux."""


def installed() -> dict[str, str]:
    """Versions of all that matters here and is installed, by name, without importing anything."""
    found = {}
    for name in (*NEEDED, *OPTIONAL, "adatad"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def pinned(constraints: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """The versions that were installed and run together."""
    if not constraints.is_file():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.strip() for name, version in pairs}


def check_python(version: tuple[int, ...] = sys.version_info[:3], prefix: str = sys.prefix) -> Iterator[Finding]:
    text = ".".join(map(str, version))
    if version < (3, 11):
        fix = f"make the environment anew with PYTHON=python3.11 {SETUP}"
        yield Finding(TOPIC, PROBLEM, f"Python {text} is older than 3.11", fix)
    else:
        yield Finding(TOPIC, OK, f"Python {text} in {prefix}")


def check_versions(have: Mapping[str, str], pins: Mapping[str, str]) -> Iterator[Finding]:
    """Each package against the least version, and against those that were tried together."""
    for name, least in NEEDED.items():
        if name not in have:
            yield Finding(TOPIC, PROBLEM, f"{name} isn't installed", SETUP)
        elif numbers(have[name]) < numbers(least):
            text = f"{name} {have[name]} is older than {least}"
            yield Finding(TOPIC, PROBLEM, text, f"pip install -c constraints.txt '{name}>={least}'")
    for name, least in OPTIONAL.items():
        if name in have and numbers(have[name]) < numbers(least) and name != "torchvision":
            fix = f"pip install -c constraints.txt '{name}>={least}'"
            yield Finding(TOPIC, WARNING, f"{name} {have[name]} is older than {least}, which was tried", fix)
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
    """Packages that only work in the versions made for one another."""
    torch, vision = numbers(have.get("torch", "")), numbers(have.get("torchvision", ""))
    if torch and vision and torch[0] == 2 and vision[:2] != (0, torch[1] + VISION_AHEAD):
        text = f"torchvision {have['torchvision']} wasn't made for torch {have['torch']}"
        fix = f"pip install --no-deps 'torchvision==0.{torch[1] + VISION_AHEAD}.*'"
        yield Finding(TOPIC, PROBLEM, text, fix)
    builds = {name: have[name].partition("+")[2] for name in ("torch", "torchvision") if "+" in have.get(name, "")}
    if len(set(builds.values())) > 1:
        text = ", ".join(f"{name} is built for {build}" for name, build in builds.items())
        yield Finding(TOPIC, PROBLEM, text, "install both from the same wheel index")


def check_torch(facts: Mapping[str, Any], driver: str | None, gpus_there: bool) -> Iterator[Finding]:
    """What importing torch told. driver: of nvidia-smi; gpus_there: whether it lists any GPU."""
    if "failed" in facts:
        yield Finding(TOPIC, PROBLEM, f"torch {facts['failed']}", f"install anew: rm -r .venv && {SETUP}")
        return
    for name, error in facts.get("errors", {}).items():
        yield Finding(TOPIC, PROBLEM, f"{name} can't be imported: {error}", f"install anew: rm -r .venv && {SETUP}")
    if "version" not in facts:
        return
    build = facts["cuda_build"]
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
    if "failed" in facts:
        yield Finding(TOPIC, PROBLEM, f"a library {facts['failed']}", f"install anew: rm -r .venv && {SETUP}")
    for name, error in facts.get("errors", {}).items():
        yield Finding(TOPIC, PROBLEM, f"{name} can't be imported: {error}", f"install anew: rm -r .venv && {SETUP}")


def check_decoders(facts: Mapping[str, Any], have: Mapping[str, str], decoder: str = "decord") -> Iterator[Finding]:
    """decoder: that of the spec, data.decoder."""
    if "failed" in facts:
        yield Finding("decoders", PROBLEM, f"decoding {facts['failed']}", f"install anew: rm -r .venv && {SETUP}")
        return
    for name, error in facts.get("errors", {}).items():
        level = PROBLEM if name in ("av", "pyav", decoder) else WARNING
        fix = "set data.decoder to pyav" if name not in ("av", "pyav") else f"install anew: rm -r .venv && {SETUP}"
        yield Finding("decoders", level, f"{name} doesn't decode a test clip: {error}", fix)
    if decoder not in ("pyav", *have) and decoder not in facts.get("errors", {}):
        fix = f"pip install -c constraints.txt {decoder}, or --set data.decoder=pyav"
        yield Finding("decoders", WARNING, f"{decoder} isn't installed; videos are decoded by pyav instead", fix)
    if facts.get("worked"):
        yield Finding("decoders", OK, f"a test clip is decoded rightly by {', '.join(facts['worked'])}")


def check_copies(path: list[str], package: Path, tools: Path, pythonpath: str = "") -> Iterator[Finding]:
    """Other copies of adatad. path: sys.path; package: the one that is imported; tools: the folder of this command."""
    beside = tools.resolve().parent / "adatad"
    if (beside / "__init__.py").is_file() and beside != package.resolve():
        text = f"commands of {beside.parent} run the adatad of {package.parent}"
        fix = "unset PYTHONPATH" if pythonpath else f"cd {beside.parent} && {SETUP}, and use its .venv"
        yield Finding(TOPIC, PROBLEM, text, fix)
    places = [Path(entry or ".").resolve() / "adatad" / "__init__.py" for entry in path]
    found = dict.fromkeys(place.parent for place in places if place.is_file())
    for other in [place for place in found if place not in (package.resolve(), beside)]:
        text = f"another adatad lies at {other}, where other programs may import it instead of {package}"
        listed = [str(Path(entry).resolve()) for entry in pythonpath.split(":") if entry]
        fix = (
            "unset PYTHONPATH" if str(other.parent) in listed else "pip uninstall adatad, then pip install --editable ."
        )
        yield Finding(TOPIC, WARNING, text, fix)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparison: 2.13.0+cpu is (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
