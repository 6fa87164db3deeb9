"""Record in files of trained weights: names of the outputs, how frames became windows, and the spec; and its match with
the spec that the weights are used by.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adatad.data.annotation_file import AMBIGUOUS, load_database
from adatad.data.annotations import ground_truth, in_subset
from adatad.data.classes import read_classes
from adatad.errors import UserError
from adatad.files import FileError, parse_json, shown
from adatad.spec import Spec
from adatad.spec.document import rename_old
from adatad.spec.quirks import Quirks

FORMAT_VERSION = 1
"""Version of checkpoints and of this record. Older files, which have none, are read as well."""
AGNOSTIC_OUTPUTS = ("action",)
"""The one output of a detector that doesn't tell classes apart."""
TRAINED, MERGED = "trained", "merged"
"""`content` of a file of weights: the trained tensors alone, or all of the model's."""
# What `adatad export` adds; anything else in a header is of another program.
HEADER_FIELDS = ("content", "weights", "step", "frozen_fingerprint", "spec", "model")
"""Entries of a file's header beside the record."""
HEAD_BIAS = "detector.head.cls_head.bias"
"""The parameter with a number for each output."""
MAX_LISTED_NAMES = 30
"""Class names that a message lists of each side; the rest is counted."""
MAX_VALUE_CHARACTERS = 80
"""Longest value in a message."""

Name = Annotated[str, Field(min_length=1, max_length=10_000)]


class CheckpointError(UserError):
    """A checkpoint that can't be used; the message names it and says why."""


class NewerVersionError(CheckpointError):
    """A file that a newer version of the program wrote."""


class FrameRate(BaseModel):
    """Rule by which seconds became frames. fps: `data.fps`, or null where the rate is the annotation file's; time:
    `data.time`, or null in files of before there was such a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    fps: Annotated[float, Field(gt=0)] | None = None
    time: str | None = None


class ModelFacts(BaseModel):
    """Record of trained weights, without the spec, which stands beside it.

    outputs: names in the order of the model's outputs; classes: those of the data set, the same unless the detector is
    class_agnostic. window: `data.window`; preprocessing: what else fixes the pixels of a window.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    outputs: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    classes: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    class_agnostic: bool
    frame_rate: FrameRate
    # Plain values, not WindowSpec: a newer spec's keys and bounds must not refuse an older record.
    window: dict[str, Any]
    preprocessing: dict[str, Any]

    @field_validator("preprocessing")
    @classmethod
    def _with_names_of_today(cls, values: dict[str, Any]) -> dict[str, Any]:
        rename_old(values)
        return values

    @model_validator(mode="after")
    def _outputs_are_classes(self) -> ModelFacts:
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"classes: {twice!r} stands twice")
        # One follows from the other: a file that was edited in one place alone is refused.
        if self.outputs != (AGNOSTIC_OUTPUTS if self.class_agnostic else self.classes):
            raise ValueError("outputs: aren't those of classes and class_agnostic")
        return self

    def header(self, spec_yaml: str) -> dict[str, str]:
        """Return the record as text by name, with the spec, for a file that holds nothing else but tensors."""
        fields = {name: json.dumps(value, ensure_ascii=False) for name, value in self.model_dump(mode="json").items()}
        return {**fields, "spec": spec_yaml}


def facts_of(spec: Spec, classes: Sequence[str]) -> ModelFacts:
    """Return the record of a model that is trained by `spec` on these classes, in the order of its outputs."""
    # Classes are kept also then: a classifier's scores are matched to them by name.
    agnostic = spec.model.detector.class_agnostic
    return ModelFacts(
        outputs=AGNOSTIC_OUTPUTS if agnostic else tuple(classes),
        classes=tuple(classes),
        class_agnostic=agnostic,
        frame_rate=FrameRate(fps=spec.data.fps, time=spec.data.time),
        window=spec.data.window.model_dump(mode="json"),
        preprocessing={
            "size_pixels": spec.data.size_pixels,
            "clip_frames": spec.model.backbone.clip_frames,
            "compat": spec.compat,
        },
    )


