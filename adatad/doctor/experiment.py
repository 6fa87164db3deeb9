"""Checks of an experiment before it runs: its files, weights, run directory, and whether it fits the GPU."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adatad.doctor.findings import OK, PROBLEM, WARNING, Finding
from adatad.doctor.machine import GIB, check_place, check_shared_memory, place, shared_memory_free
from adatad.errors import UserError
from adatad.files import reason, shown, what_it_is
from adatad.parallel.visible_gpus import BF16_CAPABILITY
from adatad.spec.downloads import where_published
from adatad.spec.model_sections import RANDOM
from adatad.spec.presets import PRESETS
from adatad.spec.quirks import Quirks
from adatad.spec.schema import Spec
from adatad.spec.sizes import resolve_backbone

MAX_NAMED = 5
MAX_OPENED = 4
"""Videos of each subset that are opened."""
STATE_BYTES = 4 * 4
"""Bytes of a trained parameter in a checkpoint: itself, its average and AdamW's two moments, in fp32."""
# Runs write "... on HOST, pid N".
OWNER = re.compile(r"on (?P<host>\S+), pid (?P<pid>\d+)")


def check_annotations(spec: Spec) -> Iterator[Finding]:
    """Check the annotation file and its classes, then the videos that it names."""
    # A missing file is reported with the spec's other missing files.
    if not Path(spec.data.annotations).is_file():
        return
    # Imported here, and below: modules that need torch, which may not start.
    from adatad.data.annotations import read_annotations

    try:
        found = read_annotations(spec.data, Quirks.of(spec.compat), spec.model.detector.class_agnostic)
    except UserError as error:
        yield Finding("data", PROBLEM, first_lines(error), "fix the annotation file; docs/annotations.md has its forms")
        return
    sizes = f"{len(found.train)} training and {len(found.validation)} validation videos, {len(found.classes)} classes"
    for name, videos in (("training", found.train), ("validation", found.validation)):
        if not videos:
            text = f"{spec.data.annotations}: no {name} video is left of subset {getattr(spec.data, SUBSET[name])!r}"
            yield Finding("data", PROBLEM, text, f"adatad data summary SPEC; then fix data.{SUBSET[name]}")
    if 0 < len(found.train) < spec.train.global_batch:
        text = f"{len(found.train)} training videos are fewer than train.global_batch {spec.train.global_batch}"
        yield Finding("data", PROBLEM, text, f"--set train.global_batch={len(found.train)}")
    yield Finding("data", OK, f"{spec.data.annotations}: {sizes}")
    for name, videos in (("training", found.train), ("validation", found.validation)):
        yield from check_videos(spec, name, [video.name for video in videos])


SUBSET = {"training": "train_subset", "validation": "validation_subset"}


