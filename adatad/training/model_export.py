"""Writing of model files: all weights of a trained model, with everything that is needed to detect by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from adatad import __version__
from adatad.convert.licences import licence_of
from adatad.convert.opentad_checkpoint import load_opentad, opentad_name
from adatad.convert.weight_file import OWN_META, WeightsError, read_weight_file, write_safetensors
from adatad.data.annotation_file import load_database
from adatad.data.classes import read_classes
from adatad.errors import UserError
from adatad.files import check_output
from adatad.models.detector import TemporalActionDetector, build_model
from adatad.models.vit import is_token, sine_table
from adatad.report.last_and_best import select_of
from adatad.spec import Spec, to_yaml
from adatad.spec.downloads import data_licence
from adatad.spec.quirks import Quirks
from adatad.spec.write import renamed_yaml
from adatad.training.checkpoint import BEST, all_checkpoints, read_checkpoint
from adatad.training.export import POSITIONS, read_trained_file, whole_model
from adatad.training.model_facts import HEAD_BIAS, MERGED, ModelFacts, check_outputs, facts_of, number_of_outputs
from adatad.training.model_record import DTYPES, RECORD, ModelRecord, fingerprint_of
from adatad.training.model_scores import Measured, measure, usual_fps

Dtype = Literal["float32", "bfloat16", "float16"]
AVERAGES, LAST_STEP = "moving averages", "parameters of the last step"
"""`weights` of a file: which of a checkpoint's it holds."""


class Exported(NamedTuple):
    """Facts on a file that was written. tensors: how many; measured: scores and thresholds in the file; notes: lines
    for the user."""

    tensors: int
    measured: Measured
    notes: list[str]


class Trained(NamedTuple):
    """A trained model, on the CPU, before it is written. origin: `chosen`, `checkpoint` and `epoch` of the record;
    step: optimizer steps, None where nobody knows."""

    spec: Spec
    spec_yaml: str
    facts: ModelFacts
    model: TemporalActionDetector
    weights: str
    step: int | None
    origin: dict[str, str | int | None]


def export_model(
    spec: Spec,
    source: Path,
    output: Path,
    averages: bool = True,
    dtype: Dtype = "float32",
    detections: Path | None = None,
) -> Exported:
    """Write a checkpoint, of a run or of OpenTAD (.pth), as a model file; `output` appears only when whole.

    spec: the checkpoint's own, or OpenTAD's experiment. averages: instead of the last step's parameters. dtype: of the
    matrices; vectors and tables stay float32. detections: file of this checkpoint's detections on the validation
    videos; None: the run's, if they are the checkpoint's. Raises UserError.
    """
    # Before anything is read, which may take minutes.
    check_output(output)
    if spec.model.backbone.mode == "features":
        raise UserError(
            "a model of features (model.backbone.mode features) isn't exported: the file would detect in no video"
        )
    notes: list[str] = []
    read = _of_run if source.is_dir() else _of_opentad
    trained = read(spec, source, averages, notes)
    # Before gigabytes are hashed: named detections may be refused.
    measured = measure(spec, trained.facts, source, trained.step, trained.weights == AVERAGES, detections)
    notes += [measured.note] * bool(measured.note)
    # The whole model: a file that needs another one beside it is lost with it.
    tensors = _all_tensors(trained.model)
    if dtype != "float32":
        tensors, line = in_16_bits(tensors, dtype)
        notes.append(line)
    # After rounding: the fingerprint is of the numbers that are in the file.
    record = ModelRecord(
        adatad_version=__version__,
        fingerprint=fingerprint_of(tensors),
        dtype=dtype,
        licence=licence_of(spec.model.backbone.weights),
        data_licence=data_licence(spec.data.videos),
        training_fps=usual_fps(spec),
        scores=measured.scores,
        thresholds=measured.thresholds,
        thresholds_from=measured.thresholds_from,
        **trained.origin,
    )
    write_safetensors(output, tensors, _header(trained, record))
    return Exported(len(tensors), measured, notes)


def _header(trained: Trained, record: ModelRecord) -> dict[str, str]:
    step = {} if trained.step is None else {"step": str(trained.step)}
    header = {"content": MERGED, "weights": trained.weights, **step, **trained.facts.header(trained.spec_yaml)}
    header[RECORD] = record.model_dump_json()
    # One entry: safetensors writes several in any order, and the same model must give the same bytes.
    return {OWN_META: json.dumps(header, ensure_ascii=False)}


def _of_run(spec: Spec, path: Path, averages: bool, notes: list[str]) -> Trained:
    checkpoint = read_checkpoint(path)
    tensors = checkpoint.ema if averages else checkpoint.parameters
    progress = checkpoint.state["progress"]
    facts = checkpoint.facts or _facts_by_order(spec, tensors, path, notes)
    origin = {"chosen": which_checkpoint(path), "checkpoint": path.resolve().name, "epoch": progress["epoch"]}
    weights = AVERAGES if averages else LAST_STEP
    try:
        # With its frozen weights, which must be those of the training.
        model = whole_model(spec, checkpoint, tensors)
    except WeightsError as error:
        raise WeightsError(
            f"{error}; --backbone FILE says where they are now, --trained-only leaves them out"
        ) from error
    return Trained(spec, renamed_yaml(checkpoint.spec_yaml), facts, model, weights, progress["step"], origin)


