"""What the page of a run is drawn from: one object, ready for JSON, made of the files that the run directory holds.

Every file but the spec may be missing, unfinished or damaged: its part is then empty, and a note says why. Parts that
cost time are computed anew only when their files have changed, so that a page can follow a run.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from adatad.data.annotations import Annotations, Video, read_annotations
from adatad.data.balance import windows_of_epoch
from adatad.data.dataset import video_path
from adatad.errors import UserError
from adatad.evaluation.explain_files import explain_broken, explain_run
from adatad.evaluation.score_files import read_detections
from adatad.files import reason, shown
from adatad.report.charts import charts
from adatad.report.html_file import picture_url
from adatad.report.page_pictures import as_jpeg, strip
from adatad.report.run_files import MetricLines, MetricsReader, by_step, is_number, is_there, read_result, read_words
from adatad.report.run_parts import class_names, class_rows, profile_rows, rank_errors, result_row, timeline
from adatad.report.timelines import read_thumbnails
from adatad.spec import Spec, to_yaml
from adatad.spec.quirks import Quirks
from adatad.spec.sizes import end_epoch, steps_per_epoch

TRAIN_KEYS, EVALUATION_KEYS = ("class_loss", "segment_loss", "lr"), ("average_mAP", "mAP")
MAX_TIMELINES = 60
"""Timelines on a page; a page of hundreds wouldn't open."""
MAX_NOTES = 20
"""Notes on a page about what couldn't be read or drawn."""
LATEST_STEPS = 100
UNLIMITED_BYTES = 2.0**45
"""Memory of a GPU that every plan fits."""
LATER = ""
"""Address of a picture that isn't made yet."""
LINKS = ("log.txt", "detections.json", "timelines", "trained.txt", "spec.yaml", "first_batch.png")
"""Files beside the page that it links to, where they are there."""

T = TypeVar("T")
Say = Callable[[str], None]
Picture = Callable[[bytes], str]
"""Function that keeps a JPEG file's content, and returns the address by which the page shows it."""