def facts_in_header(header: dict[str, str], where: object) -> ModelFacts | None:
    """Return the record in a file's header, None if it has none (an older file, or another project's). Raises
    CheckpointError."""
    # Without a version it isn't ours, or is older than the record: its entries mean nothing here.
    if "format_version" not in header:
        return None
    fields = set(ModelFacts.model_fields)
    try:
        content = {name: parse_json(text, f"{where}: {name}") for name, text in header.items() if name in fields}
    except FileError as error:
        raise CheckpointError(str(error)) from error
    # Other projects' entries are none of ours, but of a newer version all are named.
    others = {name: None for name in header if name not in fields}
    check_version({**others, **content}, {*fields, *HEADER_FIELDS}, where)
    return read_facts(content, where)


def read_facts(content: Any, where: object) -> ModelFacts:
    """Return the record, checked. Raises CheckpointError, NewerVersionError if a newer version wrote it."""
    if isinstance(content, dict):
        check_version(content, ModelFacts.model_fields, where)
    try:
        return ModelFacts.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{where}: {first_problem(error)}") from error


def number_of_outputs(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the number of outputs by the shapes of a model's tensors; None for one without a head."""
    shape = shapes.get(HEAD_BIAS, ())
    return shape[0] if len(shape) == 1 else None


def check_outputs(facts: ModelFacts | None, shapes: Mapping[str, Sequence[int]], where: object) -> None:
    """Raise CheckpointError unless there are as many names as outputs. shapes: of the tensors in the file."""
    count = number_of_outputs(shapes)
    if facts is not None and count is not None and count != len(facts.outputs):
        raise CheckpointError(f"{where}: outputs: {len(facts.outputs)} names for {count} outputs ({HEAD_BIAS})")


def check_version(content: dict[str, Any], known: Any, where: object) -> None:
    """Raise NewerVersionError, with version and fields, for what a newer version of the program wrote."""
    version = content.get("format_version", 0)
    # True is a number to Python; such a version is refused later, with its field's name.
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
        unknown = sorted(name for name in content if name not in known)
        fields = f", which has {list_names(unknown)}" if unknown else ""
        raise NewerVersionError(
            f"{where}: is of format version {cut(version)}{fields}; this program knows versions up to "
            f"{FORMAT_VERSION}: use the one that wrote it, or a newer one"
        )


def first_problem(error: ValidationError) -> str:
    """Return the first of pydantic's errors in words, and how many more there are."""
    first, *rest = error.errors(include_url=False)
    place = shown(".".join(str(part)[:MAX_VALUE_CHARACTERS] for part in first["loc"]))
    match first["type"]:
        case "missing":
            text = f"{place}: is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            text = f"{place}: is no field of format version {FORMAT_VERSION}"
        case "dict_type" | "model_type" | "dataclass_type":
            text = f"{place or 'it'}: should be an object with fields, got {cut(first['input'])}"
        case _:
            # pydantic's words for validators of ours, and its own, made into one kind of sentence.
            message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
            got = "" if first["type"] == "value_error" else f", got {cut(first['input'])}"
            text = f"{place}: {message}{got}" if place else f"{message}{got}"
    return text + (f" (and {len(rest)} more)" if rest else "")


def cut(value: object) -> str:
    """Return a value as a message shows it."""
    # Python refuses to write out numbers of thousands of digits.
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of many digits"
    text = shown(repr(value)) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}..."


def list_names(names: Sequence[str]) -> str:
    """Return the names with commas between them; of many the first, and how many more."""
    listed = ", ".join(shown(name[:MAX_VALUE_CHARACTERS]) for name in names[:MAX_LISTED_NAMES])
    return listed + (f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else "")


