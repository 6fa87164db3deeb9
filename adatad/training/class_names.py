"""Outputs of trained weights matched by name with the classes of annotations, for tests and for going on with a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from adatad.data.annotation_file import AMBIGUOUS, load_database
from adatad.data.annotations import ground_truth, in_subset
from adatad.data.classes import read_classes
from adatad.errors import UserError
from adatad.spec import Spec
from adatad.spec.resolve import Quirks
from adatad.training.model_facts import AGNOSTIC_OUTPUTS, CheckpointError, ModelFacts, differences, facts_of, list_names


class ClassNamesError(UserError):
    """Classes of trained weights and of annotations that can't be matched; the message has both lists."""


def match_for_test(spec: Spec, facts: ModelFacts | None, path: Path) -> tuple[Spec, list[str]]:
    """The spec as the weights at `path` are tested by it, and lines on what isn't as it was in training.

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
    if labels is not None:
        _refuse_unknown(labels, labels, facts, spec, path)
    if labels is not None and labels <= {*facts.classes, AMBIGUOUS}:
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"classes": facts.classes})})
    listed = _listed_classes(spec)
    truth = ground_truth(spec.data, keep_ambiguous=Quirks.of(spec.compat).keep_ambiguous)
    annotated = {item["label"] for entry in truth["database"].values() for item in entry["annotations"]}
    _refuse_unknown(annotated, listed, facts, spec, path)
    lines = [f"{line}: detections may be wrong" for line in differences(facts, facts_of(spec, facts.classes))]
    return spec, [*_on_classes(annotated, listed, facts, spec, path), *(f"{path}: {line}" for line in lines)]


def check_agnostic(facts: ModelFacts | None, spec: Spec, path: Path) -> None:
    """Raises CheckpointError if the weights tell classes apart and the spec's model doesn't, or the other way round."""
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
    """Names of the data set's classes in the order that training goes on with, and lines on it.

    classes: in the spec's order. Raises ClassNamesError if they aren't those of the checkpoint.
    """
    if facts is None:
        return tuple(classes), [
            f"{path}: doesn't say which classes its outputs are (an older file): they are taken in the spec's order: "
            f"{list_names(classes)}"
        ]
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
    """Where the spec's class list is from."""
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
    """Labels of the evaluated videos where the spec leaves the class list to the annotation file, and labels there are
    names, or there are none; None where the list, or numbers, need another one to be read."""
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
