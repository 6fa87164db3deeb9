"""Checks of a checkpoint before anything is made of it: its files, its tensors' names and values, and its state.json.

A file may be cut, edited, or somebody else's: nothing is trusted before it was looked at, and nothing is allocated by
what a file claims. `Progress`, a run's position, is part of state.json.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import safe_open
from torch import Tensor

from adatad.convert.weight_file import WeightsError, brief, read_header
from adatad.files import MAX_SPEC_BYTES, FileError, read_json, read_text, shown
from adatad.training.model_facts import (
    FORMAT_VERSION,
    CheckpointError,
    ModelFacts,
    NewerVersionError,
    check_outputs,
    check_version,
    cut,
    first_problem,
    read_facts,
)

SHARDS = "shards"
"""Folder of a checkpoint that ranks wrote, in the place of the files that hold full tensors."""
SHAPES = "shapes.json"
"""File beside the shards: the tensors' own shapes, since shards have a dimension where a number has none."""
MANIFEST, STATE, SPEC = "manifest.json", "state.json", "spec.yaml"
TENSOR_FILES = {kind: f"{kind}.safetensors" for kind in ("parameters", "ema", "optimizer")}
"""File of each kind of tensors, where one rank wrote them whole."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's tensors of a parameter, beside its step."""
# Names of a hundred thousand tensors; more would be read into memory before anything is known of the file.
MAX_STATE_BYTES = 64 << 20
# A saved spec has six levels and no alias; few are allowed, since an editor may have made them.
MAX_SPEC_DEPTH, MAX_SPEC_ALIASES = 50, 10
MAX_NAME_BYTES = 255
"""Longest name of a file that file systems take."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def by_name(parameters: dict[str, Any], ema: dict[str, Any], optimizer: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a checkpoint's tensors in one mapping, as parameters/NAME, ema/NAME and optimizer/NAME/KEY: the names that
    files of shards have. `by_kind` is the reverse."""
    named = {f"parameters/{name}": tensor for name, tensor in parameters.items()}
    named |= {f"ema/{name}": tensor for name, tensor in ema.items()}
    return named | {f"optimizer/{name}/{key}": t for name, tensors in optimizer.items() for key, t in tensors.items()}


