"""Checkpoints: whole tensors, or each rank's own part; written in the background, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from adatad.convert.weight_file import OWN_META
from adatad.memory.offload import PIECE_BYTES, pinned_rows
from adatad.training.checkpoint_check import (
    MANIFEST,
    SHAPES,
    SHARDS,
    SPEC,
    STATE,
    TENSOR_FILES,
    by_kind,
    by_name,
    check_files,
    check_names,
    check_tensor,
    describe_shards,
    read_spec_text,
    read_state,
    sha256,
    why_broken,
)
from adatad.training.model_facts import TRAINED, CheckpointError, ModelFacts
from adatad.training.ownership import Owner, resume_arguments

BEST = "best"


@dataclass
class Checkpoint:
    """Content of a checkpoint. parameters, ema: trained tensors by name; optimizer: their AdamW tensors, by name and
    key.

    state: everything else (position, scaler, normalizer, fingerprint of the frozen weights), as state.json has it;
    facts: what the state says of the model, None in files of before it did.
    """

    parameters: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    spec_yaml: str
    facts: ModelFacts | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors in one mapping."""
        return by_name(self.parameters, self.ema, self.optimizer)

    def with_tensors(self, tensors: dict[str, Tensor]) -> Checkpoint:
        """Return the same checkpoint with others in the place of its tensors."""
        # The state is copied too: training goes on changing it while the writer's thread works.
        return Checkpoint(*by_kind(tensors), json.loads(json.dumps(self.state)), self.spec_yaml, self.facts)


ALIGNED_BYTES = 64
"""Multiple at which a copy may begin in a row of memory: any dtype may be viewed there."""


