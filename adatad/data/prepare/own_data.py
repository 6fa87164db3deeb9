"""Own data: labels of any form and a folder of videos into an annotation file, a class list and a first spec."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from adatad.data.annotation_file import AnnotationError, load_database, names_text
from adatad.data.annotations import annotations_of
from adatad.data.classes import read_class_file
from adatad.data.prepare.first_spec import Fit, SpecPlace, spec_text
from adatad.data.prepare.label_sources import SourceOptions, Sources, read_sources
from adatad.data.prepare.official import write
from adatad.data.prepare.placing import Placed, place_labels
from adatad.data.prepare.settings import Facts
from adatad.data.prepare.splits import TRAINING, VALIDATION, SplitRules, subsets_of
from adatad.data.prepare.video_files import Folder, VideoFile, names_in_annotations
from adatad.errors import UserError
from adatad.files import FileError, check_output_folder, files_to_write, listed, read_text, shown
from adatad.labels.json_values import as_list, as_object, as_text
from adatad.labels.text_table import TableError, counted
from adatad.labels.values import has_control_characters
from adatad.spec.data_sections import DataSpec
from adatad.spec.text import as_written

MAX_LISTED = 20
"""Problems that an error lists; the rest is counted."""
ANNOTATIONS, CLASSES, SPEC = FILES = ("annotations.json", "classes.txt", "spec.yaml")
MOST_GONE = 0.5
"""Share of an earlier import's videos that an update may take out: without more, the old labels were forgotten."""
NOT_IN_NAMES = re.compile(r"[^\w.+-]+")