def by_kind(named: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """Return parameters, averages and AdamW's tensors of a mapping that `by_name` has made."""
    kinds: dict[str, dict[str, Any]] = {kind: {} for kind in TENSOR_FILES}
    for name, tensor in named.items():
        kind, parameter, key = split_name(name)
        if key:
            kinds[kind].setdefault(parameter, {})[key] = tensor
        else:
            kinds[kind][parameter] = tensor
    return kinds["parameters"], kinds["ema"], kinds["optimizer"]


def split_name(name: str) -> tuple[str, str, str]:
    """Return kind, parameter and AdamW's key ("" of other kinds) of a name that `by_name` gives."""
    kind, _, parameter = name.partition("/")
    if kind != "optimizer":
        return kind, parameter, ""
    parameter, _, key = parameter.rpartition("/")
    return kind, parameter, key


def why_broken(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if it is complete. Raises NewerVersionError if a newer version of
    the program wrote it: such a one isn't broken."""
    try:
        # Cheap checks first; reading all values, which takes longest, comes last.
        check_files(path)
        state, facts = read_state(path)
        read_spec_text(path)
        if (path / SHARDS).is_dir():
            described = describe_shards(path)
        else:
            described = {}
            for kind, file in TENSOR_FILES.items():
                described |= {f"{kind}/{name}": shape for name, shape in _shapes(path, file).items()}
        check_names(path, described, state, facts)
        for file, name, tensor in _all_tensors(path):
            check_tensor(path, file, name, tensor, state["progress"]["step"])
    # A subclass of CheckpointError, and the one kind that `--resume auto` must not skip over.
    except NewerVersionError:
        raise
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def check_files(path: Path) -> None:
    """Raise CheckpointError unless the manifest names all files of a checkpoint, and these are as it says."""
    try:
        manifest = read_json(path / MANIFEST, MAX_STATE_BYTES)
    except FileError as error:
        raise CheckpointError(f"{path}: {MANIFEST} {_without_path(error, path / MANIFEST)}") from error
    for name, size, checksum in _entries(path, manifest):
        file = path / name
        try:
            if not file.is_file():
                raise CheckpointError(f"{path}: {name} is missing")
            # A cut file is found by its size, before gigabytes are summed.
            if file.stat().st_size != size or sha256(file) != checksum:
                raise CheckpointError(f"{path}: {name} isn't what was written ({size} bytes, by its checksum)")
        except OSError as error:
            raise CheckpointError(f"{path}: {name} can't be read: {error.strerror}") from error


def _entries(path: Path, manifest: Any) -> Iterator[tuple[str, int, str]]:
    """Yield name, bytes and checksum of every file, after all names have been checked."""
    # Names are paths that are opened next: none may lead out of the checkpoint's folder.
    wrong = f"{path}: {MANIFEST} isn't what was written: "
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{wrong}expected an object of files by name, got {type(manifest).__name__}")
    for name in manifest:
        parts = PurePosixPath(name).parts
        plain = len(parts) == 1 or (len(parts) == 2 and parts[0] == SHARDS)
        # The name must be the very text that a path gives back: no "a//b", "./a" or trailing slash.
        if not plain or str(PurePosixPath(*parts)) != name or ".." in parts or shown(name) != name or "\\" in name:
            raise CheckpointError(f"{wrong}{brief(name)!r} is no file of a checkpoint")
        if len(parts[-1].encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise CheckpointError(f"{wrong}the name {brief(name)!r} is too long")
    sharded = (path / SHARDS).is_dir() or any(name.startswith(f"{SHARDS}/") for name in manifest)
    needed = [f"{SHARDS}/{SHAPES}"] if sharded else list(TENSOR_FILES.values())
    gone = [name for name in (*needed, STATE, SPEC) if name not in manifest]
    if sharded and not any(name.startswith(f"{SHARDS}/") and name.endswith(".safetensors") for name in manifest):
        gone.append(f"{SHARDS}/*.safetensors")
    if gone:
        raise CheckpointError(f"{wrong}it doesn't name {', '.join(gone)}")
    for name, facts in manifest.items():
        size, checksum = (facts.get("bytes"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        # `type`, since True is an int to isinstance.
        if type(size) is not int or size < 0 or not isinstance(checksum, str) or not SHA256.fullmatch(checksum):
            raise CheckpointError(f"{wrong}a size or a checksum is missing from it, of {name}")
    yield from ((name, facts["bytes"], facts["sha256"]) for name, facts in manifest.items())


def sha256(file: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_state(path: Path) -> tuple[dict[str, Any], ModelFacts | None]:
    """Return the content of state.json, checked, and what it says of the model (None in files of before it did). Raises
    CheckpointError."""
    try:
        state = read_json(path / STATE, MAX_STATE_BYTES)
    except FileError as error:
        raise CheckpointError(f"{path}: {STATE} {_without_path(error, path / STATE)}") from error
    return state, check_state(state, f"{path}: {STATE}")


def read_spec_text(path: Path) -> str:
    """Return the text of spec.yaml: YAML with sections; whether it is a spec for this program isn't looked at. Raises
    CheckpointError."""
    try:
        text = read_text(path / SPEC, MAX_SPEC_BYTES)
        problem = spec_problem(text)
    except FileError as error:
        raise CheckpointError(f"{path}: {SPEC} {_without_path(error, path / SPEC)}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise CheckpointError(f"{path}: {SPEC} is no readable YAML: {brief(str(error).splitlines()[0])}") from error
    if problem:
        raise CheckpointError(f"{path}: {SPEC} {problem}")
    return text


def spec_problem(text: str) -> str | None:
    """Return why a text can't be a saved spec; None if it may be one. Raises YAMLError."""
    # By the parser's events, without building anything: neither depth nor aliases cost memory then.
    depth, aliases, kinds, at_key = 0, 0, [], True
    # Keys and values of the top level take turns at depth 1.
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if len(kinds) < 3:
            kinds.append(type(event))
        if depth == 1 and not isinstance(event, yaml.CollectionEndEvent):
            # A spec out of somebody's checkpoint must not make this program read other files.
            if at_key and isinstance(event, yaml.ScalarEvent) and event.value == "base":
                return "is no saved spec: it has base, and a saved one stands alone"
            at_key = not at_key
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_SPEC_DEPTH:
            return "is no readable YAML: it is nested too deeply"
        aliases += isinstance(event, yaml.AliasEvent)
        if aliases > MAX_SPEC_ALIASES:
            return "is no saved spec: it has aliases (*), which could stand for more than fits into memory"
    sections = kinds == [yaml.StreamStartEvent, yaml.DocumentStartEvent, yaml.MappingStartEvent]
    return None if sections else "is no spec: expected sections (data:, model:, ...)"


def check_names(
    path: Path, described: dict[str, tuple[int, ...]], state: dict[str, Any], facts: ModelFacts | None
) -> None:
    """Raise CheckpointError unless averages and optimizer have what the parameters have, and outputs have names.

    described: shapes by names as `Checkpoint.tensors` gives them.
    """
    kinds: dict[str, dict[str, tuple[int, ...]]] = {kind: {} for kind in TENSOR_FILES}
    for flat, shape in described.items():
        kind, _, name = flat.partition("/")
        if kind not in kinds:
            raise CheckpointError(f"{path}: {SHARDS} holds {brief(flat)!r}, which is no tensor of a checkpoint")
        kinds[kind][name] = tuple(shape)
    parameters = kinds["parameters"]
    sharded = (path / SHARDS).is_dir()
    file = {kind: SHARDS if sharded else name for kind, name in TENSOR_FILES.items()}
    # A parameter that is missing in all three kinds of tensors is noticed by its count alone.
    counts = state.get("tensors") or {}
    for kind, tensors in kinds.items():
        if counts.get(kind, len(tensors)) != len(tensors):
            raise CheckpointError(
                f"{path}: {file[kind]} holds {len(tensors)} tensors ({kind}), and {STATE} says that they were "
                f"{counts[kind]}"
            )
    if not parameters:
        raise CheckpointError(f"{path}: {file['parameters']} holds no tensors")
    check_outputs(facts, parameters, f"{path}: {STATE}: model")
    _check_alike(path, file["ema"], parameters, kinds["ema"])
    moments: dict[str, dict[str, tuple[int, ...]]] = {}
    for flat, shape in kinds["optimizer"].items():
        name, slash, key = flat.rpartition("/")
        if not slash or name not in parameters:
            raise CheckpointError(f"{path}: {file['optimizer']} holds {brief(flat)!r}, of no trained parameter")
        moments.setdefault(name, {})[key] = shape
    # In shards the step is one number, in the state.
    needed = MOMENTS if sharded else ("step", *MOMENTS)
    for name, tensors in moments.items():
        for key in (*needed, *tensors):
            if key not in tensors or key not in needed:
                what = "lacks" if key not in tensors else "holds the unknown"
                raise CheckpointError(f"{path}: {file['optimizer']} {what} {brief(f'{name}/{key}')}")
        _check_alike(path, file["optimizer"], {key: parameters[name] for key in MOMENTS},
                     {key: tensors[key] for key in MOMENTS}, f"{name}/")  # fmt: skip
        if tensors.get("step", ()) not in ((), (1,)):
            raise CheckpointError(f"{path}: {file['optimizer']}: {brief(name)}/step is no single number")
    if sharded and state.get("optimizer_step") is None:
        raise CheckpointError(f"{path}: {STATE}: optimizer_step: is missing")


def _check_alike(
    path: Path, file: str, here: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]], before: str = ""
) -> None:
    for name in [*here, *there]:
        what = f"{path}: {file}"
        if name not in there:
            raise CheckpointError(f"{what} lacks {brief(before + name)}, which is trained")
        if name not in here:
            raise CheckpointError(f"{what} holds {brief(before + name)}, of no trained parameter")
        if here[name] != there[name]:
            raise CheckpointError(
                f"{what}: {brief(before + name)} is {there[name]}, and the parameter itself {here[name]}"
            )


def check_tensor(path: Path, file: str, name: str, tensor: Tensor, steps: int) -> None:
    """Raise CheckpointError for numbers that training can't have written. name: within its file; steps: of the run."""
    key = name.rpartition("/")[2]
    where = f"{path}: {file}: {brief(name)}"
    # Steps that weren't finite don't count: it may be lower than the run's.
    if key == "step":
        if not 0 <= float(tensor) < float("inf"):
            raise CheckpointError(f"{where} is {float(tensor)}, expected a number of steps")
        if float(tensor) > steps + EXTRA_STEPS:
            raise CheckpointError(f"{where} is {float(tensor):g}, and the run has done {steps} steps")
        return
    if tensor.dtype != torch.float32 and not (key in MOMENTS and tensor.dtype == torch.bfloat16):
        raise CheckpointError(f"{where} is {str(tensor.dtype).removeprefix('torch.')}, expected float32")
    if torch.isnan(tensor).any():
        raise CheckpointError(f"{where} holds NaN")
    # The squares of large gradients may be infinite, and stay so without harm.
    if key != MOMENTS[1] and torch.isinf(tensor).any():
        raise CheckpointError(f"{where} holds infinite numbers")
    if key == MOMENTS[1] and (tensor < 0).any():
        raise CheckpointError(f"{where} holds squares below 0")


def describe_shards(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what ranks wrote, by name. Raises CheckpointError if the list isn't what their files
    hold."""
    place = f"{SHARDS}/{SHAPES}"
    try:
        shapes = read_json(path / place, MAX_STATE_BYTES)
    except FileError as error:
        raise CheckpointError(f"{path}: {place} {_without_path(error, path / place)}") from error
    if not isinstance(shapes, dict):
        raise CheckpointError(f"{path}: {place}: expected shapes by name, got {type(shapes).__name__}")
    for name, shape in shapes.items():
        # The bound keeps a damaged list from asking for memory without end.
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
            raise CheckpointError(f"{path}: {place}: {brief(name)}: expected a shape, got {cut(shape)}")
    # The list says what shapes to allocate: it must be about the very tensors that the files hold.
    held = {name for file in _shard_files(path) for name in _shapes(path, file)}
    if held != set(shapes):
        name = sorted(held ^ set(shapes))[0]
        where = "holds" if name in held else "lacks"
        raise CheckpointError(f"{path}: {SHARDS} {where} {brief(name)}, against {place}")
    return {name: tuple(shape) for name, shape in shapes.items()}


def _shard_files(path: Path) -> list[str]:
    return sorted(f"{SHARDS}/{file.name}" for file in (path / SHARDS).glob("*.safetensors"))


def _shapes(path: Path, file: str) -> dict[str, tuple[int, ...]]:
    try:
        shapes, _ = read_header(path / file)
    except WeightsError as error:
        raise CheckpointError(f"{path}: {file} {_without_path(error, path / file)}") from error
    return {name: tuple(shape) for name, shape in shapes.items()}


def _all_tensors(path: Path) -> Iterable[tuple[str, str, Tensor]]:
    """Yield file, name and values of all tensors, one after another: no more than one is in memory."""
    files = _shard_files(path) if (path / SHARDS).is_dir() else list(TENSOR_FILES.values())
    for file in files:
        try:
            # Mapped by safetensors, not read: each tensor's pages come when it is asked for.
            with safe_open(path / file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    yield file, name, opened.get_tensor(name)
        except Exception as error:
            raise CheckpointError(f"{path}: {file} can't be read: {brief(error)}") from error


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
MAX_NORMALIZER = 1e12
"""Largest running mean of positives in a batch."""
EXTRA_STEPS = 1
"""Steps by which an optimizer's count may pass the run's."""
Count = Annotated[int, Field(ge=0, le=2**53, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]


@dataclass
class Progress:
    """A run's position and best result; saved with every checkpoint."""

    # Not strict as a whole: that would refuse the mapping that JSON gives.
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: Count = 0
    step_in_epoch: Count = 0
    step: Count = 0
    evaluated_epochs: Count = 0
    """Epochs that were complete at the last evaluation."""
    best_mAP: Annotated[float, Field(ge=-1, le=1, strict=True)] = -1.0  # noqa: N815, the field's name for it
    best_epoch: Count | None = None
    """Complete epochs at that best evaluation; None before it, and in checkpoints of earlier versions."""
    best_by_tiou: dict[str, Share] = field(default_factory=dict)
    """Its mAP by tIoU."""
    evaluations_without_better: Count = 0
    """Evaluations since that best one."""
    untrained_mAP: Share | None = None  # noqa: N815
    bad_steps: Count = 0
    """Steps so far whose loss or gradients weren't finite, which changed nothing."""
    bad_steps_in_a_row: Count = 0
    seconds: Annotated[float, Field(ge=0, strict=True)] = 0.0
    """Training and evaluation so far."""


NEEDED = ("epoch", "step_in_epoch", "step")
"""Fields of `Progress` that no version may lack; the others have their defaults in older files."""


# Its bounds are those under which GradScaler works: a scale of 0 or a factor of 1 would never recover.
class _Scaler(BaseModel):
    """State of fp16's loss scale, as torch's GradScaler gives it."""

    model_config = STRICT

    scale: Annotated[float, Field(gt=0)]
    growth_factor: Annotated[float, Field(gt=1)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(ge=1, le=2**53)]
    growth_tracker: Annotated[int, Field(ge=0, le=2**31 - 1, alias="_growth_tracker")]


class _State(BaseModel):
    """Content of state.json. Fields with None may be missing in older files."""

    model_config = STRICT

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] | None = None
    progress: Progress
    normalizer: Annotated[float, Field(ge=0, le=MAX_NORMALIZER)]
    scaler: dict[str, Any]
    """{} without one, else as `_Scaler`."""
    frozen_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    optimizer_step: Annotated[float, Field(ge=0)] | None = None
    """AdamW's step of a checkpoint that ranks wrote in shards; elsewhere it is a tensor for each parameter."""
    tensors: dict[str, Count] | None = None
    """Number of tensors of each kind."""
    model: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _progress_says_where(cls, content: Any) -> Any:
        progress = content.get("progress") if isinstance(content, dict) else None
        if isinstance(progress, dict) and (gone := [name for name in NEEDED if name not in progress]):
            raise ValueError(f"progress.{gone[0]}: is missing")
        return content

    @model_validator(mode="after")
    def _steps_fit(self) -> _State:
        progress = self.progress
        # Every epoch has a step at least.
        if progress.epoch + progress.step_in_epoch > progress.step:
            raise ValueError(
                f"progress: epoch {progress.epoch} and step {progress.step_in_epoch} in it are more than all "
                f"{progress.step} steps"
            )
        for name in ("bad_steps", "bad_steps_in_a_row"):
            if getattr(progress, name) > progress.step:
                raise ValueError(f"progress.{name}: {getattr(progress, name)} of {progress.step} steps")
        if self.optimizer_step is not None and self.optimizer_step > progress.step + EXTRA_STEPS:
            raise ValueError(f"optimizer_step: {self.optimizer_step:g}, and the run has done {progress.step} steps")
        # An evaluation comes after an epoch, never before.
        if progress.evaluated_epochs > progress.epoch:
            raise ValueError(f"progress.evaluated_epochs: {progress.evaluated_epochs} of {progress.epoch} epochs")
        gone = [name for name in ("model", "tensors") if getattr(self, name) is None]
        # Only files without a version may lack these: they are from before there were such fields.
        if self.format_version is not None and gone:
            raise ValueError(f"{gone[0]}: is missing")
        return self


def check_state(content: Any, where: object) -> ModelFacts | None:
    """Return what a state says of its model, None in files of before it did. Raises CheckpointError, which names the
    field, for a state that can't be one; NewerVersionError if a newer version of the program wrote it."""
    # The version first: a newer one's unknown fields would otherwise be reported as mistakes.
    if isinstance(content, dict):
        progress = content.get("progress")
        inside = {f"progress.{name}" for name in progress} if isinstance(progress, dict) else set()
        known = {*_State.model_fields, *(f"progress.{field.name}" for field in fields(Progress))}
        check_version({**dict.fromkeys(inside), **content}, known, where)
    try:
        state = _State.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{where}: {first_problem(error)}") from error
    # Apart from the state's own fields, so that {} stays possible.
    try:
        if state.scaler:
            _Scaler.model_validate(state.scaler)
    except ValidationError as error:
        raise CheckpointError(f"{where}: scaler: {first_problem(error)}") from error
    return read_facts(state.model, f"{where}: model") if state.model is not None else None


def check_position(
    progress: Progress, steps_per_epoch: int, where: object, most_an_epoch: int | None = None
) -> list[str]:
    """Return warnings about a position that epochs of another length than this run's have led to. Raises
    CheckpointError for one that this run doesn't have, or that no run can reach.

    most_an_epoch: steps of an epoch with batches of one video, where the data are those of before.
    """
    epoch, inside, step = progress.epoch, progress.step_in_epoch, progress.step
    # Resuming there would never reach the end of the epoch.
    if inside >= steps_per_epoch and inside:
        raise CheckpointError(
            f"{where}: state.json: progress.step_in_epoch: stands at step {inside} of an epoch that "
            f"has {steps_per_epoch} here; train with the videos and the train.global_batch of before, or start another "
            "run"
        )
    if most_an_epoch is not None and step > epoch * most_an_epoch + inside:
        raise CheckpointError(
            f"{where}: state.json: progress.step: {step} steps, of which {epoch} epochs of {steps_per_epoch} and "
            f"{inside} make {epoch * steps_per_epoch + inside}; with any train.global_batch they are "
            f"{epoch * most_an_epoch + inside} at most"
        )
    if step == epoch * steps_per_epoch + inside:
        return []
    return [
        f"{where}: stands at step {step}, and {epoch} epochs of {steps_per_epoch} steps and {inside} here make "
        f"{epoch * steps_per_epoch + inside}: the videos or train.global_batch were others before"
    ]
