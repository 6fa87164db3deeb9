"""report.html: one self-contained page of a run, and the timelines beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adatad.data.annotations import Annotations, read_annotations
from adatad.errors import UserError
from adatad.evaluation.score_files import read_detections
from adatad.files import check_output, check_output_folder, reason, shown, write_bytes, write_text
from adatad.progress_bar import progress
from adatad.report.run_files import Metrics, by_step, is_there, read_metrics, read_result, read_words
from adatad.report.timelines import COLOURS, class_style, names_are_text, picture_text, to_png, validation_timelines
from adatad.spec import Spec, to_yaml
from adatad.spec.quirks import Quirks

MAX_TIMELINES = 60
"""Timelines on a page; a page of hundreds wouldn't open."""
MAX_NOTES = 20
"""Lines of what couldn't be read or drawn on a page."""
MAX_FILE_NAME_BYTES = 200
TRAIN_KEYS, EVALUATION_KEYS = ("cls_loss", "reg_loss", "lr"), ("average_mAP", "mAP")

T = TypeVar("T")
Say = Callable[[str], None]


def try_write_report(run_directory: Path, spec: Spec) -> str | None:
    """Draw a report after the work is done: whatever goes wrong, the result stands. Returns a line that says what is
    missing and how to try again; None if nothing is."""
    missing: list[str] = []
    try:
        write_report(run_directory, spec, missing.append)
    except Exception as error:
        missing.append(f"report.html: {_why(error)}")
    if not missing:
        return None
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"not drawn: {missing[0]}{more}; the results stand; adatad report {run_directory} tries again"


def write_report(run_directory: Path, spec: Spec, say: Say | None = None) -> Path:
    """Draw timelines/<video>.png and report.html from what the run directory holds; returns the page.

    Every file but the spec may be missing, unfinished or damaged: the page then says less, and what it lacks. say:
    called with each such line. Raises FileError if the page can't be written.
    """
    path = check_output(run_directory / "report.html")
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        if say:
            say(line)

    metrics = _attempt(
        note, "metrics.jsonl", lambda: _metrics(run_directory / "metrics.jsonl", note), Metrics([], [], 0)
    )
    result = _attempt(note, "result.json", lambda: _if_there(run_directory / "result.json", read_result), {})
    found = _attempt(note, "detections.json", lambda: _if_there(run_directory / "detections.json", read_detections), {})
    trained = _attempt(note, "trained.txt", lambda: read_words(run_directory / "trained.txt"), [])
    quirks = Quirks.of(spec.compat)
    annotations = _attempt(note, "annotations", lambda: read_annotations(spec.data, quirks), None)
    figures = _attempt(note, "curves", lambda: curves(by_step(metrics.train), by_step(metrics.evaluations)), [])
    embedded = [_attempt(note, "a curve", lambda figure=figure: _embed(figure), None) for figure in figures]
    timelines = _timelines(run_directory, spec, found, annotations, note) if found and annotations else []
    page = _environment().get_template("page.html").render(
        name=spec.name,
        run=run_directory.name,
        notes=notes[:MAX_NOTES],
        more_notes=max(len(notes) - MAX_NOTES, 0),
        result=result,
        published=spec.published,
        classes=class_rows(result, annotations.classes if annotations else ()),
        tious=[f"{tiou:g}" for tiou in spec.evaluate.tious],
        curves=[url for url in embedded if url],
        timelines=timelines,
        videos=len(found),
        trained=trained,
        settings=to_yaml(spec),
    )  # fmt: skip
    write_text(path, page)
    return path


def _attempt(note: Say, what: str, action: Callable[[], T], otherwise: T) -> T:
    """What the action gives; if it fails, `otherwise`, and a note why."""
    try:
        return action()
    except UserError as error:
        note(f"{error}; left out")
    except Exception as error:
        note(f"{what}: left out: {_why(error)}")
    return otherwise


def _why(error: Exception) -> str:
    return reason(error) if isinstance(error, (OSError, UserError)) else f"{type(error).__name__}: {reason(error)}"


