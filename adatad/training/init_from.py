"""A fresh run's start from a trained detector (`model.init_from`): what is taken of it, what is left, what stays new.

Taken is what agrees in name and shape, of what learns here; frozen weights stay those of `model.backbone.weights`, and
must be the ones that the detector was trained on. Nothing else of the training before is taken: the run begins at step
0, with an optimizer and averages of its own.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adatad.convert.opentad_checkpoint import by_our_names
from adatad.convert.weight_file import WeightsError, brief, check_values, name_few, read_weight_file
from adatad.models.detector import trained_names
from adatad.parallel.processes import Processes
from adatad.spec import Spec
from adatad.spec.model_sections import RANDOM
from adatad.training.checkpoint import digest_of, read_checkpoint
from adatad.training.export import find_checkpoint, holds_frozen_weights, own_spec, read_trained_file
from adatad.training.model_facts import (
    HEAD_BIAS,
    CheckpointError,
    ModelFacts,
    check_outputs,
    differences,
    facts_in_header,
    facts_of,
    list_names,
)
from adatad.training.resolve import ResolvedRun
from adatad.training.run_directory import run_directory

CLASS_HEAD = ("detector.head.cls_head.weight", HEAD_BIAS)
"""Parameters with a row for each class."""
GROUPS = (
    ("backbone", ("backbone.",)),
    ("projection", ("detector.projection.",)),
    ("neck", ("detector.neck.",)),
    ("class head", CLASS_HEAD),
    ("head", ("detector.head.",)),
)
"""Parts of a model that lines are about, by the beginnings of their parameters' names; the first that fits counts."""
ADAPTERS, POSITION_TABLE = "adapters", "backbone.position_table"
SAME = 1e-4
"""Largest relative difference of two copies of one frozen weight: OpenTAD's average of it is rounded at every step."""
SIZES = ("preset", "width", "depth", "heads", "patch", "mlp_ratio", "mode")
"""Settings of the backbone that say which frozen weights it has."""


class Source(NamedTuple):
    """Trained detector in a file or checkpoint. tensors: by our names; kind: what they are, in words; unknown: names in
    the file that no model of ours has; frozen_fingerprint: hash of the frozen weights that it was trained on, None
    where the file doesn't say it."""

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    facts: ModelFacts | None
    frozen_fingerprint: str | None = None
    unknown: list[str] = []  # noqa: RUF012, a NamedTuple's default


def find_source(spec: Spec, overwrite: bool = False) -> tuple[Path, list[str]]:
    """Return the file or checkpoint that `model.init_from` means, and lines on how it was chosen. It is looked at but
    not read whole: a mistake shows before hours are spent. overwrite: the run's directory will be emptied. Raises
    UserError."""
    with _naming_the_key():
        path, lines = find_checkpoint(Path(spec.model.init_from))
        read_trained_file(path)
    own = run_directory(spec).path.resolve()
    if overwrite and own in path.resolve().parents:
        raise CheckpointError(
            f"model.init_from: {path} lies in {own}, which --force deletes; start another run from it, with --id N"
        )
    return path, lines


@contextmanager
def _naming_the_key() -> Iterator[None]:
    """Put the key before what is said of the file: a spec names several."""
    try:
        yield
    except (CheckpointError, WeightsError) as error:
        raise type(error)(f"model.init_from: {error}") from error


def with_its_backbone(spec: Spec, path: Path) -> Spec:
    """Return a spec that names no backbone weights with `model.backbone.weights` at the trained file, if that holds a
    whole model. The run's own spec then says where its frozen weights are, as its checkpoints need it."""
    if not path.is_file() or not holds_frozen_weights(path):
        return spec
    backbone = spec.model.backbone.model_copy(update={"weights": str(path)})
    return spec.model_copy(update={"model": spec.model.model_copy(update={"backbone": backbone})})


def start_from(model: nn.Module, run: ResolvedRun, path: Path, processes: Processes) -> list[str]:
    """Fill a model at step 0 from a trained detector; return lines for the log.

    model: before any engine or policy has it; path: of `find_source`. All ranks call it. Raises CheckpointError or
    WeightsError, with nothing changed, for what is no detector, or one of which nothing fits.
    """
    spec, outputs = run.spec, run.outputs
    trained = trained_names(model, spec.model.backbone, spec.model.freeze)
    with _naming_the_key():
        source = read_source(path)
        # Before anything is copied, since it may refuse the start.
        uncompared = list(_check_frozen(model, source, trained, spec))
        lines = [*_take(model, spec, outputs, source, trained), *uncompared]
    parameters = dict(model.named_parameters())
    own = socket.gethostname(), digest_of((name, parameters[name]) for name in trained)
    digests = dict(processes.gather(own))
    if len(set(digests.values())) > 1:
        raise CheckpointError(
            f"model.init_from: {', '.join(digests)} have read different weights from {path}; expected one file on all "
            "machines: copy it anew"
        )
    return lines


