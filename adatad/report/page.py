"""Self-contained HTML pages: a run's report with the timelines beside it, and the check of a data set."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adatad.data.annotations import Annotations, read_annotations
from adatad.data.prepare.check import BLOCKING, CheckReport
from adatad.errors import UserError
from adatad.evaluation.score_files import read_detections
from adatad.files import check_output, check_output_folder, reason, shown, write_bytes, write_text
from adatad.progress_bar import progress
from adatad.report.run_files import MetricLines, by_step, is_there, read_metrics, read_result, read_words
from adatad.report.timelines import COLOURS, class_style, names_are_text, picture_text, to_png, validation_timelines
from adatad.spec import Spec, to_yaml
from adatad.spec.quirks import Quirks

MAX_TIMELINES = 60
"""Timelines on a page; a page of hundreds wouldn't open."""
MAX_NOTES = 20
"""Notes on a page about what couldn't be read or drawn."""
MAX_FILE_NAME_BYTES = 200
DATA_CHECK = Path(__file__).with_name("data_check.html")
TRAIN_KEYS, EVALUATION_KEYS = ("cls_loss", "reg_loss", "lr"), ("average_mAP", "mAP")

T = TypeVar("T")
Say = Callable[[str], None]


def try_write_report(run_directory: Path, spec: Spec) -> str | None:
    """Write a report after the work is done, when no error may cost the result.

    Returns a line that says what is missing and how to try again; None if nothing is.
    """
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
    """Draw timelines/<video>.png and report.html from what the run directory holds; return the page's path.

    Every file but the spec may be missing, unfinished or damaged: the page then says less, and what it lacks. say:
    called with each such line. Raises FileError if the page can't be written.
    """
    path = check_output(run_directory / "report.html")
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        if say:
            say(line)

    def read_steps() -> MetricLines:
        metrics = read_metrics(run_directory / "metrics.jsonl", TRAIN_KEYS, EVALUATION_KEYS)
        if line := metrics.note(run_directory / "metrics.jsonl"):
            note(line)
        return metrics

    # Every part on its own: a damaged file or a name that can't be drawn costs that part alone.
    metrics = _attempt(note, "metrics.jsonl", read_steps, MetricLines([], [], 0))
    result = _attempt(note, "result.json", lambda: _if_there(run_directory / "result.json", read_result), {})
    found = _attempt(note, "detections.json", lambda: _if_there(run_directory / "detections.json", read_detections), {})
    trained = _attempt(note, "trained.txt", lambda: read_words(run_directory / "trained.txt"), [])
    quirks = Quirks.of(spec.compat)
    annotations = _attempt(note, "annotations", lambda: read_annotations(spec.data, quirks), None)
    figures = _attempt(note, "curves", lambda: curves(by_step(metrics.train), by_step(metrics.evaluations)), [])
    embedded = [_attempt(note, "a curve", lambda figure=figure: _as_url(to_png(figure)), None) for figure in figures]
    timelines = _timelines(run_directory, spec, found, annotations, note) if found and annotations else []
    environment = Environment(
        loader=PackageLoader("adatad.report", "."),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    page = environment.get_template("page.html").render(
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
    """Return what the action returns; if it fails, note why and return `otherwise`."""
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


def _printable(value: Any) -> Any:
    """Return a text with control characters as escapes, but for line ends: a page may be printed on a terminal."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "\n".join(map(shown, value.split("\n")))


def class_rows(result: dict[str, Any], classes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of classes by average AP, best first, in the colours of the timelines; last those without
    instances in validation, whose average is None. classes: in the order of the class list."""
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
    # Classes without instances last: they have no average to sort by.
    return sorted(rows, key=lambda row: (row["average"] is None, -(row["average"] or 0.0))) if scored else []


def curves(steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> list[Figure]:
    """Draw losses, mAP and learning rates over the steps of training."""
    figures = []
    at = [line["step"] for line in steps]
    if steps:
        losses = {"classes": "cls_loss", "segments": "reg_loss"}
        series = {label: (at, [line[key] for line in steps]) for label, key in losses.items()}
        figures.append(curve("losses", series, smooth=True))
    if evaluations:
        # A tIoU may be missing from lines that an earlier version of the spec wrote.
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
    """Draw lines over optimizer steps, equal ones once. series: {label: (steps, values)}; smooth: draw a running mean
    over the values, which become faint."""
    figure = Figure(figsize=(5.2, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (label, (steps, values)) in enumerate(_merged(series).items()):
        colour = COLOURS[number % len(COLOURS)]
        if smooth:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = _running_mean(values)
        # matplotlib leaves labels that begin with an underscore out of legends: a zero-width space goes before it.
        label = "\u200b" * label.startswith("_") + picture_text(label)
        axes.plot(steps, values, color=colour, label=label, linewidth=1.6, marker=marker, markersize=4)
    axes.set_title(picture_text(title), fontsize=10, loc="left")
    axes.set_xlabel("optimizer steps", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)  # all of these are positive, and a cut axis exaggerates
    axes.legend(fontsize=7, frameon=False)
    return figure


def _merged(
    series: dict[str, tuple[Sequence[int], Sequence[float]]],
) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    """Merge equal curves under one label: the last one drawn would hide the others."""
    labels: dict[tuple, list[str]] = {}
    for label, (steps, values) in series.items():
        labels.setdefault((tuple(steps), tuple(values)), []).append(label)
    return {", ".join(names): curve for curve, names in labels.items()}


def _running_mean(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Return an exponential mean over about `share` of all values, unbiased at its start. NaN values are skipped."""
    keep = 1 - 1 / max(share * len(values), 1)
    # Divided by the sum of weights so far, as Adam corrects its moments.
    mean = weight = 0.0
    smooth = []
    for value in values:
        if value == value:  # not NaN
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight if weight else float("nan"))
    return smooth


def _as_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _timelines(
    run_directory: Path, spec: Spec, detections: dict[str, Any], annotations: Annotations, note: Say
) -> list[dict[str, str]]:
    """Write every validation video's timeline as a PNG; return the first ones for the page."""
    # Without a folder, the page still has the first timelines.
    folder = _attempt(note, "timelines", lambda: check_output_folder(run_directory / "timelines"), None)
    embedded: list[dict[str, str]] = []
    names: set[str] = set()

    def draw(name: str, figure: Figure) -> None:
        png = to_png(figure)
        # The page holds the first ones; all are written as files.
        if len(embedded) < MAX_TIMELINES:
            embedded.append({"name": name, "url": _as_url(png)})
        if folder is not None:
            write_bytes(folder / f"{_file_name(name, names)}.png", png)

    def draw_all() -> None:
        with progress("timelines drawn", len(annotations.validation)) as bar:
            for name, figure in validation_timelines(spec, detections, annotations=annotations):
                # Each on its own: a broken video costs its own timeline.
                _attempt(note, f"timeline of {name!r}", lambda name=name, figure=figure: draw(name, figure), None)
                bar.advance()

    _attempt(note, "timelines", draw_all, None)
    return embedded


def _file_name(video: str, taken: set[str]) -> str:
    """Return a unique file name for a video's picture: slashes, control characters and excess length are replaced."""
    name = shown(video).replace("/", "_")
    if name in taken or len(name.encode()) > MAX_FILE_NAME_BYTES:
        # By the full name: two long names may have one beginning.
        mark = hashlib.sha256(video.encode(errors="surrogatepass")).hexdigest()[:12]
        name = name.encode()[:MAX_FILE_NAME_BYTES].decode(errors="ignore") + f"-{mark}"
    taken.add(name)
    return name


def write_data_check(checked: list[CheckReport], name: str, path: Path) -> None:
    """Write the page of a data set's check."""
    kinds = Counter(kind for found in checked for kind, _ in found.problems).most_common()
    page = Environment(autoescape=True).from_string(DATA_CHECK.read_text(encoding="utf-8"))
    text = page.render(
        name=name, checked=checked, kinds=kinds, blocking=", ".join(BLOCKING),
        good=sum(not found.problems for found in checked), blocked=sum(found.is_blocked for found in checked),
        hours=f"{sum(found.seconds for found in checked) / 3600:.2f}",
        frames=f"{sum(found.frames for found in checked):,}",
    )  # fmt: skip
    write_text(path, text)
