"""Charts of a run over its optimizer steps, as plain data: losses, mAP, rates, memory, times, and whatever else its
metrics hold. Long runs are thinned, so that a page stays small.

A chart is {"title", "unit", "note", "curves"}; a curve {"name", "steps", "values"}, with None where there is no number,
and "faint" for values behind their running mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adatad.report.run_files import Record, is_number

Chart = dict[str, Any]
Curve = dict[str, Any]

BUCKETS = 240
"""Parts of a long run; of each, the least and the greatest value are drawn."""
DIGITS = 5
GIB = 2**30
MAX_OTHER_CHARTS = 12
"""Charts of quantities that this version doesn't know."""
SMOOTHED_SHARE = 0.02
"""Part of a run over which a running mean goes, whatever the run's length: curves of short and long runs look alike."""
LOSSES = {"loss": "loss", "class_loss": "class loss", "segment_loss": "segment loss"}
TIMES = {"step_seconds": "whole step", "data_wait_seconds": "of it waiting for data"}
MEMORY = {"memory_bytes": "tensors, peak", "reserved_bytes": "held by the allocator, peak"}
KNOWN = {*LOSSES, *TIMES, *MEMORY, "gradient_norm", "lr", "step", "epoch", "kind", "applied"}


def charts(train: Sequence[Record], evaluations: Sequence[Record], predicted_bytes: float | None = None) -> list[Chart]:
    """Return the charts of lines of metrics, which are by step.

    predicted_bytes: a step's peak by the planner's estimate, drawn beside the measured one.
    """
    thinned = _thinning(len(train))
    skipped = sum(line.get("applied") is False for line in train)
    note = (
        f"{skipped:,} step{'s' * (skipped != 1)} skipped, with a loss or gradient that is no number" if skipped else ""
    )
    found = [
        _chart("loss", "", _smoothed(train, LOSSES), thinned),
        _map_chart(evaluations),
        _group_chart(evaluations),
        _chart("learning rate", "", _merged(_nested(train, "lr")), thinned),
        _chart("gradient norm", "", _smoothed(train, {"gradient_norm": "gradient norm"}), note),
        _memory_chart(train, predicted_bytes),
        _chart("time of a step", "seconds", _smoothed(train, TIMES), thinned),
        *_other_charts(train),
    ]
    return [chart for chart in found if chart["curves"]]


def _thinning(count: int) -> str:
    """Return a note on values that aren't drawn; empty if all are."""
    size = math.ceil(count / BUCKETS)
    return f"of every {size:,} steps the least and the greatest value" if count > 2 * BUCKETS else ""


def _chart(title: str, unit: str, curves: Sequence[Curve], note: str = "") -> Chart:
    return {"title": title, "unit": unit, "note": note, "curves": list(curves)}


def _map_chart(evaluations: Sequence[Record]) -> Chart:
    """Return average mAP and that of each tIoU, in percent."""
    steps = [line["step"] for line in evaluations]
    curves = [_curve("average", steps, [100 * line["average_mAP"] for line in evaluations])] if steps else []
    # A tIoU may be missing from lines that an earlier version of the spec wrote.
    for tiou in evaluations[-1]["mAP"] if evaluations else ():
        values = [100 * line["mAP"].get(tiou, math.nan) for line in evaluations]
        curves.append(_curve(f"tIoU {tiou}", steps, values))
    return _chart("mAP on validation", "%", curves)


def _group_chart(evaluations: Sequence[Record]) -> Chart:
    """Return the average mAP of groups of instances, where the spec has some."""
    values: dict[str, list[tuple[int, float]]] = {}
    for line in evaluations:
        groups = line.get("groups")
        for name, group in groups.items() if isinstance(groups, dict) else ():
            if isinstance(group, dict) and is_number(score := group.get("average_mAP")):
                values.setdefault(name, []).append((line["step"], 100 * score))
    return _chart(
        "average mAP of groups", "%", [_curve(name, *zip(*pairs, strict=True)) for name, pairs in values.items()]
    )