def read_source(path: Path) -> Source:
    """Read a trained detector: the averages of a checkpoint, or a file's tensors. Raises CheckpointError or
    WeightsError for what is damaged, or holds no detector."""
    if path.is_dir():
        saved = read_checkpoint(path)
        step = saved.state["progress"]["step"]
        return Source(path, f"averages of step {step}", saved.ema, saved.facts, saved.state["frozen_fingerprint"])
    file = read_weight_file(path)
    facts = facts_in_header(file.header, path)
    if any(name.startswith("detector.") for name in file.tensors):
        check_outputs(facts, {name: tensor.shape for name, tensor in file.tensors.items()}, path)
        # The table belongs to the frozen weights, and comes with them.
        tensors = {name: tensor for name, tensor in file.tensors.items() if name != POSITION_TABLE}
        return Source(path, "exported weights", tensors, facts, file.header.get("frozen_fingerprint"))
    tensors, unknown = by_our_names(file.tensors)
    if not any(name.startswith("detector.") for name in tensors):
        raise WeightsError(
            f"{path}: holds no detector of AdaTAD's or OpenTAD's (its names begin with "
            f"{name_few(list(file.tensors)[:3])}), so that nothing can start from it; a file of pretrained "
            "backbone weights goes to model.backbone.weights"
        )
    check_outputs(facts, {name: tensor.shape for name, tensor in tensors.items()}, path)
    kind = f"OpenTAD checkpoint, {'moving averages' if file.averaged else 'parameters'}"
    return Source(path, kind, tensors, facts, unknown=unknown)


def _is_encoder(name: str) -> bool:
    """Return whether a parameter is the pretrained backbone's own, and no adapter's."""
    return name.startswith("backbone.") and "adapter" not in name


def _check_frozen(model: nn.Module, source: Source, trained: list[str], spec: Spec) -> Iterator[str]:
    """Yield a line where the backbones can't be compared. Raises CheckpointError if the detector was trained on other
    frozen weights than the model has."""
    encoder = {name: parameter for name, parameter in model.named_parameters() if _is_encoder(name)}
    held = {name: tensor for name, tensor in source.tensors.items() if _is_encoder(name)}
    frozen = encoder.keys() - trained
    if held:
        check_values(held, source.path)
        other = [n for n in encoder if n in frozen and not (n in held and _is_same(held[n], encoder[n]))]
        if other:
            file = source.path if source.path.is_file() else "FILE of adatad export"
            raise CheckpointError(
                f"{source.path}: its backbone isn't the one that model.backbone.weights gives ({len(other)} of "
                f"{len(frozen)} frozen tensors differ, such as {brief(other[0])}); to train on its own: --set "
                f"model.backbone.weights={file}"
            )
        return
    if source.frozen_fingerprint is None:
        yield f"  {source.path} doesn't say which frozen weights it was trained on: they aren't compared"
    elif source.frozen_fingerprint != digest_of(encoder.items()):
        before = _spec_before(source.path)
        if before and before.model.freeze:
            # The fingerprint is of all that was frozen, which no file holds.
            yield "  model.freeze of its training is in the way of comparing the frozen weights"
            return
        weights = before.model.backbone.weights if before else None
        hint = f"; its training says --set model.backbone.weights={weights}" if weights else ""
        # Random ones follow from the seed.
        hint += f" train.seed={before.train.seed}" if weights == RANDOM else ""
        if hint:
            # Of another size, the same weights alone would be refused again.
            here, there = spec.model.backbone, before.model.backbone
            values = {key: getattr(there, key) for key in SIZES if getattr(here, key) != getattr(there, key)}
            hint += "".join(f" model.backbone.{key}={'null' if v is None else v}" for key, v in values.items())
        raise CheckpointError(
            f"{source.path}: was trained on other frozen weights than model.backbone.weights gives{hint}"
        )


def _spec_before(path: Path) -> Spec | None:
    """Return the spec of the training before; None if there is none that this program knows."""
    try:
        return own_spec(path, check_files=False)
    except CheckpointError:
        return None


def _is_same(saved: Tensor, here: Tensor) -> bool:
    """Return whether a saved frozen weight is a copy of this one, rounded to the dtype of the file."""
    if saved.shape != here.shape:
        return False
    saved, here = saved.float(), here.detach().to(saved.dtype).float()
    return bool((saved - here).norm() <= SAME * here.norm())


