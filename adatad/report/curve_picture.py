"""A picture of curves over the steps of training."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adatad.report.charts import running_mean
from adatad.report.timelines import COLOURS, names_are_text, picture_text


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
            values = running_mean(values)
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
