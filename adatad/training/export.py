"""Files of trained weights: written from a checkpoint, and read whatever wrote them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor, nn

from adatad.convert.opentad_checkpoint import opentad_state
from adatad.convert.weight_file import (
    META,
    OWN_META,
    WeightsError,
    brief,
    check_values,
    is_own_safetensors,
    read_header,
    read_safetensors,
    read_weight_file,
    write_safetensors,
    write_torch,
)
from adatad.errors import UserError
from adatad.files import FileError, check_output, read_start
from adatad.models.detector import TemporalActionDetector
from adatad.report.last_and_best import KEY, select_of
from adatad.spec import Select, Spec, SpecError, load
from adatad.training.checkpoint import (
    BEST,
    Checkpoint,
    all_checkpoints,
    fingerprint,
    newest_checkpoint,
)
from adatad.training.checkpoint_check import MANIFEST, SPEC, read_spec_text, read_state, spec_problem, why_broken
from adatad.training.model_facts import (
    HEAD_BIAS,
    MERGED,
    TRAINED,
    CheckpointError,
    ModelFacts,
    check_outputs,
    cut,
    facts_in_header,
    number_of_outputs,
)
from adatad.training.model_record import fingerprint_of, record_in_header
from adatad.training.setup import build_initial_model


def export_trained(checkpoint: Checkpoint, output: Path, averages: bool = True) -> int:
    """Write the trained tensors of a checkpoint alone, its averages or its last parameters, to `output`, which appears
    only when whole. Returns the number of tensors."""
    check_output(output)
    tensors = dict(checkpoint.ema if averages else checkpoint.parameters)
    header = {
        "content": TRAINED,
        "weights": "moving averages" if averages else "parameters of the last step",
        "step": str(checkpoint.state["progress"]["step"]),
        "frozen_fingerprint": checkpoint.state["frozen_fingerprint"],
        **_facts(checkpoint),
    }
    write_safetensors(output, tensors, header)
    return len(tensors)


def export_opentad(spec: Spec, checkpoint: Checkpoint, output: Path) -> int:
    """Write a checkpoint as OpenTAD's, with its averages and its last parameters, frozen weights in both. Returns the
    number of entries of each. What the file is stands beside them, where OpenTAD doesn't look."""
    check_output(output)
    normalizer = checkpoint.state["normalizer"]
    last = opentad_state(whole_model(spec, checkpoint, checkpoint.parameters), normalizer)
    averages = opentad_state(whole_model(spec, checkpoint, checkpoint.ema), normalizer)
    meta = {OWN_META: _facts(checkpoint)}
    content = {"epoch": checkpoint.state["progress"]["epoch"], "state_dict": last, "state_dict_ema": averages}
    write_torch(output, {**content, META: meta})
    return len(last)


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what a checkpoint says of its model, as header text; the spec alone if it is older than the names."""
    facts = checkpoint.facts
    return facts.header(checkpoint.spec_yaml) if facts else {"spec": checkpoint.spec_yaml}


def whole_model(spec: Spec, checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> TemporalActionDetector:
    """Return the model with its frozen weights and these trained tensors. Raises CheckpointError if the frozen weights
    aren't those of the training."""
    # The head says how many classes the model has; the spec leaves that to the annotations.
    if not number_of_outputs({name: tensor.shape for name, tensor in tensors.items()}):
        raise CheckpointError(f"the checkpoint is of no detector: it trains no {HEAD_BIAS}")
    # Frozen weights may be random ones, by the seed: they must come out as they did in training.
    model, _ = build_initial_model(spec, len(tensors[HEAD_BIAS]))
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise CheckpointError(f"the checkpoint's own spec builds a model without its {brief(name)}")
    # The fingerprint covers what isn't trained.
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in tensors)
    if fingerprint(model) != checkpoint.state["frozen_fingerprint"]:
        raise CheckpointError(
            "the frozen weights that model.backbone.weights names aren't those of the training: no whole model can "
            "be written"
        )
    model.load_state_dict(tensors, strict=False)
    return model


def load_exported(model: nn.Module, trained: list[str], path: Path) -> None:
    """Put a file that `export` wrote, or parameters or averages of a checkpoint, into a model with its frozen weights.
    Raises CheckpointError if it is of another model or another backbone; nothing is changed then."""
    tensors, header = read_safetensors(path)
    content = header.get("content")
    if content not in (None, TRAINED, MERGED):
        raise CheckpointError(f"{path}: content: expected {TRAINED} or {MERGED}, got {cut(content)}")
    check_outputs(facts_in_header(header, path), {name: t.shape for name, t in tensors.items()}, path)
    record = record_in_header(header, path)
    # Damage that leaves plausible numbers is seen by this alone.
    if record is not None and fingerprint_of(tensors) != record.fingerprint:
        raise CheckpointError(f"{path}: its numbers aren't those that were written: it is damaged; copy it again")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    # A merged file holds all parameters, any other those that are trained.
    wanted = shapes if content == MERGED else {name: shapes[name] for name in trained}
    if content == MERGED and POSITIONS in tensors and (table := model.backbone.position_table) is not None:
        wanted = {**wanted, POSITIONS: table.shape}
    got = {name: tensor.shape for name, tensor in tensors.items()}
    different = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    if different:
        raise CheckpointError(
            f"{path}: holds other parameters than this spec trains ({len(different)} differ, such as "
            f"{brief(different[0])})"
        )
    if content == TRAINED and "frozen_fingerprint" not in header:
        raise CheckpointError(
            f"{path}: frozen_fingerprint: is missing, so that nobody knows which frozen weights belong to it; export "
            "it again"
        )
    if content == TRAINED and header["frozen_fingerprint"] != fingerprint(model):
        raise CheckpointError(f"{path}: was trained on other frozen weights than model.backbone.weights gives")
    # Not strict: a file of trained tensors leaves the frozen ones as they are; what must be there was checked above.
    check_values(tensors, path)
    model.load_state_dict(tensors, strict=False)
    if POSITIONS in tensors:
        # No part of the state: everywhere else it is computed, or comes with the pretrained weights.
        with torch.no_grad():
            model.backbone.position_table.copy_(tensors[POSITIONS])