class OwnDataError(UserError):
    """Labels or videos that make no data set; the message lists all that is wrong."""


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import, beside labels and videos.

    sources: how files of labels are read; rules: the split; classes: file of class names in the order that they get,
    whose labels alone are taken; unlabelled: whether videos without labels are kept; missing: whether labels of videos
    that aren't there are left out, else they are an error. existing: what happens to an earlier import in the same
    folder: refuse, update (splits and order of classes stay), refresh (all anew, but for the spec), replace (all anew).
    fit: see `first_spec.spec_text`.
    """

    sources: SourceOptions = field(default_factory=SourceOptions)
    rules: SplitRules = field(default_factory=SplitRules)
    classes: Path | None = None
    unlabelled: Literal["leave-out", "keep"] = "leave-out"
    missing: Literal["error", "leave-out"] = "error"
    existing: Literal["refuse", "update", "refresh", "replace"] = "refuse"
    fit: Fit | None = None


@dataclass
class DataSet:
    """An imported data set. names: of videos in annotations, by file; subsets: by file; classes: in order."""

    placed: Placed
    names: dict[VideoFile, str] = field(default_factory=dict)
    pattern: str = ""
    subsets: dict[VideoFile, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)

    @property
    def database(self) -> dict[str, dict[str, Any]]:
        """The content of the annotation file."""
        return {
            self.names[file]: {
                "subset": self.subsets[file], "duration": self.placed.info[file].seconds,
                "frame": self.placed.info[file].frames,
                "annotations": [{"segment": [row.start, row.end], "label": row.label} for row in rows],
            }
            for file, rows in sorted(self.placed.rows.items())
        }  # fmt: skip


def import_labels(
    paths: Sequence[Path],
    videos: Path,
    output: Path,
    options: ImportOptions = ImportOptions(),
    say: Callable[[str], None] = print,
) -> Path:
    """Write annotations.json, classes.txt and spec.yaml into `output`; return the spec's path.

    paths: files of labels of any form, and folders of them; videos: folder of the video files. say: called with what
    was guessed and what to look at. Raises OwnDataError with all that is wrong, FileError where the files can't be
    written; nothing is written then.
    """
    for path in (videos, output):
        if has_control_characters(str(path)):
            raise OwnDataError(
                f"{shown(path)}: has a line break or a control character, which no spec can name; rename it"
            )
    is_new = not output.exists()
    # Checked before the files in it, for a message about the folder itself.
    if not is_new:
        check_output_folder(output)
    earlier = _earlier(output, options.existing)
    inputs = [*paths, *([options.classes] if options.classes else [])]
    # An annotation file that is updated may be one of its own sources: it is read whole before it is written.
    outputs = [output / name for name in FILES if not (earlier and name == ANNOTATIONS)]
    with files_to_write(outputs, [path for path in inputs if path.is_file()]):
        sources, data = _gather(paths, videos, output, options, earlier)
        for note in sources.notes:
            say(note)
        _write(data, sources, output, videos, options, is_new, say)
    return output / SPEC


def _gather(
    paths: Sequence[Path], videos: Path, output: Path, options: ImportOptions, earlier: Earlier | None
) -> tuple[Sources, DataSet]:
    """Read labels and videos into a data set. Raises OwnDataError with everything that is wrong."""
    outputs = [output / name for name in FILES]
    try:
        folder = Folder(videos)
    except TableError as error:
        # The labels are read all the same: their problems are told with this one.
        sources = read_sources(paths, options.sources, lambda name: None, outputs)
        sources.wrong = [problem for problem in sources.wrong if "frame rate isn't known" not in problem]
        sources.wrong.append(str(error))
        _refuse(sources, paths)
    sources = read_sources(paths, options.sources, lambda name: _path(folder, name), outputs)
    data = DataSet(place_labels(sources, folder, options.missing == "leave-out", options.unlabelled == "keep"))
    if not sources.wrong and not any(data.placed.rows.values()):
        sources.wrong.append("no instance was found in the labels; expected some")
    data.classes = _classes(data.placed, options.classes, earlier, sources)
    data.names, data.pattern = _names(data.placed, earlier)
    _split(data, folder, options.rules, earlier, sources)
    # By the rules of training, so that no run refuses later what was written here.
    if not sources.wrong:
        sources.wrong += _as_read(data, sources.notes)
    _refuse(sources, paths)
    return sources, data


def _names(placed: Placed, earlier: Earlier | None) -> tuple[dict[VideoFile, str], str]:
    """Return the name of each video in annotations, and `data.pattern`; as in an earlier import, if possible."""
    paths = {file.relative for file in placed.rows}
    # Names with endings stay so, or the spec that is there would look for a.mp4.mp4.
    if not placed.rows or (earlier and not paths.isdisjoint(earlier.subsets)):
        return {file: file.relative for file in placed.rows}, "{name}"
    return names_in_annotations(placed.rows)


def _path(folder: Folder, name: str) -> Path | None:
    with suppress(TableError):
        return folder.find(name).path
    return None


def _refuse(sources: Sources, paths: Sequence[Path]) -> None:
    """Raise OwnDataError if anything is wrong."""
    if not sources.wrong:
        return
    wrong = sorted(dict.fromkeys(sources.wrong), key=sources.order_of)
    # A wrong guess of the columns may be why nothing fits; warnings are for a data set that is there.
    guessed = [note for note in sources.notes if not note.startswith("warning")]
    lines = "\n  ".join(["", listed(wrong, MAX_LISTED, "\n  "), *guessed])
    where = listed([str(path) for path in paths], 3)
    raise OwnDataError(f"{where}: {counted(len(wrong), 'problem')}; nothing was written:{lines}")


@dataclass(frozen=True)
class Earlier:
    """An earlier import: subsets by the names of its videos, and its classes in order."""

    subsets: dict[str, str]
    classes: list[str]


def _earlier(output: Path, existing: str) -> Earlier | None:
    """Return the earlier import that is to be updated. Raises OwnDataError if there is none, or one that mustn't be
    replaced."""
    path = output / ANNOTATIONS
    if existing == "refuse" and path.exists():
        raise OwnDataError(
            f"{output}: holds an earlier import; --update keeps its splits and the order of its classes, --force makes "
            "all anew"
        )
    if existing != "update":
        return None
    if not path.exists():
        raise OwnDataError(f"{output}: holds no {ANNOTATIONS} of an earlier import; leave --update out for a first one")
    try:
        database = load_database(str(path))
        subsets = {name: entry.get("subset") for name, entry in database.items()}
        items = [item for entry in database.values() for item in as_list(entry.get("annotations"))]
        labels = {as_text(as_object(item).get("label")) for item in items}
        classes = list(read_class_file(str(output / CLASSES), labels).names) if (output / CLASSES).exists() else []
    except AnnotationError as error:
        raise OwnDataError(f"{error}; repair it, or make all anew with --force") from error
    wrong = [name for name, subset in subsets.items() if not isinstance(subset, str)]
    if wrong:
        raise OwnDataError(f"{path}: {counted(len(wrong), 'video')} without a subset: {listed(wrong)}; add it")
    return Earlier(subsets, classes)


def _classes(placed: Placed, path: Path | None, earlier: Earlier | None, sources: Sources) -> list[str]:
    """Return the classes in order, and leave out labels that a given list doesn't have."""
    counts = Counter(row.label for rows in placed.rows.values() for row in rows)
    if path is None:
        known = earlier.classes if earlier else []
        new = sorted(label for label in counts if label not in known)
        gone = [label for label in known if label not in counts]
        if earlier and new:
            sources.notes.append(f"{counted(len(new), 'new class')}: {listed(new, 20)}")
        if gone:
            sources.notes.append(
                f"warning: no instance any more of {listed(gone, 20)}; kept in {CLASSES}, so that outputs stay in order"
            )
        return [*known, *new]
    try:
        classes = list(read_class_file(str(path), counts).names)
    except AnnotationError as error:
        sources.wrong.append(str(error))
        return []
    others = {label: count for label, count in counts.items() if label not in classes}
    if others:
        shares = [f"{label} ({count})" for label, count in sorted(others.items())]
        sources.notes.append(
            f"{counted(sum(others.values()), 'instance')} left out, of labels that {path} doesn't have: "
            f"{listed(shares, 20)}"
        )
        for file, rows in placed.rows.items():
            placed.rows[file] = [row for row in rows if row.label not in others]
    if not sources.wrong and not any(placed.rows.values()):
        sources.wrong.append(f"{path}: none of its classes is a label; they are {listed(sorted(counts), 20)}")
    return classes


