"""All checks, in order, each guarded: probes run beside the rest."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

from adatad.doctor import experiment, gpus, machine, probe, software
from adatad.doctor.findings import PROBLEM, WARNING, Finding, guarded
from adatad.spec.schema import Spec

SOME_WINDOWS_BYTES = 2**28
"""What loader processes want of /dev/shm, where no spec says."""
PROBE_SECONDS = 60.0
"""A probe that takes longer hangs; on a cold network disk importing torch takes half of that."""
HOST_PLACES = ("saved_inputs", "halos", "frames", "optimizer_state", "moving_average")


def examine(spec: Spec | None = None) -> list[Finding]:
    """Everything about this machine and installation and, with a spec, about the experiment."""
    probes = {name: probe.start(name) for name in probe.PROBES}
    try:
        smi = gpus.ask_smi()
        findings = check_machine(spec)
        have = software.installed()
        findings += guarded("software", software.check_python)
        findings += guarded("software", software.check_versions, have, software.pinned())
        findings += guarded("software", software.check_pairs, have)
        here = software.ROOT / "adatad", Path(sys.argv[0]).parent
        findings += guarded("software", software.check_copies, sys.path, *here, os.environ.get("PYTHONPATH", ""))
        found = {name: probe.finish(process, PROBE_SECONDS) for name, process in probes.items()}
    finally:
        for process in probes.values():
            process.kill()
    torch = found["torch"]
    findings += guarded("software", software.check_torch, torch, smi.driver, bool(smi.gpus))
    findings += guarded("software", software.check_libraries, found["libraries"])
    decoder = spec.data.decoder if spec else "decord"
    findings += guarded("decoders", software.check_decoders, found["decoders"], have, decoder)
    findings += guarded("GPUs", gpus.check_gpus, smi, torch, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if spec is not None:
        findings += check_experiment(spec, torch.get("gpus", []), importable="version" in torch)
    return findings


def check_machine(spec: Spec | None) -> list[Finding]:
    workers = spec.data.workers if spec else None
    environment = os.environ
    allowed, quota = machine.cores()
    host = socket.gethostname()
    findings = guarded("CPU", machine.check_cores, allowed, quota, workers, environment.get("OMP_NUM_THREADS"))
    findings += guarded("memory", lambda: machine.check_memory(machine.memory_bytes()))
    places = [("temporary files", tempfile.gettempdir)]
    if spec is None:
        places.append(("runs", lambda: "runs"))
        findings += guarded(
            "shared memory", lambda: machine.check_shared_memory(machine.shared_memory_free(), SOME_WINDOWS_BYTES, 1)
        )
    for purpose, path in places:
        findings += guarded("disk", lambda p=purpose, f=path: machine.check_place(machine.place(p, f())))
    pins = spec is not None and (
        any(getattr(spec.memory, name) == "host" for name in HOST_PLACES) or spec.memory.frozen_weights == "stream"
    )
    findings += guarded("limits", lambda: machine.check_limits(machine.limits(), pins))
    findings += guarded("locale", machine.check_locale, *machine.encodings())
    findings += guarded("environment", machine.check_environment, environment, allowed)
    findings += guarded(
        "network", lambda: machine.check_network(host, machine.resolves(host), machine.interface_names(), environment)
    )
    clocks = lambda: machine.check_clock(machine.time.time(), machine.newest_source(), machine.file_clock())  # noqa: E731
    return findings + guarded("clock", clocks)


def check_experiment(spec: Spec, gpus_seen: list[dict], importable: bool = True) -> list[Finding]:
    """importable: whether torch is; most of these checks need it."""
    if not importable:
        return [Finding("data", WARNING, "the experiment wasn't looked at: torch can't be imported")]
    findings = guarded("data", experiment.check_annotations, spec)
    findings += guarded("weights", experiment.check_weights, spec)
    findings += guarded("weights", experiment.check_digest, spec)
    findings += guarded("run", experiment.check_run, spec)
    findings += guarded("disk", experiment.check_places, spec)
    findings += guarded("fit", experiment.check_precision, spec, gpus_seen)
    return findings + guarded("fit", experiment.check_fit, spec, gpus_seen)


def missing_files(spec_file: str | Path, problems: list[str]) -> list[Finding]:
    """The problems of a spec that can't be used, as findings."""
    shows = f"fix the file; adatad spec {spec_file} then shows every value and where it comes from"
    fetch = "fetch it, or fix the path (docs/own-data.md, docs/data-sets.md; the demo's: adatad data demo)"
    return [
        Finding("spec", PROBLEM, " ".join(line.split()), fetch if "there is no f" in line else shows)
        for line in problems
    ]
