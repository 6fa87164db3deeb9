"""Own data: a table of instances (CSV) into an annotation file, a class list and a spec to begin with."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from adatad.data.annotation_file import AnnotationError, names_text
from adatad.data.annotations import annotations_of
from adatad.data.prepare.check import MAX_LATE_SECONDS
from adatad.data.prepare.instance_table import Instance, line_of, read_instances
from adatad.data.prepare.official import write
from adatad.data.prepare.table import TableError, counted
from adatad.data.prepare.video_files import Folder, VideoFile, names_in_annotations, unfit
from adatad.data.video_index import Heartbeat, VideoError, VideoIndex, read_index
from adatad.errors import UserError
from adatad.files import check_output_folder, files_to_write, listed, read_text, shown
from adatad.spec.schema import DataSpec
from adatad.spec.text import as_written

TRAINING, VALIDATION = "training", "validation"
WINDOWS_GRID = (96, 192, 384, 768)
"""Window sizes, all divisible into whole clips and the detector's six levels."""
POSITIONS_OF_SHORT = 4
"""Positions that the shortest twentieth of instances should at least have."""
RATE_TOLERANCE = 0.01
"""Share of a file's frame rate by which the rate in a table may differ and be the same."""
MAX_LISTED = 20
"""Problems that an error lists; the rest is counted."""
FILES = ("annotations.json", "classes.txt", "spec.yaml")
NOT_IN_NAMES = re.compile(r"[^\w.+-]+")


class VideoInfo(NamedTuple):
    """Length and size of a video file."""

    frames: int
    seconds: float
    short_side_pixels: int


class DataSet(NamedTuple):
    """Content of a table and a folder. names: of videos in annotations, by file; subsets: by file."""

    instances: dict[VideoFile, list[Instance]]
    facts: dict[VideoFile, VideoInfo]
    names: dict[VideoFile, str]
    subsets: dict[VideoFile, str]
    pattern: str