def _split(data: DataSet, folder: Folder, rules: SplitRules, earlier: Earlier | None, sources: Sources) -> None:
    """Give each video a subset."""
    placed = data.placed
    paths = {file.relative: file for file in placed.rows}
    old: dict[str, str] = {}
    gone = []
    for name, subset in (earlier.subsets if earlier else {}).items():
        found = _file(folder, name)
        if found in placed.rows:
            old[found.relative] = subset
        else:
            gone.append(name)
    if earlier and len(gone) > MOST_GONE * len(earlier.subsets):
        sources.wrong.append(
            f"{len(gone)} of the {len(earlier.subsets)} videos of the earlier import would be taken out, as no label "
            f"is of them: {listed(gone)}; name the old labels too, such as the {ANNOTATIONS} there, or make all anew "
            "with --force"
        )
    elif gone:
        sources.notes.append(
            f"{counted(len(gone), 'video')} of the earlier import taken out, as no label is of them any more: "
            f"{listed(gone, 20)}"
        )
    # By the names in annotations, whose digests decide: these stay when the folder moves.
    names = data.names
    classes = {names[file]: frozenset(row.label for row in rows) for file, rows in placed.rows.items()}
    said = {names[file]: placed.subsets[file] for file in placed.rows}
    by_name = {names[paths[path]]: subset for path, subset in old.items()}
    relative = {names[file]: file.relative for file in placed.rows}
    chosen, wrong = subsets_of(classes, said, relative, rules, by_name, sources.notes)
    # What is wrong with a few videos would be told again for the split of those that are left.
    if not sources.wrong or any("expected one subset" in problem for problem in wrong):
        sources.wrong += wrong
    data.subsets = {file: chosen[names[file]] for file in placed.rows} if chosen else {}


def _file(folder: Folder, name: str) -> VideoFile | None:
    with suppress(TableError):
        return folder.find(name)
    return None