class RunReader:
    """Reader of one run's directory: `read` returns the page's data, and each time reads only what has changed.

    keep: see `Picture`; by default pictures lie in the data. patience_seconds: time for reading frames of videos, after
    which the rest is left to the next `read`. strips: addresses of the pictures of videos' frames, where they are made
    already.
    """

    def __init__(
        self,
        run: Path,
        spec: Spec,
        keep: Picture | None = None,
        patience_seconds: float = math.inf,
        strips: dict[str, str] | None = None,
    ) -> None:
        self.run, self.spec = run, spec
        self._keep = keep or (lambda content: picture_url(content, "jpeg"))
        self._patience_seconds, self._strips = patience_seconds, strips
        self._metrics = MetricsReader(run / "metrics.jsonl", TRAIN_KEYS, EVALUATION_KEYS)
        self._known: dict[str, tuple[Any, Any, list[str]]] = {}
        self._notes: list[str] = []

    def read(self, say: Say | None = None, notes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the data; see `run_data`. notes: what the page lacks for other reasons."""
        self._notes = list(notes)
        run, spec = self.run, self.spec
        # Before the file is read: what comes meanwhile is seen the next time.
        written = _state(run / "metrics.jsonl")
        # Every part on its own: a damaged file or a name that can't be drawn costs that part alone.
        metrics = self._attempt("metrics.jsonl", self._read_metrics, MetricLines([], [], 0))
        train, evaluations = by_step(metrics.train), by_step(metrics.evaluations)
        result = self._part(
            "result.json", [run / "result.json"], lambda: _if_there(run / "result.json", read_result), {}
        )
        annotations, found = self.annotations(), self.detections()
        files = [run / "detections.json", run / "best_detections.json", Path(spec.data.annotations)]
        # Signs of training are looked for again after an evaluation; before the first one, after every step.
        steps, explain = (None, explain_run) if found and annotations else (written, explain_broken)
        explained = self._part("what to do first", files, lambda: explain(run, spec), None, steps)
        timelines: list[dict[str, Any]] = []
        classes = class_names(annotations, result, found)
        if found and annotations:
            timelines = self._part(
                "timelines", files, lambda: self._timelines(annotations, found, classes), [], classes
            )
            if any(row["strip"] == LATER for row in timelines):
                del self._known["timelines"]
        predicted = None
        # Of a run on a CPU the memory is the process's, which the planner says nothing of. Where ranks have files for
        # stacks there are several, and nothing tells how many.
        if any("reserved_bytes" in line for line in train[:1]) and not is_there(run / "stacks"):
            predicted = self._part("memory", [], lambda: self._predicted(len(classes)), None)
        first_batch, profile = run / "first_batch.png", run / "profile.json"
        data = {
            "name": spec.name,
            "run": run.name,
            "classes": classes,
            "progress": self._progress(train, annotations),
            "result": result_row(result),
            "published": spec.published,
            "explained": explained,
            "tious": [f"{tiou:g}" for tiou in spec.evaluate.tious],
            "class_rows": class_rows(result, classes, annotations),
            "charts": self._part("curves", [], lambda: charts(train, evaluations, predicted), [], written),
            "timelines": timelines,
            "videos": len(annotations.validation) if annotations else len(found),
            "profile": self._part("profile.json", [profile], lambda: profile_rows(profile), []),
            "first_batch": self._part("first_batch.png", [first_batch], lambda: self._picture(first_batch), None),
            "rank_errors": self._attempt("logs of ranks", lambda: rank_errors(run), []),
            "trained": self._part("trained.txt", [run / "trained.txt"], lambda: read_words(run / "trained.txt"), []),
            "settings": self._attempt("settings", lambda: to_yaml(spec), ""),
            "links": [{"name": name, "href": quote(name)} for name in LINKS if is_there(run / name)],
        }
        if say:
            for line in self._notes:
                say(line)
        data["notes"] = self._notes[:MAX_NOTES]
        data["more_notes"] = max(len(self._notes) - MAX_NOTES, 0)
        return clean(data)

    def annotations(self) -> Annotations | None:
        """Return the spec's annotations; None, with a note, if they can't be read."""
        data, quirks = self.spec.data, Quirks.of(self.spec.compat)
        return self._part("annotations", [Path(data.annotations)], lambda: read_annotations(data, quirks), None)

    def detections(self) -> dict[str, Any]:
        """Return the detections of the last evaluation by video; none, with a note, if they can't be read."""
        file = self.run / "detections.json"
        return self._part("detections.json", [file], lambda: _if_there(file, read_detections), {})

    def note(self, line: str) -> None:
        """Say on the page what it lacks."""
        self._notes.append(line)

    def _attempt(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        """Return what the action returns; if it fails, note why and return `otherwise`."""
        try:
            return action()
        except UserError as error:
            self.note(f"{error}; left out")
        except Exception as error:
            # Any: a defect of drawing must not turn hours of training into a failed job.
            self.note(f"{what}: left out: {why(error)}")
        return otherwise

    def _part(
        self, what: str, files: Sequence[Path], action: Callable[[], T], otherwise: T, other_state: Any = None
    ) -> T:
        """Do the same, and do it again only after one of the files, or something else, has changed."""
        state = [*map(_state, files), other_state]
        if what not in self._known or self._known[what][0] != state:
            before = len(self._notes)
            value = self._attempt(what, action, otherwise)
            self._known[what] = state, value, self._notes[before:]
        else:
            self._notes += self._known[what][2]
        return self._known[what][1]

    def _read_metrics(self) -> MetricLines:
        """Read the metrics, and note which lines can't be used."""
        metrics = self._metrics.read()
        if line := metrics.note(self.run / "metrics.jsonl"):
            self.note(line)
        return metrics

    def _picture(self, path: Path) -> str | None:
        return self._keep(as_jpeg(path)) if is_there(path) else None

    def _timelines(
        self, annotations: Annotations, found: dict[str, Any], classes: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return the timelines of the first validation videos."""
        number = {label: place for place, label in enumerate(classes)}
        rows, end = [], time.monotonic() + self._patience_seconds
        for video in annotations.validation[:MAX_TIMELINES]:
            # Each on its own: a broken video costs its own timeline.
            row = self._attempt(
                f"timeline of {video.name!r}",
                lambda video=video: timeline(video, found.get(video.name, []), number),
                None,
            )
            if row is not None:
                what = f"frames of {video.name!r}"
                rows.append({**row, "strip": self._attempt(what, lambda video=video: self._strip(video, end), None)})
        return rows

    def _strip(self, video: Video, end: float) -> str | None:
        """Return the address of a video's strip of frames; None if it can't be read, `LATER` if it isn't by now."""
        if self._strips is not None:
            return self._strips.get(video.name)
        path, what = video_path(self.spec.data, video.name), f"frames of {video.name!r}"
        if what not in self._known and time.monotonic() > end:
            return LATER
        # Once for each file, not after every evaluation.
        return self._part(what, [path], lambda: self._new_strip(video, path), None)

    def _new_strip(self, video: Video, path: Path) -> str | None:
        picture = strip(read_thumbnails(path, video.duration_seconds, video.frames))
        return None if picture is None else self._keep(picture)

    def _predicted(self, num_classes: int) -> float | None:
        """Return a step's peak bytes by the planner, on one GPU; None where the spec leaves the plan to it."""
        # Imported here: the planner takes a second, which a page of a run on a CPU needn't wait for.
        from adatad.memory.arithmetic import autocast_dtype
        from adatad.memory.planner import Machine, Planner
        from adatad.report.plans import META

        dtype = autocast_dtype(self.spec.train.precision, META)
        own = Planner(self.spec, Machine(UNLIMITED_BYTES), dtype, max(num_classes, 1)).own()
        return None if own is None else float(own.bytes)

    def _progress(self, train: Sequence[dict[str, Any]], annotations: Annotations | None) -> dict[str, Any]:
        """Return how far the run has come, and when it last wrote something."""
        spec, total = self.spec, None
        if annotations:
            windows = windows_of_epoch(spec.train.class_balance, annotations.train)
            total = self._attempt("number of steps", lambda: end_epoch(spec) * steps_per_epoch(spec, windows), None)
        times = [line["step_seconds"] for line in train[-LATEST_STEPS:] if is_number(line.get("step_seconds"))]
        written = [_seconds(self.run / name) for name in ("metrics.jsonl", "result.json", "log.txt")]
        return {
            "step": train[-1]["step"] if train else None,
            "steps": total,
            # The median: steps beside a checkpoint or an evaluation take longer.
            "step_seconds": statistics.median(times) if times else None,
            "written": max(filter(None, written), default=None),
            "read": time.time(),
        }


def run_data(run: Path, spec: Spec, say: Say | None = None) -> dict[str, Any]:
    """Return the data of a run's page, ready for JSON; what it lacks stands in its "notes". say: called with each."""
    return RunReader(run, spec).read(say)


def _if_there(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    return read(path) if is_there(path) else {}


def why(error: Exception) -> str:
    """Return an error in one line, with its kind where a user wouldn't be told by the text alone."""
    return reason(error) if isinstance(error, (OSError, UserError)) else f"{type(error).__name__}: {reason(error)}"


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file does; None if it can't be asked."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _seconds(path: Path) -> float | None:
    """Return when a file was written, in seconds since 1970; None if it isn't there."""
    state = _state(path)
    return None if state is None else state[2] / 1e9


def clean(value: Any) -> Any:
    """Return data that can be written as JSON and shown anywhere: None for numbers that JSON doesn't have, escapes for
    control characters but line ends."""
    if isinstance(value, str):
        return value if value.isprintable() else "\n".join(map(shown, value.split("\n")))
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
