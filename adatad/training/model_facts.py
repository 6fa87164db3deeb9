"""What a file of trained weights is: the names of its outputs, how frames became windows, and the spec it comes from.

The record travels with every checkpoint (in state.json), with every export and averaged file (as text in the header of
safetensors), and with what is exported in OpenTAD's form. Whoever uses the weights matches outputs by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adatad.errors import UserError
from adatad.files import FileError, parse_json, shown
from adatad.spec import Spec
from adatad.spec.document import rename_old

FORMAT_VERSION = 1
"""Of checkpoints and of this record. Files of before, which have no version, are read as well."""
AGNOSTIC_OUTPUTS = ("action",)
"""The one output of a detector that doesn't tell classes apart."""
TRAINED, MERGED = "trained", "merged"
"""`content` of a file of weights: the trained tensors alone, or all of the model's."""
HEADER_FIELDS = ("content", "weights", "step", "frozen_fingerprint", "spec")
"""What stands in a file's header beside the record."""
HEAD_BIAS = "detector.head.cls_head.bias"
"""The parameter with a number for each output."""
NAMES_SHOWN = 30
"""Class names that a message lists of each side."""
VALUE_LETTERS = 80
"""Of a value in a message."""

Name = Annotated[str, Field(min_length=1, max_length=10_000)]


class CheckpointError(UserError):
    """A checkpoint that can't be used; the message names it and says why."""


class NewerVersionError(CheckpointError):
    """A file that a newer version of the program wrote."""


class FrameRate(BaseModel):
    """How seconds became frames. fps: `data.fps`, or null where the rate is the annotation file's; time: `data.time`,
    or null in files of before there was such a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    fps: Annotated[float, Field(gt=0)] | None = None
    time: str | None = None


class ModelFacts(BaseModel):
    """The record, without the spec, which stands beside it.

    outputs: names in the order of the model's outputs; classes: those of the data set, the same unless the detector is
    class_agnostic. window: `data.window`; preprocessing: what else fixes the pixels of a window.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    outputs: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    classes: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    class_agnostic: bool
    frame_rate: FrameRate
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
        if self.outputs != (AGNOSTIC_OUTPUTS if self.class_agnostic else self.classes):
            raise ValueError("outputs: aren't those of classes and class_agnostic")
        return self

    def header(self, spec_yaml: str) -> dict[str, str]:
        """The record as text by name, with the spec, for a file that holds nothing else but tensors."""
        fields = {name: json.dumps(value, ensure_ascii=False) for name, value in self.model_dump(mode="json").items()}
        return {**fields, "spec": spec_yaml}


def facts_of(spec: Spec, classes: Sequence[str]) -> ModelFacts:
    """The record of a model that is trained by `spec` on these classes, in the order of its outputs."""
    agnostic = spec.model.detector.class_agnostic
    time = getattr(spec.data, "time", None)
    return ModelFacts(
        outputs=AGNOSTIC_OUTPUTS if agnostic else tuple(classes),
        classes=tuple(classes),
        class_agnostic=agnostic,
        frame_rate=FrameRate(fps=spec.data.fps, time=time),
        window=spec.data.window.model_dump(mode="json"),
        preprocessing={
            "size_pixels": spec.data.size_pixels,
            "clip_frames": spec.model.backbone.clip_frames,
            "compat": spec.compat,
        },
    )


def facts_in_header(header: dict[str, str], where: object) -> ModelFacts | None:
    """The record in a file's header, None if it has none (an older file, or another project's). Raises
    CheckpointError."""
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
    """The record, checked. Raises CheckpointError, NewerVersionError if a newer version wrote it."""
    if isinstance(content, dict):
        check_version(content, ModelFacts.model_fields, where)
    try:
        return ModelFacts.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{where}: {first_problem(error)}") from error


def number_of_outputs(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """By the shapes of a model's tensors; None for one without a head."""
    shape = shapes.get(HEAD_BIAS, ())
    return shape[0] if len(shape) == 1 else None


def check_outputs(facts: ModelFacts | None, shapes: Mapping[str, Sequence[int]], where: object) -> None:
    """Raises CheckpointError unless there are as many names as outputs. shapes: of the tensors in the file."""
    count = number_of_outputs(shapes)
    if facts is not None and count is not None and count != len(facts.outputs):
        raise CheckpointError(f"{where}: outputs: {len(facts.outputs)} names for {count} outputs ({HEAD_BIAS})")


def check_version(content: dict[str, Any], known: Any, where: object) -> None:
    """Raises NewerVersionError, with version and fields, for what a newer version of the program wrote."""
    version = content.get("format_version", 0)
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
        unknown = sorted(name for name in content if name not in known)
        fields = f", which has {list_names(unknown)}" if unknown else ""
        raise NewerVersionError(
            f"{where}: is of format version {cut(version)}{fields}; this program knows versions up to "
            f"{FORMAT_VERSION}: use the one that wrote it, or a newer one"
        )


def first_problem(error: ValidationError) -> str:
    """Of pydantic's errors the first one in words, and how many more there are."""
    first, *rest = error.errors(include_url=False)
    place = shown(".".join(str(part)[:VALUE_LETTERS] for part in first["loc"]))
    match first["type"]:
        case "missing":
            text = f"{place}: is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            text = f"{place}: is no field of format version {FORMAT_VERSION}"
        case "dict_type" | "model_type" | "dataclass_type":
            text = f"{place or 'it'}: should be an object with fields, got {cut(first['input'])}"
        case _:
            message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
            got = "" if first["type"] == "value_error" else f", got {cut(first['input'])}"
            text = f"{place}: {message}{got}" if place else f"{message}{got}"
    return text + (f" (and {len(rest)} more)" if rest else "")


def cut(value: object) -> str:
    """A value in a message. Numbers without end aren't written out."""
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of many digits"
    text = shown(repr(value)) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= VALUE_LETTERS else f"{text[:VALUE_LETTERS]}..."


def list_names(names: Sequence[str]) -> str:
    """Names with commas between them; of many the first, and how many more."""
    listed = ", ".join(shown(name[:VALUE_LETTERS]) for name in names[:NAMES_SHOWN])
    return listed + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")


def differences(saved: ModelFacts, here: ModelFacts) -> Iterator[str]:
    """Lines on window, preprocessing and frame-rate rule that aren't those of the training, with both values."""
    sections = (
        ("data.window.", saved.window, here.window),
        ("", saved.preprocessing, here.preprocessing),
        ("data.", saved.frame_rate.model_dump(), here.frame_rate.model_dump()),
    )
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