def _memory_chart(train: Sequence[Record], predicted_bytes: float | None) -> Chart:
    """Return peaks in GiB: on a GPU those of its memory, and the planner's estimate."""
    curves = []
    for key, name in MEMORY.items():
        steps, values = _column(train, key)
        curves += [_curve(name, steps, [value / GIB for value in values])] if steps else []
    if curves and predicted_bytes is not None:
        ends = [train[0]["step"], train[-1]["step"]]
        curves.append(_curve("predicted", ends, [predicted_bytes / GIB] * 2))
    on_gpu = any("reserved_bytes" in line for line in train)
    note = "of the GPU of the first rank" if on_gpu else "of the first rank's process: it trains on a CPU"
    return _chart("memory", "GiB", curves, note)


def _other_charts(train: Sequence[Record]) -> Iterator[Chart]:
    """Yield a chart for each number that lines have besides the known ones."""
    names = dict.fromkeys(key for line in train for key, value in line.items() if is_number(value))
    for key in [key for key in names if key not in KNOWN][:MAX_OTHER_CHARTS]:
        steps, values = _column(train, key)
        # Such as a count of mishaps that never happened.
        if not any(values):
            continue
        in_bytes = key.endswith("_bytes")
        if in_bytes:
            values = [value / GIB for value in values]
        title = key.removesuffix("_bytes").replace("_", " ")
        yield _chart(title, "GiB" if in_bytes else "", _with_mean(title, steps, values))


def _column(lines: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of the lines that have a number under a key."""
    pairs = [(line["step"], line[key]) for line in lines if is_number(line.get(key))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _nested(lines: Sequence[Record], key: str) -> Iterator[Curve]:
    """Yield a curve for each name under a key that holds numbers by name."""
    for name in dict.fromkeys(name for line in lines for name in line[key]):
        pairs = [(line["step"], line[key][name]) for line in lines if name in line[key]]
        yield _curve(name, *zip(*pairs, strict=True))


def _merged(curves: Iterator[Curve]) -> list[Curve]:
    """Merge equal curves under one name: the last one drawn would hide the others."""
    names: dict[tuple, list[str]] = {}
    for curve in curves:
        names.setdefault((tuple(curve["steps"]), tuple(curve["values"])), []).append(curve["name"])
    return [
        {"name": ", ".join(of), "steps": list(steps), "values": list(values)} for (steps, values), of in names.items()
    ]


def _smoothed(lines: Sequence[Record], names: dict[str, str]) -> list[Curve]:
    """Return the values of keys, faint, and their running means. names: by key."""
    return [curve for key, name in names.items() for curve in _with_mean(name, *_column(lines, key))]


def _with_mean(name: str, steps: Sequence[int], values: Sequence[float]) -> list[Curve]:
    # Of a few steps a mean would only hide the values.
    if len(steps) * SMOOTHED_SHARE <= 1:
        return [_curve(name, steps, values)] if steps else []
    return [{**_curve(name, steps, values), "faint": True}, _curve(name, steps, running_mean(values))]


def _curve(name: str, steps: Sequence[int], values: Sequence[float]) -> Curve:
    """Return a curve, thinned if it is long. Values that are no finite numbers become None."""
    places = thinned(values)
    return {
        "name": name,
        "steps": [steps[place] for place in places],
        "values": [float(f"{values[place]:.{DIGITS}g}") if math.isfinite(values[place]) else None for place in places],
    }


def thinned(values: Sequence[float]) -> Sequence[int]:
    """Return which of many values are drawn: of each of `BUCKETS` parts the least and the greatest, and those that are
    no numbers where a part has no other; the first and the last."""
    count = len(values)
    if count <= 2 * BUCKETS:
        return range(count)
    array = np.asarray(values, np.float64)
    finite = np.isfinite(array)
    lowest, highest = np.where(finite, array, np.inf), np.where(finite, array, -np.inf)
    edges = np.arange(BUCKETS + 1) * count // BUCKETS
    places = {0, count - 1}
    for start, end in itertools.pairwise(edges.tolist()):
        # Of a part without a number both are its first place.
        places |= {start + int(lowest[start:end].argmin()), start + int(highest[start:end].argmax())}
    return sorted(places)


def running_mean(values: Sequence[float]) -> list[float]:
    """Return an exponential mean over about `SMOOTHED_SHARE` of all values, unbiased at its start. Values that are no
    finite numbers are skipped."""
    keep = 1 - 1 / max(SMOOTHED_SHARE * len(values), 1)
    # Divided by the sum of weights so far, as Adam corrects its moments.
    mean = weight = 0.0
    smooth = []
    for value in values:
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight if weight else math.nan)
    return smooth