def differences(saved: ModelFacts, here: ModelFacts) -> Iterator[str]:
    """Yield lines on window, preprocessing and frame-rate rule that aren't those of the training, with both values."""
    sections = (
        ("data.window.", saved.window, here.window),
        ("", saved.preprocessing, here.preprocessing),
        ("data.", saved.frame_rate.model_dump(), here.frame_rate.model_dump()),
    )
    # Saved entries first, then those that only this spec has: in the order in which files have them.
    for prefix, there, now in sections:
        for name in [*there, *(name for name in now if name not in there)]:
            # Files of before there was a key don't say what it was.
            unsaid = name == "time" and None in (there.get(name), now.get(name))
            if unsaid or name in TRAINING_ONLY:
                continue
            if there.get(name) != now.get(name):
                yield (
                    f"{KEYS.get(name, prefix + name)}: {_shown_value(name, there.get(name))} at training, "
                    f"{_shown_value(name, now.get(name))} here"
                )


TRAINING_ONLY = ("min_visible", "crop_ratio")
"""Keys of `data.window` that choose training windows, and change nothing elsewhere."""
KEYS = {"size_pixels": "data.size_pixels", "clip_frames": "model.backbone.clip_frames"}


def _shown_value(name: str, value: object) -> str:
    return "the annotation file's" if name == "fps" and value is None else cut(value)


class ClassNamesError(UserError):
    """Classes of trained weights and of annotations that can't be matched; the message has both lists."""


def match_for_test(spec: Spec, facts: ModelFacts | None, path: Path) -> tuple[Spec, list[str]]:
    """Return the spec as the weights at `path` are tested by it, and lines on what isn't as it was in training.

    Where the spec gives no classes, those of the weights are taken. Raises ClassNamesError for annotated classes that
    the weights don't know.
    """
    if facts is None:
        classes = _listed_classes(spec)
        names = AGNOSTIC_OUTPUTS if spec.model.detector.class_agnostic else classes
        return spec, [
            f"{path}: doesn't say which classes its outputs are (an older file, or OpenTAD's): they are taken in the "
            f"order of {_source(spec)}: {list_names(names)}"
        ]
    check_agnostic(facts, spec, path)
    labels = _plain_labels(spec)
    # Before the classes are taken from the weights: after that, unknown labels would be an error of the annotations.
    if labels is not None:
        _refuse_unknown(labels, labels, facts, spec, path)
    if labels is not None and labels <= {*facts.classes, AMBIGUOUS}:
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"classes": facts.classes})})
    listed = _listed_classes(spec)
    # All labels of the evaluated videos, with numbers turned into names by the spec's list.
    truth = ground_truth(spec.data, keep_ambiguous=Quirks.of(spec.compat).keep_ambiguous)
    annotated = {item["label"] for entry in truth["database"].values() for item in entry["annotations"]}
    _refuse_unknown(annotated, listed, facts, spec, path)
    lines = [f"{line}: detections may be wrong" for line in differences(facts, facts_of(spec, facts.classes))]
    return spec, [*_on_classes(annotated, listed, facts, spec, path), *(f"{path}: {line}" for line in lines)]


def check_agnostic(facts: ModelFacts | None, spec: Spec, path: Path) -> None:
    """Raise CheckpointError if the weights tell classes apart and the spec's model doesn't, or the other way round."""
    # The same weights with another meaning of their outputs: no error would show it.
    if facts is not None and facts.class_agnostic != spec.model.detector.class_agnostic:
        there, here = (str(value).lower() for value in (facts.class_agnostic, spec.model.detector.class_agnostic))
        raise CheckpointError(
            f"{path}: was trained with model.detector.class_agnostic: {there}, and the spec says {here}; take that of "
            "the training"
        )


def _on_classes(
    annotated: Collection[str], listed: Sequence[str], facts: ModelFacts, spec: Spec, path: Path
) -> list[str]:
    lines = []
    unknown = sorted(set(listed) - set(facts.classes) - {AMBIGUOUS})
    if facts.class_agnostic:
        # Its one output is no class: what it finds is named by a classifier, in whatever order classes are listed.
        return _on_missing(annotated, facts)
    if unknown:
        lines.append(
            f"{path}: doesn't know {list_names(unknown)} of {_source(spec)}, so that nothing will be found of them; it "
            f"knows {list_names(facts.classes)}; {_source(spec)} has {list_names(listed)}"
        )
    elif len(listed) == len(facts.classes) and tuple(listed) != facts.classes:
        lines.append(
            f"{path}: its outputs are named by its own classes ({list_names(facts.classes)}), whose order isn't that "
            f"of {_source(spec)} ({list_names(listed)})"
        )
    return [*lines, *_on_missing(annotated, facts)]


