"""report.html: one self-contained page of a run, and the timelines beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adatad.report.timelines import COLOURS, to_png, validation_timelines
from adatad.spec import Spec, to_yaml

MAX_TIMELINES = 60
"""Timelines on a page; a page of hundreds wouldn't open."""


def write_report(run_directory: Path, spec: Spec) -> Path:
    """Draw timelines/<video>.png and report.html from what the run directory holds; returns the page.

    Every file but the spec may be missing or unfinished: the page then says less.
    """
    lines = read_lines(run_directory / "metrics.jsonl")
    steps, evaluations = by_step(lines, "train"), by_step(lines, "evaluation")
    result = _read_json(run_directory / "result.json")
    detections = _read_json(run_directory / "detections.json").get("results", {})
    trained = run_directory / "trained.txt"
    page = _environment().get_template("page.html").render(
        name=spec.name,
        run=run_directory.name,
        result=result,
        published=spec.published,
        classes=class_rows(result, spec.evaluate.tious),
        tious=[f"{tiou:g}" for tiou in spec.evaluate.tious],
        curves=[_embed(figure) for figure in curves(steps, evaluations)],
        timelines=_timelines(run_directory, spec, detections) if detections else [],
        videos=len(detections),
        trained=trained.read_text().split() if trained.is_file() else [],
        settings=to_yaml(spec),
    )  # fmt: skip
    path = run_directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("adatad.report", "."), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line cut short by a killed run is left out."""
    if not path.is_file():
        return []
    objects = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            objects.append(json.loads(line))
        except ValueError:
            continue
    return objects


def by_step(lines: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Lines of one kind in the order of steps; of a step that a resumed run repeated, the last."""
    latest = {line["step"]: line for line in lines if line.get("kind") == kind}
    return [latest[step] for step in sorted(latest)]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def class_rows(result: dict[str, Any], tious: Sequence[float]) -> list[dict[str, Any]]:
    """Classes by average AP, best first."""
    rows = [
        {"label": label, "average": sum(values) / len(values), "values": values, "colour": COLOURS[i % len(COLOURS)]}
        for i, (label, values) in enumerate(sorted(result.get("ap_per_class", {}).items()))
        if values
    ]
    return sorted(rows, key=lambda row: -row["average"])


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
        axes.plot(steps, values, color=colour, label=label, linewidth=1.6, marker=marker, markersize=4)
    axes.set_title(title, fontsize=10, loc="left")
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


def _timelines(run_directory: Path, spec: Spec, detections: dict[str, Any]) -> list[dict[str, str]]:
    """Write every validation video's timeline as a picture; the first ones are for the page."""
    folder = run_directory / "timelines"
    folder.mkdir(exist_ok=True)
    embedded = []
    for name, figure in validation_timelines(spec, detections):
        png = to_png(figure)
        (folder / f"{name.replace('/', '_')}.png").write_bytes(png)
        if len(embedded) < MAX_TIMELINES:
            embedded.append({"name": name, "url": _as_url(png)})
    return embedded