def _as_read(data: DataSet, notes: list[str]) -> list[str]:
    """Read annotations as training will: append what it leaves out to `notes`, and return why it would refuse them."""
    spec = DataSpec(annotations=ANNOTATIONS, classes=tuple(data.classes), videos="", pattern=data.pattern)
    try:
        found = annotations_of(data.database, spec)
    except AnnotationError as error:
        return [str(error)]
    for subset, videos, report in (
        (TRAINING, found.train, found.train_report),
        (VALIDATION, found.validation, found.validation_report),
    ):
        for reason, by_video in report.dropped.items():
            notes.append(f"{subset} will leave out {by_video.total()} instances, {reason}: {listed(list(by_video))}")
        if not videos:
            return [f"nothing is left for {subset}: {report.line().partition('; ')[2]}"]
    notes += [f"warning: {sentence}" for sentence in found.warnings]
    return []


def _write(
    data: DataSet,
    sources: Sources,
    output: Path,
    videos: Path,
    options: ImportOptions,
    is_new: bool,
    say: Callable[[str], None],
) -> None:
    """Write the files: a new folder appears whole. A spec that is there stays, unless all is to be made anew."""
    spec_path = output / SPEC
    files = {
        ANNOTATIONS: json.dumps({"database": data.database}, indent=1),
        CLASSES: names_text(data.classes),
    }
    # The user may have changed the spec since it was written.
    keeps_spec = spec_path.exists() and options.existing != "replace"
    if not keeps_spec:
        place = SpecPlace(
            # resolve(): the output may be given as ".".
            NOT_IN_NAMES.sub("_", output.resolve().name).strip("._") or "own-videos",
            as_written(f"{output}/{ANNOTATIONS}"), as_written(f"{output}/{CLASSES}"), as_written(str(videos)),
            data.pattern,
        )  # fmt: skip
        source = listed([str(path) for path in sources.paths], 3)
        files[SPEC] = spec_text(_facts(data), place, spec_path, source, options.fit)
    if is_new:
        _write_folder(output, files)
    else:
        write({output / name: text for name, text in files.items()})
    kept = ", spec.yaml left as it was" if keeps_spec else ""
    say(f"{output}: {len(files)} files written{kept}")
    for line in _stale(spec_path, data.pattern, videos) if keeps_spec else ():
        say(line)


def _write_folder(output: Path, files: Mapping[str, str]) -> None:
    """Write a folder that wasn't there: it appears when all files are in it. Raises FileError."""
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        write({part / name: text for name, text in files.items()})
        # The check of outputs has made the folder, which is empty as yet.
        os.replace(part, output)
    except OSError as error:
        raise FileError(f"{output}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _facts(data: DataSet) -> Facts:
    """Return the numbers that settings follow from."""
    rows, info = data.placed.rows, list(data.placed.info.values())
    training = [rows[file] for file, subset in data.subsets.items() if subset == TRAINING and rows[file]]
    return Facts(
        rates=np.array([one.fps or one.frames / one.seconds for one in info]),
        video_seconds=np.array([one.seconds for one in info]),
        short_side_pixels=min(one.short_side_pixels for one in info),
        instance_seconds=np.array([row.end - row.start for file in rows for row in rows[file]]),
        training_videos=len(training),
        training_instances=sum(map(len, training)),
        most_instances=max(map(len, rows.values())),
    )


def _stale(spec_path: Path, pattern: str, videos: Path) -> Iterator[str]:
    """Yield warnings on an older spec that contradicts these annotations."""
    try:
        content = yaml.safe_load(read_text(spec_path))
    # A spec that can't be read is the user's to repair; training will say what is wrong.
    except (UserError, yaml.YAMLError, ValueError, RecursionError):
        return
    # As plain YAML: the spec may be half edited, and its base files don't matter here.
    section = content.get("data") if isinstance(content, dict) else None
    for key, wanted in (("pattern", pattern), ("videos", as_written(str(videos)))) if isinstance(section, dict) else ():
        if key in section and section[key] != wanted:
            yield (
                f"warning: {spec_path} has data.{key} {section[key]!r}, these annotations want {wanted!r}: change it"
            )
