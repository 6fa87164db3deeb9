"""The doctor: all checks in order, each guarded, while probes import libraries in processes of their own."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adatad.doctor import experiment, machine, probe, software
from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding, guarded, lines
from adatad.files import FileError
from adatad.spec import SpecError, load
from adatad.spec.schema import Spec

SOME_WINDOWS_BYTES = 2**28
"""Bytes of /dev/shm that loader processes need, if no spec says how many."""
PROBE_SECONDS = 60.0
"""A probe that takes longer hangs; on a cold network disk importing torch takes half of that."""
HOST_PLACES = ("saved_inputs", "halos", "frames", "optimizer_state", "moving_average")


def doctor(spec_file: str | None, overrides: Sequence[str], overlays: Sequence[str], as_json: bool = False) -> int:
    """Print the findings on this machine and, with a spec, on an experiment; return the exit code.

    Raises FileError if `spec_file` is no file.
    """
    spec, findings = None, []
    if spec_file is not None:
        if not Path(spec_file).is_file():
            what = "is no regular file" if Path(spec_file).exists() else "no such file"
            raise FileError(f"{spec_file}: {what}; name a spec")
        try:
            # Missing files are reported below, file by file, so that the other checks go on.
            spec = load(spec_file, overrides, check_files=False, overlays=overlays)
        except SpecError as error:
            findings += missing_files(spec_file, error.problems)
        else:
            findings += unread_files(spec_file, overrides, overlays)
    findings += examine(spec)
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        print("\n".join(lines(findings)))
    # Warnings don't count: many machines have one that is meant to be so.
    return int(any(finding.level == PROBLEM for finding in findings))


def unread_files(spec_file: str, overrides: Sequence[str], overlays: Sequence[str]) -> list[Finding]:
    """Return findings on missing files that the spec names, but for those that later checks report."""
    try:
        load(spec_file, overrides, overlays=overlays)
    except SpecError as error:
        # `check_weights` looks at that file itself, and says where it is published.
        problems = [line for line in error.problems if "model.backbone.weights" not in line]
        return missing_files(spec_file, problems)
    return [Finding("spec", OK, f"{spec_file}: every value is one, and its files are there")]


def examine(spec: Spec | None = None) -> list[Finding]:
    """Return the findings on this machine and installation and, with a spec, on the experiment."""
    # Importing torch takes seconds: probes start first and are waited for last.
    probes = {name: probe.start(name) for name in probe.PROBES}
    try:
        smi = software.ask_smi()
        findings = check_machine(spec)
        have = software.installed()
        findings += guarded("software", software.check_python)
        findings += guarded("software", software.check_versions, have, software.pinned())
        findings += guarded("software", software.check_pairs, have)
        here = software.ROOT / "adatad", Path(sys.argv[0]).parent
        findings += guarded("software", software.check_copies, sys.path, *here, os.environ.get("PYTHONPATH", ""))
        found = {name: probe.finish(process, PROBE_SECONDS) for name, process in probes.items()}
    finally:
        # Also after an error above; killing a process that has ended does nothing.
        for process in probes.values():
            process.kill()
    torch = found["torch"]
    findings += guarded("software", software.check_torch, torch, smi.driver, bool(smi.gpus))
    findings += guarded("software", software.check_libraries, found["libraries"])
    decoder = spec.data.decoder if spec else "pyav"
    findings += guarded("decoders", software.check_decoders, found["decoders"], have, decoder)
    findings += guarded("GPUs", software.check_gpus, smi, torch, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if spec is not None:
        findings += check_experiment(spec, torch.get("gpus", []), importable="version" in torch)
    return findings


def check_machine(spec: Spec | None) -> list[Finding]:
    """Return the findings on cores, memory, disks, limits, environment, network and clock."""
    workers = spec.data.workers if spec else None
    environment = os.environ
    allowed, quota = machine.cores()
    host = socket.gethostname()
    findings = guarded("CPU", machine.check_cores, allowed, quota, workers, environment.get("OMP_NUM_THREADS"))
    findings += guarded("memory", lambda: machine.check_memory(machine.memory_bytes()))
    # Functions, called within `guarded`: gettempdir itself fails where no folder can be written to.
    places = [("temporary files", tempfile.gettempdir)]
    if spec is None:
        places.append(("runs", lambda: "runs"))
        findings += guarded(
            "shared memory", lambda: machine.check_shared_memory(machine.shared_memory_free(), SOME_WINDOWS_BYTES, 1)
        )
    for purpose, path in places:
        # Bound as defaults: a closure would see the last of the loop.
        findings += guarded("disk", lambda p=purpose, f=path: machine.check_place(machine.place(p, f())))
    # What waits in host memory is pinned, so that the GPU copies it by itself.
    pins = spec is not None and (
        any(getattr(spec.memory, name) == "host" for name in HOST_PLACES) or spec.memory.frozen_weights == "stream"
    )
    findings += guarded("limits", lambda: machine.check_limits(machine.limits(), pins))
    findings += guarded("locale", machine.check_locale, *machine.encodings())
    findings += guarded("environment", machine.check_environment, environment, allowed)
    findings += guarded(
        "network", lambda: machine.check_network(host, machine.resolves(host), machine.interface_names(), environment)
    )
    # A function, so that an error in taking a time is guarded too.
    clocks = lambda: machine.check_clock(machine.time.time(), machine.newest_source(), machine.file_clock())  # noqa: E731
    return findings + guarded("clock", clocks)


def check_experiment(spec: Spec, gpus_seen: list[dict], importable: bool = True) -> list[Finding]:
    """Return the findings on an experiment. importable: whether torch can be imported; most checks need it."""
    # A finding of its own: else the missing lines would look like checks that passed.
    if not importable:
        return [Finding("data", WARNING, "the experiment wasn't looked at: torch can't be imported")]
    findings = guarded("data", experiment.check_annotations, spec)
    findings += guarded("weights", experiment.check_weights, spec)
    findings += guarded("weights", experiment.check_digest, spec)
    findings += guarded("weights", experiment.check_start, spec)
    findings += guarded("run", experiment.check_run, spec)
    findings += guarded("disk", experiment.check_places, spec)
    findings += guarded("fit", experiment.check_precision, spec, gpus_seen)
    return findings + guarded("fit", experiment.check_fit, spec, gpus_seen)


def missing_files(spec_file: str | Path, problems: list[str]) -> list[Finding]:
    """Return the problems of an unusable spec as findings."""
    shows = f"fix the file; adatad spec {spec_file} then shows every value and where it comes from"
    fetch = "fetch it, or fix the path (docs/own-data.md, docs/data-sets.md; the demo's: adatad data demo)"
    return [
        Finding("spec", PROBLEM, " ".join(line.split()), fetch if "there is no f" in line else shows)
        for line in problems
    ]