def make_annotations(
    table: Path,
    videos: Path,
    output: Path,
    validation_share: float = 0.2,
    columns: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write annotations.json, classes.txt and spec.yaml into `output`, but keep an existing spec; return the spec's
    path.

    table: a text table whose header names video, start, end and label (see `instance_table`), and maybe the subset;
    columns: other column names by role. Without subsets, a share of the videos, always the same ones, is for
    validation. say: called with what was guessed and what to look at. Raises TableError with all problems, before
    anything is written.
    """
    # Checked before the files in it, for a message about the folder itself.
    if output.exists():
        check_output_folder(output)
    with files_to_write([output / name for name in FILES], [table]):
        instances, notes, wrong = read_instances(table, columns or {})
        guessed = [*notes]
        data = _data_set(instances, videos, validation_share, notes, wrong)
        database = {data.names[file]: _entry(data, file) for file in sorted(data.instances)}
        classes = sorted({row.label for rows in data.instances.values() for row in rows})
        # By the rules of training, so that no run refuses later what was written here.
        if not wrong:
            wrong += _as_read(database, classes, data.pattern, notes)
        if wrong:
            wrong.sort(key=line_of)
            # A wrong guess of the columns may be why nothing fits.
            lines = "\n  ".join(["", listed(wrong, MAX_LISTED, "\n  "), *guessed])
            raise TableError(f"{table}: {counted(len(wrong), 'problem')}; nothing was written:{lines}")
        for note in notes:
            say(note)
        files = {
            output / "annotations.json": json.dumps({"database": database}, indent=1),
            output / "classes.txt": names_text(classes),
        }
        _write(files, data, output, videos, say)
    return output / "spec.yaml"


def _data_set(
    instances: list[Instance], videos: Path, validation_share: float, notes: list[str], wrong: list[str]
) -> DataSet:
    """Return instances by the files that they mean. Appends remarks to `notes` and problems to `wrong`."""
    nothing = DataSet({}, {}, {}, {}, "")
    try:
        folder = Folder(videos)
    except TableError as error:
        wrong.append(str(error))
        return nothing
    files, problems = _files_meant(instances, folder)
    wrong += problems
    by_file: dict[VideoFile, list[Instance]] = {}
    facts: dict[VideoFile, VideoInfo] = {}
    rows_of: dict[VideoFile, list[Instance]] = {file: [] for file in sorted(set(files.values()))}
    # Names without a file are among the problems already.
    for instance in instances:
        if instance.video in files:
            rows_of[files[instance.video]].append(instance)
    other_rate: list[str] = []
    for file, rows in rows_of.items():
        try:
            index = read_index(file.path, Heartbeat())
            facts[file] = _video_info(index)
        except UserError as error:
            wrong.append(str(error))
            continue
        other_rate += [file.relative] if any(_counts_otherwise(row, index) for row in rows) else []
        by_file[file], problems = _placed(rows, index, facts[file].seconds)
        wrong += problems
    if other_rate:
        notes.append(
            f"frames are counted at another rate than the file's in {counted(len(other_rate), 'video')}, where frame k "
            f"is at k / fps seconds: {listed(other_rate)}"
        )
    repeated = [line for file in by_file for line in _take_out_copies(by_file, file)]
    if repeated:
        notes.append(f"{counted(len(repeated), 'row')} left out that stood there before: line {listed(repeated)}")
    unused = [file.relative for file in folder.videos if file not in by_file]
    if unused and not wrong:
        notes.append(f"{counted(len(unused), 'video')} of {videos} not in the table: {listed(unused)}")
    if wrong:
        # Subsets are looked at all the same: their problems are told with the others.
        said: dict[str, set[str]] = defaultdict(set)
        for instance in instances:
            said[shown(instance.video)].add(instance.subset)
        wrong += _disputed(said)
        return nothing
    subsets, problems = _subsets(by_file, validation_share, notes)
    if problems:
        wrong += problems
        return nothing
    names, pattern = names_in_annotations(by_file)
    return DataSet(by_file, facts, names, subsets, pattern)


def _files_meant(instances: list[Instance], folder: Folder) -> tuple[dict[str, VideoFile], list[str]]:
    """Return the file of each name in the table, and what is wrong with names."""
    files: dict[str, VideoFile] = {}
    wrong = []
    for name in dict.fromkeys(instance.video for instance in instances):
        try:
            file = folder.find(name)
        except TableError as error:
            line = next(instance.line for instance in instances if instance.video == name)
            wrong.append(f"line {line}: {error}")
            continue
        problem = unfit(file)
        wrong += [problem] if problem else []
        files[name] = file
    by_file: dict[VideoFile, list[str]] = defaultdict(list)
    for name, file in files.items():
        by_file[file].append(name)
    for file, names in by_file.items():
        folders = {name.replace("\\", "/").rpartition("/")[0].strip("./") for name in names} - {""}
        # "a/k0.mp4" and "b/k0.mp4" are two videos, of which only one is here.
        longest = max(folders, key=len, default="")
        if not all(f"/{longest}".endswith(f"/{other}") for other in folders):
            wrong.append(
                f"{listed([repr(n) for n in names])} would all be the file {file.relative}; which of them is it?"
            )
    return files, wrong


def _video_info(index: VideoIndex) -> VideoInfo:
    """Return length and size of a video. Raises VideoError for a file that doesn't give its length."""
    seconds = index.timeline.duration_seconds
    if not seconds:
        why = index.unreliable_because or "it has one frame"
        raise VideoError(f"{index.path}: doesn't tell how long it lasts ({why}); transcode it to H.264 in MP4")
    timeline = index.timeline
    return VideoInfo(timeline.count_at(timeline.usual_fps), seconds, min(index.width, index.height))


def _placed(rows: list[Instance], index: VideoIndex, seconds: float) -> tuple[list[Instance], list[str]]:
    """Return a video's rows with times in its seconds, and what is wrong with the others."""
    name = shown(index.path.name)
    # One more than frames: an instance may end where the video does.
    times = [*index.timeline.seconds, seconds] if any(row.unit == "frames" for row in rows) else []
    placed, wrong = [], []
    for row in rows:
        start, end = row.start, row.end
        # A rate of the table's own: frame k is at k / fps, whatever the file's frames are.
        if _counts_otherwise(row, index):
            start, end = start / row.fps, end / row.fps
        elif row.unit == "frames":
            if end > index.frame_count:
                wrong.append(f"line {row.line}: ends at frame {end:g}, {name} has {index.frame_count} frames")
                continue
            start, end = float(times[int(start)]), float(times[int(end)])
        if start >= seconds:
            wrong.append(f"line {row.line}: begins at {start:g} s, after {name} has ended at {seconds:.2f} s")
        elif end > seconds + MAX_LATE_SECONDS:
            wrong.append(f"line {row.line}: ends at {end:g} s, {name} at {seconds:.2f} s")
        else:
            placed.append(row._replace(start=start, end=min(end, seconds), unit="seconds"))
    return placed, wrong


def _counts_otherwise(row: Instance, index: VideoIndex) -> bool:
    """Return whether a row counts frames at another rate than its file's: the labels were made on another copy."""
    own = index.timeline.usual_fps
    return row.unit == "frames" and row.fps > 0 and not abs(row.fps - own) <= RATE_TOLERANCE * own


def _take_out_copies(by_file: dict[VideoFile, list[Instance]], file: VideoFile) -> list[str]:
    """Keep one of equal instances of a video; return the lines of the others."""
    # Backwards, so that of equal rows the first one's line is what stays.
    first = {(row.start, row.end, row.label): row.line for row in reversed(by_file[file])}
    lines = [str(row.line) for row in by_file[file] if row.line not in first.values()]
    kept = frozenset(first.values())
    by_file[file] = [row for row in by_file[file] if row.line in kept]
    return lines


def _disputed(said: dict[str, set[str]]) -> list[str]:
    """Return what is wrong with videos that have several subsets, or none where others have one."""
    if not any(subset for named in said.values() for subset in named):
        return []
    wrong = [
        f"video {video!r}: expected one subset on all its lines, got {' and '.join(sorted(s or 'none' for s in named))}"
        for video, named in said.items()
        if len(named) > 1
    ]
    without = [video for video, named in said.items() if named == {""}]
    if without:
        wrong.append(f"{counted(len(without), 'video')} without a subset, which others have: {listed(without)}")
    return wrong


def _subsets(
    by_file: dict[VideoFile, list[Instance]], validation_share: float, notes: list[str]
) -> tuple[dict[VideoFile, str], list[str]]:
    """Return the subset of each video, and what is wrong with the table's subsets."""
    said = {file: {row.subset for row in rows} for file, rows in by_file.items()}
    if not any(subset for named in said.values() for subset in named):
        if len(said) < 2:
            return {}, ["one video is too few: some train, others validate; add videos, or a column subset"]
        names, _ = names_in_annotations(by_file)
        chosen = split(
            {names[file]: frozenset(r.label for r in rows) for file, rows in by_file.items()}, validation_share
        )
        return {file: chosen[names[file]] for file in by_file}, []
    wrong = _disputed({shown(file.relative): named for file, named in said.items()})
    if wrong:
        return {}, wrong
    subsets = {file: min(named) for file, named in said.items()}
    there = set(subsets.values())
    if "test" in there and VALIDATION not in there:
        notes.append("no row is for validation, but some for test: these are validated on")
        subsets = {file: VALIDATION if subset == "test" else subset for file, subset in subsets.items()}
    elif "test" in there:
        count = sum(subset == "test" for subset in subsets.values())
        notes.append(
            f"{counted(count, 'video')} for test: in the annotation file, but neither trained nor validated on"
        )
    wrong = [
        f"no row is for {subset}: the table's subsets are {listed(sorted(there))}; write {subset} in some videos' "
        "rows, or leave the column out"
        for subset in (TRAINING, VALIDATION)
        if subset not in subsets.values()
    ]
    return subsets, wrong


def _as_read(database: dict[str, dict], classes: list[str], pattern: str, notes: list[str]) -> list[str]:
    """Read annotations as training will: append what it leaves out to `notes`, and return why it would refuse them."""
    spec = DataSpec(annotations=FILES[0], classes=tuple(classes), videos="", pattern=pattern)
    try:
        found = annotations_of(database, spec)
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


def _write(files: dict[Path, str], data: DataSet, output: Path, videos: Path, say: Callable[[str], None]) -> None:
    """Write the files, and a spec unless there is one."""
    spec_path = output / FILES[2]
    # The user may have changed the spec since it was written.
    if spec_path.exists():
        write(files)
        say(f"{output}: 2 files written, spec.yaml left as it was")
        for line in _stale(spec_path, data.pattern, videos):
            say(line)
    else:
        write({**files, spec_path: _spec(output, videos, data)})
        say(f"{output}: 3 files written")


def _entry(data: DataSet, file: VideoFile) -> dict:
    """Return a video's entry in the annotation file."""
    annotations = [{"segment": [row.start, row.end], "label": row.label} for row in data.instances[file]]
    facts = data.facts[file]
    return {
        "subset": data.subsets[file], "duration": facts.seconds, "frame": facts.frames, "annotations": annotations,
    }  # fmt: skip


def _stale(spec_path: Path, pattern: str, videos: Path) -> Iterator[str]:
    """Yield warnings on an older spec that contradicts these annotations."""
    try:
        content = yaml.safe_load(read_text(spec_path))
    # A spec that can't be read is the user's to repair; training will say what is wrong.
    except (UserError, yaml.YAMLError, ValueError, RecursionError):
        return
    section = content.get("data") if isinstance(content, dict) else None
    for key, wanted in (("pattern", pattern), ("videos", as_written(str(videos)))) if isinstance(section, dict) else ():
        if key in section and section[key] != wanted:
            yield (
                f"warning: {spec_path} has data.{key} {section[key]!r}, these annotations want {wanted!r}: change it"
            )


def _spec(output: Path, videos: Path, data: DataSet) -> str:
    """Return a spec to begin with: VideoMAE-S with adapters, and windows that suit the videos and their instances."""
    facts = list(data.facts.values())
    instances = [row for rows in data.instances.values() for row in rows]
    # Choices for a first run, each from the data: stride so that short instances get a few positions, the window so
    # that the longest video fits if it can.
    rate = float(np.median([known.frames / known.seconds for known in facts]))
    short = float(np.quantile([row.end - row.start for row in instances], 0.05))
    stride = int(np.clip(short * rate / POSITIONS_OF_SHORT, 1, 4))
    longest = max(known.frames for known in facts) / stride
    size = next((size for size in WINDOWS_GRID if size >= longest), WINDOWS_GRID[-1])
    window = {"size_grid": size, "frames_per_position": 1, "stride_frames": stride, "overlap": 0.5}
    # A multiple of the model's patch, and no video is enlarged.
    pixels = min(160, *(known.short_side_pixels // 16 * 16 for known in facts))
    content = {
        # resolve(): the output may be given as ".".
        "name": NOT_IN_NAMES.sub("_", output.resolve().name).strip("._") or "own-videos",
        "data": {
            "annotations": as_written(f"{output}/annotations.json"), "classes": as_written(f"{output}/classes.txt"),
            "videos": as_written(str(videos)),
            "pattern": data.pattern, "window": window, "size_pixels": max(pixels, 32), "augment": {"flip": 0.5},
        },
        "model": {
            "backbone": {
                "preset": "small",
                "weights": "pretrained/vit-small-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth",
            },
            "detector": {"max_length": size},
        },
        "optimizer": {"lr": 1e-4, "backbone": {"custom": [{"name": "adapter", "lr": 2e-4}]}},
        "schedule": {"warmup_epochs": 5, "epochs": 60},
    }  # fmt: skip
    head = (
        f"# Written by adatad data from-csv out of {len(facts)} videos and {len(instances)} instances.\n"
        f"# Videos of about {rate:.2f} frames a second; one in twenty instances is shorter than {short:.2f} s.\n"
        "# augment.flip: 0 if left and right mirrored would be another action.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def split(classes: Mapping[str, frozenset[str]], validation_share: float) -> dict[str, str]:
    """Return the subset of each video. classes: of each of two or more videos.

    Each class of at least two videos gets into validation, the rarest first, but never by taking its last video from
    training; then validation is filled up to its share in the same way. Videos are tried in the order of their names'
    digests: the choice is always the same, and mostly stays when videos are added.
    """
    # A digest's order is random but the same on every machine, and a new video doesn't move the others.
    order = sorted(classes, key=lambda video: hashlib.sha256(video.encode()).digest())
    left = Counter(label for labels in classes.values() for label in labels)
    validation: set[str] = set()

    def can_go(video: str) -> bool:
        """Return whether training keeps each of the video's classes without it."""
        return video not in validation and all(left[label] > 1 for label in classes[video])

    def take(video: str) -> None:
        """Move a video to validation."""
        validation.add(video)
        left.subtract(classes[video])

    # The rarest class first: it has the least choice of videos.
    for label, count in sorted(left.items(), key=lambda item: (item[1], item[0])):
        if count > 1 and not any(label in classes[video] for video in validation):
            video = next((video for video in order if label in classes[video] and can_go(video)), None)
            if video is not None:
                take(video)
    wanted = min(max(1, round(validation_share * len(order))), len(order) - 1)
    for video in order:
        if len(validation) < wanted and can_go(video):
            take(video)
    if not validation:
        # Every video is the only one of some class: take the one with the fewest such classes from training.
        take(min(order, key=lambda video: sum(left[label] == 1 for label in classes[video])))
    return {video: VALIDATION if video in validation else TRAINING for video in classes}