def _take(model: nn.Module, spec: Spec, outputs: Sequence[str], source: Source, trained: list[str]) -> list[str]:
    """Copy what fits of what learns; return lines on it. Raises CheckpointError if that is nothing."""
    parameters, tensors, path = dict(model.named_parameters()), source.tensors, source.path
    rest = [name for name in trained if name not in CLASS_HEAD]
    taken = [name for name in rest if name in tensors and tensors[name].shape == parameters[name].shape]
    other_shape = [name for name in rest if name in tensors and tensors[name].shape != parameters[name].shape]
    # Single numbers and biases of two fit any model.
    if not any(parameters[name].ndim > 1 for name in taken):
        hint = f", such as {_both_shapes(other_shape[0], tensors, parameters)}" if other_shape else ""
        raise CheckpointError(
            f"{path}: no matrix of it fits what this spec trains ({len(rest)} tensors{hint}); model.detector and "
            "model.backbone must be of the sizes that it was trained with"
        )
    rows = _class_rows(source, spec, outputs, parameters)
    check_values({name: tensors[name] for name in (*taken, *(CLASS_HEAD if rows else ()))}, path)
    with torch.no_grad():
        for name in taken:
            parameters[name].copy_(tensors[name])
        for name in CLASS_HEAD if rows else ():
            for here, there in rows.items():
                parameters[name][here] = tensors[name][there].to(parameters[name].dtype)
    lines = [f"model.init_from {path}: {source.kind}; {len(taken)} of {len(rest)} tensors taken, beside the class head"]
    left = [name for name in tensors if name not in parameters and name not in CLASS_HEAD]
    lines += _on_groups(taken, other_shape, [name for name in rest if name not in tensors], left, tensors, parameters)
    lines.append(_on_classes(source, outputs, rows))
    if source.unknown:
        lines.append(f"  left, unknown here: {name_few(source.unknown)}")
    if source.facts:
        lines += [f"  {line}" for line in differences(source.facts, facts_of(spec, source.facts.classes))]
    return lines


def _class_rows(
    source: Source, spec: Spec, outputs: Sequence[str], parameters: dict[str, nn.Parameter]
) -> dict[int, int]:
    """Return the rows of the class head that are kept: number there by number here, of outputs of one name."""
    agnostic = spec.model.detector.class_agnostic
    if source.facts is None or source.facts.class_agnostic != agnostic:
        return {}
    if not all(n in source.tensors and source.tensors[n].shape[1:] == parameters[n].shape[1:] for n in CLASS_HEAD):
        return {}
    numbers = {name: number for number, name in enumerate(source.facts.outputs)}
    return {here: numbers[name] for here, name in enumerate(outputs) if name in numbers}


def _on_groups(
    taken: list[str],
    other_shape: list[str],
    new: list[str],
    left: list[str],
    tensors: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
) -> Iterator[str]:
    """Yield a line for each part of the model: how many of its tensors are taken, new or left, and why."""
    counts = [Counter(map(_group, names)) for names in (taken, other_shape, new, left)]
    for group in dict.fromkeys(map(_group, (*taken, *other_shape, *new, *left))):
        took, reshaped, fresh, dropped = (count[group] for count in counts)
        parts = [f"{took} taken"] if took else []
        if reshaped:
            example = next(name for name in other_shape if _group(name) == group)
            parts.append(f"{reshaped} new, of another shape ({_both_shapes(example, tensors, parameters)})")
        if fresh:
            example = next(name for name in new if _group(name) == group)
            parts.append(f"{fresh} new, not in the file ({example})")
        if dropped:
            example = next(name for name in left if _group(name) == group)
            parts.append(f"{dropped} left, not in this model ({brief(example)})")
        yield f"  {group}: {', '.join(parts)}"


def _group(name: str) -> str:
    if name.startswith("backbone.") and not _is_encoder(name):
        return ADAPTERS
    return next((group for group, starts in GROUPS if name.startswith(starts)), "other")


def _both_shapes(name: str, tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> str:
    return f"{name} {list(tensors[name].shape)} there, {list(parameters[name].shape)} here"


def _on_classes(source: Source, outputs: Sequence[str], rows: dict[int, int]) -> str:
    """Return the line on the class head."""
    new = [name for number, name in enumerate(outputs) if number not in rows]
    parts = [f"{len(rows)} kept ({list_names([outputs[number] for number in rows])})"] if rows else []
    parts += [f"{len(new)} new ({list_names(new)})"] if new else []
    if source.facts is None:
        parts.append("the file doesn't say which classes its outputs are")
    elif left := [name for name in source.facts.outputs if name not in outputs]:
        parts.append(f"{len(left)} left ({list_names(left)})")
    return f"  class head: {', '.join(parts)}"
