"""The page of a comparison: one HTML file, whose chart is drawn by the scripts that the report of a run has too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from adatad.evaluation.paired import verdict
from adatad.files import shown, write_text
from adatad.report.html_file import page_file, policy_digest, script_data, scripts

SCRIPTS = ("texts", "looks", "tip", "curves", "compare")
# As looks.js has: the next ones are told from the first by their dashes.
COLOURS = 8
VERDICTS = {"better": "better", "worse": "worse", "open": "can't be told"}


def write_compare_page(found: dict[str, Any], path: Path) -> None:
    """Write the page of what `compare_runs` or `compare_files` returned, atomically. Raises FileError."""
    script = scripts(SCRIPTS)
    # Names of runs, classes and values of specs may be markup: what isn't marked as safe is escaped.
    environment = Environment(
        loader=PackageLoader("adatad.report", "page_files"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "scaled": _scaled,
        "verdict": _verdict,
        "reach": _reach,
    }
    page = environment.get_template("compare.html").render(
        found=found,
        tables=_difference_tables(found),
        style=Markup("".join(page_file(name) for name in ("base.css", "curves.css", "compare.css"))),
        script=Markup(script),
        script_hash=policy_digest(script),
        data=Markup(script_data({"charts": _charts(found)})),
    )
    write_text(path, page)


def _charts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chart of average mAP, as `curves.js` takes it; none for detections files."""
    curves = [
        {"name": shown(run["name"]), "steps": run["steps"], "values": run["curve"], "dash": number // COLOURS}
        for number, run in enumerate(found["runs"])
        if "steps" in run
    ]
    if not curves:
        return []
    note = f"of the group {shown(found['group'])}" if found["group"] else ""
    return [{"title": "Average mAP on validation", "unit": "%", "note": note, "curves": curves}]


def _difference_tables(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a table of bars for each run but the first: {"name", "how", "rows", "classes"}.

    rows: (what, figure) of the average and each tIoU; classes: the same, the most worsened first.
    """
    if not found["paired"]:
        return []
    tables = []
    pairs = zip(found["runs"][1:], found["paired"]["differences"], found["relations"], strict=True)
    for run, difference, how in pairs:
        rows = [("average", difference["average_mAP"])]
        rows += [(f"tIoU {tiou}", figure) for tiou, figure in difference["mAP"].items()]
        classes = sorted(difference["ap_per_class"].items(), key=lambda item: item[1]["value"])
        tables.append({"name": run["name"], "how": how, "rows": rows, "classes": classes})
    return tables


def _reach(rows: list[tuple[str, dict[str, float]]]) -> float:
    """Return the largest end of an interval, which bars are scaled to."""
    # At least a point, so that differences of nothing don't fill the picture.
    return max(0.01, *(abs(figure[end]) for _, figure in rows for end in ("low", "high")))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _scaled(value: float | None, unit: float, digits: int = 1) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _verdict(figure: dict[str, float]) -> str:
    return VERDICTS[verdict(figure)]