def _on_missing(annotated: Collection[str], facts: ModelFacts) -> list[str]:
    # Said, as an average over fewer classes isn't comparable with published ones.
    without = [name for name in facts.classes if name not in annotated]
    if not annotated or not without:
        return []
    return [
        f"{len(without)} of {len(facts.classes)} classes have no instance in the evaluated videos, and don't count in "
        f"mAP: {list_names(without)}"
    ]


def _refuse_unknown(
    annotated: Collection[str], listed: Collection[str], facts: ModelFacts, spec: Spec, path: Path
) -> None:
    unknown = sorted(set(annotated) - set(facts.classes) - {AMBIGUOUS})
    # Without classes of its own, a detector takes whatever labels a classifier gives.
    if unknown and not facts.class_agnostic:
        raise ClassNamesError(
            f"{path}: doesn't know {list_names(unknown)}, which {spec.data.annotations} has in the evaluated videos. "
            f"It knows {list_names(facts.classes)}; the annotations have {list_names(sorted(listed))}. Test with "
            "annotations that have the classes of the training, under the same names"
        )


def match_for_resume(facts: ModelFacts | None, classes: Sequence[str], path: Path) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the data set's classes in the order that training goes on with, and lines on it.

    classes: in the spec's order. Raises ClassNamesError if they aren't those of the checkpoint.
    """
    if facts is None:
        return tuple(classes), [
            f"{path}: doesn't say which classes its outputs are (an older file): they are taken in the spec's order: "
            f"{list_names(classes)}"
        ]
    # Another order is no harm: training goes on in the checkpoint's.
    if set(facts.classes) != set(classes):
        lost, new = sorted(set(facts.classes) - set(classes)), sorted(set(classes) - set(facts.classes))
        only = [f"only the checkpoint has {list_names(lost)}"] if lost else []
        only += [f"only the annotations have {list_names(new)}"] if new else []
        raise ClassNamesError(
            f"{path}: was trained on other classes: {'; '.join(only)}. Its classes are {list_names(facts.classes)}; "
            f"here they are {list_names(classes)}. Give it the classes of before, or start another run"
        )
    if facts.classes == tuple(classes):
        return facts.classes, []
    return facts.classes, [
        f"classes are numbered as in {path} ({list_names(facts.classes)}), not in the spec's order "
        f"({list_names(classes)})"
    ]


def _source(spec: Spec) -> str:
    """Return where the spec's class list is from."""
    match spec.data.classes:
        case str(file):
            return file
        case None:
            return spec.data.annotations
        case _:
            return "data.classes"


def _listed_classes(spec: Spec) -> tuple[str, ...]:
    return read_classes(spec.data, load_database(spec.data.annotations), Quirks.of(spec.compat).keep_ambiguous).names


def _plain_labels(spec: Spec) -> set[str] | None:
    """Return the labels of the evaluated videos, read from the annotation file alone; None if that can't be: where the
    spec gives a class list, or where labels are numbers, which mean nothing without one."""
    if spec.data.classes is not None:
        return None
    match_parts, key = Quirks.of(spec.compat).match_subset_parts, spec.data.label_key
    labels: set[str] = set()
    for entry in load_database(spec.data.annotations).values():
        items = entry.get("annotations")
        if not in_subset(entry, spec.data.validation_subset, match_parts) or not isinstance(items, list):
            continue
        own = [item[key] for item in items if isinstance(item, dict) and key in item]
        if not all(isinstance(label, str) for label in own):
            return None
        labels.update(label.strip() for label in own)
    return labels