def check_videos(spec: Spec, subset: str, names: list[str]) -> Iterator[Finding]:
    """Check that a subset's videos are there, and that the first ones open."""
    from adatad.data.dataset import video_path
    from adatad.data.video_index import VideoError, open_container

    paths = {name: video_path(spec.data, name) for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        listed = ", ".join(shown(paths[name].name) for name in missing[:MAX_NAMED])
        text = f"{len(missing)} of {len(names)} {subset} videos aren't in {spec.data.videos}: {listed}{more}"
        fix = "fetch them, fix data.videos or data.pattern, or go on without them: --set data.on_error=skip"
        yield Finding("data", WARNING if spec.data.on_error == "skip" else PROBLEM, text, fix)
    # Opening reads a header; reading all of them is `adatad data check`.
    opened = 0
    for path in [path for name, path in paths.items() if name not in missing][:MAX_OPENED]:
        try:
            open_container(path).close()
            opened += 1
        except VideoError as error:
            text, fix = shown(first_lines(error)), "adatad data check reads all of every video"
            yield Finding("data", WARNING if spec.data.on_error == "skip" else PROBLEM, text, fix)
    if names and not missing:
        yield Finding("data", OK, f"all {len(names)} {subset} videos are there; the first {opened} open")


def check_weights(spec: Spec) -> Iterator[Finding]:
    """Check the file of pretrained weights: complete, of a known layout, of the backbone's size, and finite."""
    weights = spec.model.backbone.weights
    if weights == RANDOM:
        yield Finding("weights", OK, "random, as model.backbone.weights asks for")
        return
    if weights is None and spec.model.init_from is not None:
        text = "model.backbone.weights names none: those of model.init_from are taken, if that holds a whole model"
        yield Finding("weights", OK, text)
        return
    if weights is None:
        fix = "--set model.backbone.weights=FILE, or random to train without"
        yield Finding("weights", PROBLEM, "model.backbone.weights names no pretrained weights", fix)
        return
    path = Path(weights)
    # Reported here and not with the spec's missing files: the fix says where it is published.
    if not path.is_file():
        fix = (where_published(weights) or "; fetch it, or fix the path").removeprefix("; ")
        yield Finding("weights", PROBLEM, f"model.backbone.weights: there is no file {shown(weights)}", fix)
        return
    with path.open("rb") as file:
        start = file.read(400)  # a pointer of Git LFS, or a page of HTML, shows at once
    if instead := what_it_is(start):
        yield Finding("weights", PROBLEM, f"{weights} is {instead}", "git lfs pull, or fetch it again by hand")
        return
    import torch

    from adatad.convert.backbone_weights import sizes_of
    from adatad.convert.layouts import TITLES, find_encoder
    from adatad.convert.weight_file import read_weight_file

    try:
        found = find_encoder(read_weight_file(path).tensors, path)
    except UserError as error:
        yield Finding("weights", PROBLEM, first_lines(error), "fetch it again; docs/weights.md has what is read")
        return
    # By the tensors' shapes: file names may be wrong.
    have, want = sizes_of({name: t.shape for name, t in found.tensors.items()}), resolve_backbone(spec.model.backbone)
    wanted = {"width": want.width, "depth": want.depth, "patch": want.patch}
    differing = [f"{name} {have[name]}, the spec's {size}" for name, size in wanted.items() if have[name] != size]
    family = PRESETS[spec.model.backbone.preset].family
    if found.family != family:
        text = f"{path} ({found.title}) is {TITLES[found.family]}, the spec's backbone {TITLES[family]}"
        yield Finding("weights", PROBLEM, text, "fix model.backbone.preset, or name the weights of this preset")
        return
    if differing:
        text = f"{path} ({found.title}) is of another size: {'; '.join(differing)}"
        yield Finding("weights", PROBLEM, text, "fix model.backbone.preset, or name the weights of this preset")
        return
    # A half-copied file may have the right size and hold garbage.
    bad = [n for n, t in found.tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        text = f"{path}: {len(bad)} tensors hold NaN or infinity, first {bad[0]}"
        yield Finding("weights", PROBLEM, text, "fetch the file again")
        return
    yield Finding("weights", OK, f"{path}: {found.title}, {len(found.tensors)} tensors of the encoder")


def check_start(spec: Spec) -> Iterator[Finding]:
    """Check the trained detector that a fresh run starts from, if the spec names one: there, and a detector."""
    named = spec.model.init_from
    # A missing one is among the spec's missing files.
    if named is None or not os.path.exists(named):
        return
    from adatad.training.init_from import find_source, read_source

    try:
        source = read_source(find_source(spec)[0])
    except UserError as error:
        yield Finding("weights", PROBLEM, first_lines(error), "name a run, a checkpoint or a file of adatad export")
        return
    yield Finding("weights", OK, f"model.init_from: {source.path}, {source.kind}, {len(source.tensors)} tensors")


def check_digest(spec: Spec) -> Iterator[Finding]:
    """Check the SHA-256 of a published file whose name, or our list, tells how the digest begins."""
    from adatad.spec.downloads import digest_start

    path = Path(spec.model.backbone.weights or "")
    expected = digest_start(path.name) if path.is_file() else None
    if not expected:
        return
    import hashlib

    with path.open("rb") as file:
        # Seconds for weights of gigabytes, against hours of training from wrong ones.
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest.startswith(expected):
        yield Finding("weights", OK, f"SHA-256 {digest[:16]}... is the published one")
    else:
        text = f"{path}: its SHA-256 begins with {digest[:8]}, the published file's with {expected}"
        yield Finding("weights", PROBLEM, text, "fetch it again")


def check_run(spec: Spec) -> Iterator[Finding]:
    """Check the run's directory: who uses it, and its newest intact checkpoint."""
    from adatad.training.checkpoint import all_checkpoints, newest_checkpoint
    from adatad.training.run_directory import run_directory

    run = run_directory(spec)
    if not run.path.is_dir():
        if run.path.exists() or run.path.is_symlink():
            yield Finding("run", PROBLEM, f"{run.path} is no folder", "move it away, or take another number: --id N")
        else:
            yield Finding("run", OK, f"{run.path} will be made")
        return
    owner = run.path / "owner.txt"
    if owner.is_file():
        yield from check_owner(owner.read_text(errors="replace"), str(run.path))
    there = all_checkpoints(run.checkpoints)
    if not there:
        yield Finding("run", OK, f"{run.path} is there, without a checkpoint")
        return
    newest, skipped = newest_checkpoint(run.checkpoints)
    for line in skipped:
        yield Finding(
            "run", WARNING, f"a broken checkpoint: {line}", "--resume auto takes the one before; delete this one"
        )
    if newest is None:
        text = f"none of the {len(there)} checkpoints in {run.checkpoints} is whole"
        yield Finding("run", PROBLEM, text, "start again under another number: --id N")
    else:
        yield Finding("run", OK, f"newest whole checkpoint: {newest}; --resume auto goes on from it")


def check_owner(text: str, folder: str, host: str | None = None) -> Iterator[Finding]:
    """Check whether another process uses a run. text: content of owner.txt; host: this machine's name."""
    found = OWNER.search(text)
    if not found:
        yield Finding("run", WARNING, f"{folder}/owner.txt names no process: {shown(text.strip()[:80])!r}", "delete it")
    elif found["host"] != (host or socket.gethostname()):
        where = shown(found["host"])
        text = f"{folder} was opened last on {where}: whether that process still runs can't be seen from here"
        yield Finding("run", OK, text)
    elif is_alive(int(found["pid"])):
        text = f"{folder} is in use by process {found['pid']} of this machine"
        yield Finding(
            "run", WARNING, text, f"let it finish, or take another number (--id N); kill {found['pid']} asks it to save"
        )


def is_alive(pid: int) -> bool:
    """Return whether a Python process of this number runs on this machine."""
    try:
        os.kill(pid, 0)  # only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # alive, of another user
    command = Path(f"/proc/{pid}/cmdline")
    # The number may have been given to another program since.
    return not command.is_file() or "python" in command.read_text(errors="replace")


def window_bytes(spec: Spec) -> int:
    """Return the bytes of a window's uint8 frames, as loader processes hand them over."""
    window = spec.data.window
    return 3 * window.size_grid * window.frames_per_position * spec.data.size_pixels**2


def windows_waiting(spec: Spec) -> int:
    """Return how many windows loader processes keep ready: two batches each, if one rank has the global batch."""
    return 2 * spec.data.workers * max(1, spec.train.global_batch // spec.train.accumulation)


def check_places(spec: Spec) -> Iterator[Finding]:
    """Check shared memory, and the disks that the run writes to and reads from."""
    yield from check_shared_memory(shared_memory_free(), window_bytes(spec) * windows_waiting(spec), spec.data.workers)
    yield from check_place(place("runs", spec.run.root), checkpoint_bytes(spec))
    if Path(spec.data.videos).is_dir():
        yield from check_place(place("videos", spec.data.videos), written=False)
    if spec.data.stage_to:
        sizes = [entry.stat().st_size for entry in os.scandir(spec.data.videos) if entry.is_file()]
        yield from check_place(place("staged videos", spec.data.stage_to), sum(sizes))


def checkpoint_bytes(spec: Spec) -> float:
    """Return about how many bytes the checkpoints of a run take, with a half-written one beside them."""
    return STATE_BYTES * trained_parameters(spec) * (spec.train.keep_checkpoints + 2) + GIB / 4


def trained_parameters(spec: Spec) -> int:
    """Return the number of trained parameters, counted on the meta device."""
    import torch

    from adatad.models.detector import build_model, freeze

    with torch.device("meta"):
        model = build_model(spec.model, 20)  # the number of classes hardly matters here
    names = set(freeze(model, spec.model.backbone, spec.model.freeze))
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)


def check_fit(spec: Spec, gpus: list[dict[str, Any]]) -> Iterator[Finding]:
    """Check that a step fits the smallest GPU's free memory, by the planner's estimate."""
    if not gpus:
        return
    from adatad.training.plan import PlanError, check_fits

    # A step has to fit the fullest GPU: all ranks do the same.
    free = min(gpu["free"] for gpu in gpus) / GIB
    # More ranks than windows a step, times the ranks of a window, would have nothing to do.
    clip = max(1, spec.parallel.clip)
    ranks = max(clip, min(len(gpus), spec.train.global_batch * clip // spec.train.accumulation))
    try:
        check_fits(spec, free, ranks, 20)
    except PlanError as error:
        yield Finding("fit", PROBLEM, first_lines(error), "--set memory.policy=auto, or docs/out-of-memory.md")
    else:
        yield Finding("fit", OK, f"a step fits the {free:.1f} GiB that are free, by the planner's estimate")


def check_precision(spec: Spec, gpus: list[dict[str, Any]]) -> Iterator[Finding]:
    """Check that the GPUs have the spec's precision in hardware: training refuses what torch would emulate."""
    old = sorted({gpu["name"] for gpu in gpus if tuple(gpu["capability"]) < BF16_CAPABILITY})
    if spec.train.precision == "bf16" and old:
        least = ".".join(map(str, BF16_CAPABILITY))
        text = f"train.precision bf16: {', '.join(old)} has no bf16, which begins with compute capability {least}"
        yield Finding("fit", PROBLEM, text, "--set train.precision=auto, which takes fp16 there")


def first_lines(error: BaseException, most: int = 3) -> str:
    """Return the first lines of an error as one line, and how many more there are."""
    lines = str(error).strip().splitlines() or [reason(error)]
    return "; ".join(line.strip() for line in lines[:most]) + (
        f"; and {len(lines) - most} more" if len(lines) > most else ""
    )