def which_checkpoint(path: Path) -> str:
    """Return which checkpoint of its run this is: best, last, or one that somebody named."""
    folder = path.absolute().parent
    is_best = (folder / BEST).is_dir() and (folder / BEST).resolve() == path.resolve()
    # A checkpoint that was copied out of its run has nothing beside it.
    newest = all_checkpoints(folder)[-1:]
    is_last = bool(newest) and newest[0].resolve() == path.resolve()
    # The newest may be the best too: then it is what the run takes it for.
    if is_best and is_last:
        return select_of(folder.parent)
    return "best" if is_best else "last" if is_last else "named"


def _of_opentad(spec: Spec, path: Path, averages: bool, notes: list[str]) -> Trained:
    file = read_weight_file(path, averages)
    name = opentad_name(HEAD_BIAS).removeprefix("module.")
    head = file.tensors.get(name)
    if head is None or head.dim() != 1:
        raise WeightsError(f"{path}: is no checkpoint of a detector, which has {name}; name another")
    # One that was written here says what its outputs are.
    facts = read_trained_file(path).facts or _facts_by_order(spec, {HEAD_BIAS: head}, path, notes)
    check_outputs(facts, {HEAD_BIAS: head.shape}, path)
    # Nothing is drawn that the checkpoint replaces.
    model = build_model(spec.model, len(head), drawn=False)
    loaded = load_opentad(model, path, averages, file)
    notes += loaded.lines()
    weights = AVERAGES if file.averaged else LAST_STEP
    origin = {"chosen": "opentad", "checkpoint": path.name, "epoch": None}
    return Trained(spec, to_yaml(spec), facts, model, weights, None, origin)


def _facts_by_order(spec: Spec, tensors: dict[str, Tensor], path: Path, notes: list[str]) -> ModelFacts:
    """Return the record of weights that have none, with the classes in the spec's order. Raises UserError if they can't
    be read, or aren't as many as outputs."""
    database = load_database(spec.data.annotations)
    classes = read_classes(spec.data, database, Quirks.of(spec.compat).keep_ambiguous).names
    facts = facts_of(spec, classes)
    # Names in a wrong order can't be seen, a wrong number of them can.
    count = number_of_outputs({name: tensor.shape for name, tensor in tensors.items()})
    if count != len(facts.outputs):
        raise UserError(
            f"{path}: has {count} outputs, and {spec.data.annotations} gives {len(facts.outputs)} classes; give the "
            "spec and the class list of its training"
        )
    notes.append(
        f"{path}: doesn't say which classes its outputs are (an older file, or OpenTAD's): they are taken in the order "
        f"of {spec.data.classes if isinstance(spec.data.classes, str) else spec.data.annotations}"
    )
    return facts


def _all_tensors(model: TemporalActionDetector) -> dict[str, Tensor]:
    """Return all parameters, and the position table unless it is the one that everybody computes."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    table = model.backbone.position_table
    is_computed = table is None or torch.equal(table, sine_table(*table.shape[1:]))
    return tensors if is_computed else {**tensors, POSITIONS: table}


def in_16_bits(tensors: dict[str, Tensor], dtype: Dtype) -> tuple[dict[str, Tensor], str]:
    """Return tensors with their matrices and kernels in 16 bits, and a line on what that changes. Norms, biases, scales
    and the position table stay as they are: they are small, and features depend on their last digits.

    Raises UserError for numbers that the dtype can't hold.
    """
    rounded = {name: t.to(DTYPES[dtype]) for name, t in tensors.items() if _is_matrix(name, t)}
    largest = torch.finfo(DTYPES[dtype]).max
    # float16 ends at 65504, where bfloat16 loses digits alone.
    for name, tensor in rounded.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"--dtype {dtype}: {name} has numbers above {largest:g}; take bfloat16 or float32")
    change = sum(float((tensors[name].float() - t.float()).square().sum()) for name, t in rounded.items())
    size = sum(float(tensors[name].float().square().sum()) for name in rounded)
    percent = 100 * (change / max(size, 1e-30)) ** 0.5
    return {**tensors, **rounded}, (
        f"{len(rounded)} of {len(tensors)} tensors are {dtype}, and differ by {percent:.2g} % (root mean square); "
        "norms, biases, scales and tables are float32"
    )


def _is_matrix(name: str, tensor: Tensor) -> bool:
    adds_to_tokens = name == POSITIONS or is_token(name.removeprefix("backbone.patch_embed."))
    return not adds_to_tokens and tensor.numel() > max(tensor.shape, default=1)