def _if_there(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    return read(path) if is_there(path) else {}


def _metrics(path: Path, note: Say) -> Metrics:
    metrics = read_metrics(path, TRAIN_KEYS, EVALUATION_KEYS)
    if line := metrics.note(path):
        note(line)
    return metrics


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("adatad.report", "."),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def _printable(value: Any) -> Any:
    """A text with control characters as escapes, lines apart: whoever prints the page is not steered by a name."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "\n".join(map(shown, value.split("\n")))


def class_rows(result: dict[str, Any], classes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Classes by average AP, best first, in the colours that they have in the timelines; then those that validation has
    no instance of, whose average is None. classes: in the order of the class list."""
    scored = {label: values for label, values in result.get("ap_per_class", {}).items() if values}
    names = list(dict.fromkeys([*classes, *sorted(scored)]))
    rows = [
        {
            "label": label,
            "average": sum(scored[label]) / len(scored[label]) if label in scored else None,
            "values": scored.get(label, []),
            "colour": class_style(names, label)[0],
        }
        for label in names
    ]
    return sorted(rows, key=lambda row: (row["average"] is None, -(row["average"] or 0.0))) if scored else []


def curves(steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> list[Figure]:
    """Losses, mAP and learning rates over the steps of training."""
    figures = []
    at = [line["step"] for line in steps]
    if steps:
        losses = {"classes": "cls_loss", "segments": "reg_loss"}
        series = {label: (at, [line[key] for line in steps]) for label, key in losses.items()}
        figures.append(curve("losses", series, smooth=True))
    if evaluations:
        evaluated = [line["step"] for line in evaluations]
        series = {"average": (evaluated, [100 * line["average_mAP"] for line in evaluations])}
        for tiou in evaluations[-1]["mAP"]:
            series[f"tIoU {tiou}"] = (evaluated, [100 * line["mAP"].get(tiou, float("nan")) for line in evaluations])
        figures.append(curve("mAP on validation, %", series, marker="o"))
    if steps:
        groups = steps[-1]["lr"]
        series = {group: (at, [line["lr"].get(group, float("nan")) for line in steps]) for group in groups}
        figures.append(curve("learning rates", series))
    return figures


@names_are_text
def curve(
    title: str, series: dict[str, tuple[Sequence[int], Sequence[float]]], smooth: bool = False, marker: str = ""
) -> Figure:
    """Lines over optimizer steps, equal ones as one. series: {label: (steps, values)}; smooth: a running mean over the
    faint values."""
    figure = Figure(figsize=(5.2, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (label, (steps, values)) in enumerate(_merged(series).items()):
        colour = COLOURS[number % len(COLOURS)]
        if smooth:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = _running_mean(values)
        # Matplotlib leaves labels out that begin with an underscore.
        label = "\u200b" * label.startswith("_") + picture_text(label)
        axes.plot(steps, values, color=colour, label=label, linewidth=1.6, marker=marker, markersize=4)
    axes.set_title(picture_text(title), fontsize=10, loc="left")
    axes.set_xlabel("optimizer steps", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
    return figure


def _merged(
    series: dict[str, tuple[Sequence[int], Sequence[float]]],
) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    """Curves that coincide under one label: the last one drawn would hide the others."""
    labels: dict[tuple, list[str]] = {}
    for label, (steps, values) in series.items():
        labels.setdefault((tuple(steps), tuple(values)), []).append(label)
    return {", ".join(names): curve for curve, names in labels.items()}


def _running_mean(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Exponential mean over about `share` of all values, without the pull of its start."""
    keep = 1 - 1 / max(share * len(values), 1)
    mean = weight = 0.0
    smooth = []
    for value in values:
        if value == value:
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight if weight else float("nan"))
    return smooth


def _embed(figure: Figure) -> str:
    return _as_url(to_png(figure))


def _as_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _timelines(
    run_directory: Path, spec: Spec, detections: dict[str, Any], annotations: Annotations, note: Say
) -> list[dict[str, str]]:
    """Write every validation video's timeline as a picture; the first ones are for the page."""
    folder = _attempt(note, "timelines", lambda: check_output_folder(run_directory / "timelines"), None)
    embedded: list[dict[str, str]] = []
    names: set[str] = set()

    def draw(name: str, figure: Figure) -> None:
        png = to_png(figure)
        if len(embedded) < MAX_TIMELINES:
            embedded.append({"name": name, "url": _as_url(png)})
        if folder is not None:
            write_bytes(folder / f"{_file_name(name, names)}.png", png)

    def draw_all() -> None:
        with progress("timelines drawn", len(annotations.validation)) as bar:
            for name, figure in validation_timelines(spec, detections, annotations=annotations):
                _attempt(note, f"timeline of {name!r}", lambda name=name, figure=figure: draw(name, figure), None)
                bar.advance()

    _attempt(note, "timelines", draw_all, None)
    return embedded


def _file_name(video: str, taken: set[str]) -> str:
    """A file's name for a video's picture that no other has: a folder in it, a control character or a length that no
    disk takes makes it another one than the video's."""
    name = shown(video).replace("/", "_")
    if name in taken or len(name.encode()) > MAX_FILE_NAME_BYTES:
        mark = hashlib.sha256(video.encode(errors="surrogatepass")).hexdigest()[:12]
        name = name.encode()[:MAX_FILE_NAME_BYTES].decode(errors="ignore") + f"-{mark}"
    taken.add(name)
    return name