POSITIONS = "backbone.position_table"
"""Name in a model file of the position table, which no parameter is, where it isn't the sine table."""
MAX_LISTED_PROBLEMS = 5
"""Problems of a spec that a message lists; the rest is counted."""


class TrainedFile(NamedTuple):
    """Record and spec of a checkpoint or a file of weights; None where it has none (older files, OpenTAD's)."""

    facts: ModelFacts | None
    spec_yaml: str | None


def find_checkpoint(named: Path, select: Select | None = None) -> tuple[Path, list[str]]:
    """Return the checkpoint or file of weights that a path means, and lines on what was chosen: of a run, or of its
    folder `checkpoints`, the best one or the newest whole one, as the run's `train.select` says, or `select` in its
    place; the newest where there is no best. Raises CheckpointError."""
    try:
        if not named.is_dir():
            # Says what is wrong with it, if it is no file.
            read_start(named)
            return named, []
        folder = named / "checkpoints" if (named / "checkpoints").is_dir() else named
        holds_checkpoints = bool(all_checkpoints(folder)) or (folder / BEST).exists()
    except FileError as error:
        raise CheckpointError(f"{error}; expected a run, a checkpoint of it, or a file of weights") from error
    except OSError as error:
        raise CheckpointError(f"{named}: can't be read: {error.strerror}") from error
    if (named / MANIFEST).exists() or not holds_checkpoints:
        return named, []
    lines = []
    try:
        select = select or select_of(folder.parent)
    except UserError as error:
        raise CheckpointError(str(error)) from error
    # The best may be gone or broken (a link copied without its target): the newest one is the next best guess.
    if select == "best" and (folder / BEST).is_dir():
        reason = why_broken(folder / BEST)
        if reason is None:
            return folder / BEST, [f"{named}: its best checkpoint, {(folder / BEST).resolve().name}, is taken"]
        lines.append(f"skipped {folder / BEST}: {reason}")
    newest, skipped = newest_checkpoint(folder)
    if newest is None:
        raise CheckpointError(f"{named}: holds no whole checkpoint: {'; '.join([*lines, *skipped])}")
    why = f" ({KEY}: last)" if select == "last" else ""
    return newest, [*lines, *skipped, f"{named}: its newest whole checkpoint, {newest.name}, is taken{why}"]


def read_trained_file(path: Path) -> TrainedFile:
    """Return what a checkpoint or a file says of itself. Raises CheckpointError or WeightsError for what is none."""
    if path.is_dir():
        if not (path / MANIFEST).exists():
            raise CheckpointError(
                f"{path}: is no checkpoint: it has no {MANIFEST}; name a folder such as checkpoints/best of a run, or "
                "the run"
            )
        return TrainedFile(read_state(path)[1], read_spec_text(path))
    header = _header(path)
    facts = facts_in_header(header, path)
    return TrainedFile(facts, header.get("spec"))


def _header(path: Path) -> dict[str, str]:
    return read_header(path)[1] if is_own_safetensors(path) else read_weight_file(path).header


def holds_frozen_weights(path: Path) -> bool:
    """Return whether a file of weights is whole, so that none of pretrained weights is needed beside it: a merged one,
    or a checkpoint of OpenTAD."""
    try:
        if not is_own_safetensors(path):
            return path.is_file()
        return _header(path).get("content") == MERGED
    except WeightsError:
        return False


def own_spec(
    path: Path, overrides: Sequence[str] = (), overlays: Sequence[str | Path] = (), check_files: bool = True
) -> Spec:
    """Return the spec that weights were trained by, under overrides. Raises CheckpointError if the file holds none, or
    one that this program doesn't know."""
    text = read_trained_file(path).spec_yaml
    if text is None:
        raise CheckpointError(f"{path}: doesn't hold the spec that it was trained by; give SPEC")
    where = path / SPEC if path.is_dir() else f"{path}: spec"
    # The reader of specs takes files, and its messages name the file: the copy's name is replaced in them below.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / SPEC
        copy.write_text(text, encoding="utf-8")
        try:
            if problem := spec_problem(text):
                raise CheckpointError(f"{where}: {problem}")
            # What the training started from is no part of the model any more.
            return load(copy, ["model.init_from=null", *overrides], check_files, overlays)
        except SpecError as error:
            problems = [problem.replace(str(copy), str(where)) for problem in error.problems]
            more = [f"and {len(problems) - MAX_LISTED_PROBLEMS} more"] if len(problems) > MAX_LISTED_PROBLEMS else []
            reason = "; ".join(problems[:MAX_LISTED_PROBLEMS] + more)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = brief(str(error).splitlines()[0])
    raise CheckpointError(
        f"{where}: can't be used as a spec here: {reason}; set what is wrong with --set, or give SPEC"
    )