class HostCopies:
    """Copies of tensors in host memory, which training can't change while they are written.

    Their memory is allocated once (and pinned beside a GPU), in rows that hold many of them: the first use of fresh
    pages would take longer than the copy, and pinning every tensor by itself longer still.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._copies: dict[str, Tensor] = {}

    def reserve(self, sizes: list[int], device: torch.device) -> None:
        """Allocate memory for tensors of so many bytes each, or for none. Raises HostMemoryError."""
        if not sizes:
            return
        # Rows never shrink: they are as long as those that are there, or a piece, or the largest tensor.
        row_bytes = max([len(row) for row in self._rows[:1]] + [min(PIECE_BYTES, sum(map(_aligned, sizes)))])
        row_bytes = max(row_bytes, max(map(_aligned, sizes)))
        count = 1 + max(row for row, _ in _packed(sizes, row_bytes))
        if count > len(self._rows) or row_bytes > len(self._rows[0]):
            # Those that are there go first: the next ones may need their room.
            self._copies, self._rows = {}, []
            self._rows = list(pinned_rows(count, row_bytes, device, "copies for a checkpoint"))

    def of(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of tensors, by name; they hold until the next call."""
        # The same tensors come at every save, and keep their places.
        if _kinds(tensors) != _kinds(self._copies):
            self._copies = self._places(tensors)
        for name, tensor in tensors.items():
            self._copies[name].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        # Copies into pinned memory return before they are done, and the next step may change the tensors.
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return self._copies

    def _places(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return empty tensors in the rows, by name."""
        named = sorted(tensors.items(), key=lambda item: item[1].nbytes, reverse=True)
        sizes = [tensor.nbytes for _, tensor in named]
        device = next((tensor.device for _, tensor in named if tensor.is_cuda), torch.device("cpu"))
        self.reserve(sizes, device)
        places = {}
        for (name, tensor), (row, start) in zip(named, _packed(sizes, len(self._rows[0])), strict=True):
            piece = self._rows[row][start : start + tensor.nbytes]
            places[name] = piece.view(tensor.dtype).view(tensor.shape)
        return places


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _aligned(size: int) -> int:
    return -(-size // ALIGNED_BYTES) * ALIGNED_BYTES


def _packed(sizes: list[int], row_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield row and first byte of each size, the largest first."""
    # Sorted: the order of names, which differs between `reserve` and `of`, must not change how many rows are needed.
    row, used = 0, 0
    for size in sorted(map(_aligned, sizes), reverse=True):
        if used + size > row_bytes:
            row, used = row + 1, 0
        yield row, used
        used += size


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the place of a step's checkpoint; names sort as steps do."""
    return folder / f"step-{step:08d}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise CheckpointError, which names the checkpoint, if the disk doesn't take what is written inside."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        before, then = "No checkpoint was saved before it", "and start again"
        if any(other != path for other in all_checkpoints(path.parent)):
            before = "Those before it are as they were"
            then = f"and {resume_arguments(path.parent.parent)} goes on from the last"
        raise CheckpointError(
            f"{path}: can't be written: {_reason(error)}. {before}: fix that (a full disk?), {then}"
        ) from error


def _reason(error: BaseException) -> str:
    """Return an error in one line; of what several ranks wrote, which of them failed and how."""
    if isinstance(error, CheckpointException):
        return ", ".join(f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items())
    return str(error) or type(error).__name__


@contextmanager
def replacing(path: Path, owner: Owner | None = None) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `path` when every file is complete and on the disk.

    Leaves nothing behind and raises CheckpointError if the disk doesn't take it, RunOwnershipLost if the run isn't the
    owner's any more.
    """
    unfinished = unfinished_path(path, owner)
    try:
        with writing(path):
            unfinished.mkdir(parents=True, exist_ok=True)
            yield unfinished
            # As late as can be: between this check and the rename another process may still take the run over, but
            # writing took seconds, and this takes none.
            if owner:
                owner.check()
            # A folder can't be renamed over another. One that is there is broken, and resuming has skipped it.
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
            # The rename itself is on the disk only when the folder that holds the name is.
            _flush(path.parent)
    except CheckpointError:
        if owner:
            # Another process that takes a run over removes unfinished files, also those that are being written: then
            # the run's loss is what happened, and not the disk's failure.
            owner.check()
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_path(path: Path, owner: Owner | None = None) -> Path:
    """Return the folder that a checkpoint is written to first; each owner of a run has its own."""
    # The point keeps it out of all_checkpoints, whoever looks.
    return path.with_name(f".{path.name}.{owner.token}.unfinished" if owner else f".{path.name}.unfinished")


def write_checkpoint(path: Path, checkpoint: Checkpoint, owner: Owner | None = None) -> None:
    """Write to `path`, as `replacing` does."""
    shutil.rmtree(unfinished_path(path, owner), ignore_errors=True)
    with replacing(path, owner) as folder:
        header = _header(checkpoint)
        save_file(checkpoint.parameters, folder / TENSOR_FILES["parameters"], header)
        save_file(checkpoint.ema, folder / TENSOR_FILES["ema"], header)
        flat = {f"{name}/{key}": t for name, tensors in checkpoint.optimizer.items() for key, t in tensors.items()}
        save_file(flat, folder / TENSOR_FILES["optimizer"])
        _write_rest(folder, checkpoint.state, checkpoint.spec_yaml)


def _header(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return what a file of the checkpoint's parameters or averages says of itself, so that it can be used alone."""
    if checkpoint.facts is None:
        return None
    # One entry: safetensors writes several in any order, and the same checkpoint must give the same bytes.
    facts = checkpoint.facts.header(checkpoint.spec_yaml)
    fingerprint_of_frozen = {"frozen_fingerprint": checkpoint.state["frozen_fingerprint"]}
    return {OWN_META: json.dumps({"content": TRAINED, **fingerprint_of_frozen, **facts}, ensure_ascii=False)}


def _write_rest(folder: Path, state: dict[str, Any], spec_yaml: str) -> None:
    """Write all but the tensors, and the manifest of everything; flush every file to the disk."""
    (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    (folder / SPEC).write_text(spec_yaml, encoding="utf-8")
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    files = {str(f.relative_to(folder)): {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in found}
    # The last file: a folder without a manifest is no checkpoint.
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))
    for file in (*found, folder / MANIFEST):
        _flush(file)


def _flush(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: Path, full: bool = True) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError if anything is missing, was changed, or can't be what was written.

    full=False: of one that ranks wrote in shards (`is_sharded`), meta tensors alone: each rank then reads its own part.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint directory")
    check_files(path)
    state, facts = read_state(path)
    spec_yaml = read_spec_text(path)
    if is_sharded(path):
        check_names(path, describe_shards(path), state, facts)
        with _reading(path):
            tensors = (read_full_shards if full else meta_shards)(path / SHARDS)
        parameters, ema, optimizer = by_kind(tensors)
        for moments in optimizer.values():
            # Shards have one step for all, in the state.
            moments["step"] = torch.tensor(state["optimizer_step"])
    else:
        with _reading(path):
            kinds = {kind: load_file(path / file) for kind, file in TENSOR_FILES.items()}
        named = {f"{kind}/{name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}
        check_names(path, {name: tuple(tensor.shape) for name, tensor in named.items()}, state, facts)
        parameters, ema, optimizer = by_kind(named)
        for moments in optimizer.values():
            for key, tensor in moments.items():
                # Moments may be bf16 in the file; which dtype they get next is for the resumed run's spec to say.
                moments[key] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    checkpoint = Checkpoint(parameters, ema, optimizer, state, spec_yaml, facts)
    # Checksums tell what was changed after writing; values tell what was wrong before it.
    steps = state["progress"]["step"]
    for full_name, tensor in checkpoint.tensors().items():
        if not tensor.is_meta:
            kind, _, name = full_name.partition("/")
            check_tensor(path, SHARDS if is_sharded(path) else TENSOR_FILES[kind], name, tensor, steps)
    return checkpoint


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise CheckpointError, which names the checkpoint, for files of tensors that can't be read."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        # safetensors and torch's reader of shards raise many kinds.
        raise CheckpointError(f"{path}: its tensors can't be read: {_reason(error).splitlines()[0][:200]}") from error


def is_sharded(path: Path) -> bool:
    """Return whether ranks have written their own parts of a checkpoint."""
    return (path / SHARDS).is_dir()


def all_checkpoints(folder: Path) -> list[Path]:
    """Return finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest complete checkpoint, and a line for each newer one that was skipped. Raises NewerVersionError
    for one that a newer version of the program wrote."""
    # Not skipped, as broken ones are: going on from an older one would write over the newer version's work.
    skipped = []
    for path in reversed(all_checkpoints(folder)):
        reason = why_broken(path)
        if reason is None:
            return path, skipped
        skipped.append(f"skipped {path}: {reason}")
    return None, skipped


def mark_best(folder: Path, path: Path) -> None:
    """Let `folder`/best point to a checkpoint. Raises CheckpointError if a folder or file has that name."""
    check_best(folder)
    # A link can't be changed in place; renaming a new one over it leaves no moment without a best checkpoint.
    link = folder / f".{BEST}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(folder / BEST)


def check_best(folder: Path) -> None:
    """Raise CheckpointError if `folder`/best is anything but the link that training makes."""
    best = folder / BEST
    if not best.is_symlink() and best.exists():
        raise CheckpointError(
            f"{best}: is {'a folder' if best.is_dir() else 'a file'}, and not the link to the best checkpoint that "
            f"training makes (was the run copied with its links followed?); rename it: mv {best} {best}-copy"
        )


def prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but the `keep` checkpoints up to `newest` and the best one.

    Later ones aren't counted: they are broken ones that resuming skipped, and training writes them anew.
    """
    best = (folder / BEST).resolve()
    for path in [path for path in all_checkpoints(folder) if path.name <= newest.name][:-keep]:
        if path.resolve() != best:
            shutil.rmtree(path)


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of the frozen parameters, by which a checkpoint knows the backbone that it belongs to."""
    return digest_of((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        # Plans are made on meta tensors, which have no values.
        if not tensor.is_meta:
            # Flat: a number without a dimension can't be viewed as bytes.
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class CheckpointWriter:
    """Writes checkpoints beside training, one at a time, for as long as the run is the owner's."""

    def __init__(self, folder: Path, keep: int, owner: Owner | None = None):
        self.folder, self.keep, self.owner = folder, keep, owner
        self._copies = HostCopies()
        # Made at the first save in shards: gloo, as a background thread's collectives on NCCL would meet training's.
        self._group: dist.ProcessGroup | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self.has_saved = bool(all_checkpoints(folder))
        """True if the run has a checkpoint to go on from, as far as this process knows."""

    def reserve(self, sizes: list[int], device: torch.device) -> None:
        """Allocate memory for copies of tensors of so many bytes each, so that no step has to wait for it."""
        self._copies.reserve(sizes, device)

    def submit(self, step: int, checkpoint: Checkpoint) -> Path:
        """Copy the checkpoint now and write it in the background; return its path. Waits for the one before, and raises
        what writing that raised."""
        # There is memory for one copy.
        self.wait()
        path = checkpoint_path(self.folder, step)
        copy = checkpoint.with_tensors(self._copies.of(checkpoint.tensors()))
        self._pending = self._thread.submit(self._write, path, copy)
        return path

    def _write(self, path: Path, checkpoint: Checkpoint) -> None:
        write_checkpoint(path, checkpoint, self.owner)
        self.has_saved = True
        prune(self.folder, path, self.keep)

    def submit_shards(
        self, step: int, tensors: dict[str, Tensor], shapes: dict[str, list[int]], state: dict[str, Any], spec_yaml: str
    ) -> None:
        """Copy and write a checkpoint of DTensors, of which every rank writes its part. All ranks call it.

        tensors: named as `Checkpoint.tensors` names them; shapes: their own, by those names; state, spec_yaml: as in
        `Checkpoint`, written by the first rank.
        """
        self.wait()
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        path, main = checkpoint_path(self.folder, step), dist.get_rank() == 0
        folder = unfinished_path(path, self.owner) / SHARDS
        if main:
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / SHAPES).write_text(json.dumps(shapes))
        # No rank may write before the folder is empty and there.
        dist.barrier(self._group)
        saving = start_saving_shards(folder, tensors, self._group)
        state = json.loads(json.dumps(state))
        self._pending = self._thread.submit(self._finish, saving, path, state, spec_yaml, main)

    def _finish(self, saving: Future, path: Path, state: dict[str, Any], spec_yaml: str, main: bool) -> None:
        """Wait until all ranks have written their parts; the first rank then writes the rest and renames the folder."""
        if not main:
            with writing(path):
                saving.result()
            return
        # async_save's own last step is a collective: its result means that every rank's files are there.
        with replacing(path, self.owner) as folder:
            saving.result()
            _write_rest(folder, state, spec_yaml)
        self.has_saved = True
        prune(self.folder, path, self.keep)

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises what writing it raised."""
        # Forgotten first: an error is raised once, and not again by `close`.
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last checkpoint and end the thread. Raises as `wait`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def start_saving_shards(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> Future:
    """Copy this rank's parts of DTensors to the host, then write them in the background. All ranks call it, with the
    same names; `group` is used for nothing else."""
    # One safetensors file a rank, which any tool can read.
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _quiet():
        return dcp.async_save(tensors, storage_writer=writer, process_group=group)


def meta_shards(folder: Path) -> dict[str, Tensor]:
    """Return meta tensors of everything in a folder of shards."""
    shapes = json.loads((folder / SHAPES).read_text())
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {n: torch.empty(shapes[n], dtype=d.properties.dtype, device="meta") for n, d in stored.items()}


def read_full_shards(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder of shards, in full, in host memory."""
    described = meta_shards(folder)
    # Numbers without a dimension were written with one, as shards must have it.
    shapes = {name: tensor.shape or torch.Size([1]) for name, tensor in described.items()}
    tensors = {name: torch.empty(shapes[name], dtype=tensor.dtype) for name, tensor in described.items()}
    with _quiet():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return {name: tensor.view(described[name].shape) for name, tensor in tensors.items()}


def read_own_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill this rank's parts of DTensors, however many ranks wrote the folder. All ranks call it."""
    with _quiet():
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's warnings about older names that its own code uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
