"""Scores of a run: printed at its end, and compared with published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from adatad.files import shown, write_text
from adatad.printing import print_table
from adatad.spec import Spec

BAND = 0.5
"""Points of average mAP by which a repeated training may differ from the published figure."""
AVERAGE = "average_mAP"


def print_scores(spec: Spec, result: dict[str, Any]) -> None:
    """Print mAP, average and by tIoU, with published values beside it, and the mAP before training."""
    if not result["ap_per_class"]:
        subset = spec.data.validation_subset
        print(f"{shown(spec.name)}: {shown(spec.data.annotations)} has no instances in {subset!r}: nothing was scored")
        return
    untrained, published = result.get("untrained_average_mAP"), spec.published or {}
    table = Table("mAP", "%", *(["published"] if published else []), title=shown(spec.name))

    def add(what: str, value: float, name: str, **options: str) -> None:
        # An empty cell for tIoUs that weren't published.
        theirs = [f"{published[name]:.2f}" if name in published else ""] if published else []
        table.add_row(what, f"{100 * value:.2f}", *theirs, **options)

    add("average", result["average_mAP"], "average_mAP", style="bold")
    for tiou, value in result["mAP"].items():
        add(f"tIoU {tiou}", value, tiou)
    for tiou, by_k in result.get("recall", {}).items():
        for k, value in by_k.items():
            table.add_row(f"recall@{k}x, tIoU {tiou}", f"{100 * value:.2f}")
    for name, group in result.get("groups", {}).items():
        table.add_row(f"average, {shown(name)} ({group['instances']} instances)", f"{100 * group['average_mAP']:.2f}")
    if untrained is not None:
        table.add_row("untrained, average", f"{100 * untrained:.2f}")
    print_table(table)


def print_summary(spec: Spec, result: dict[str, Any], run_directory: Path) -> None:
    """Print the scores, and where the run's files are."""
    print_scores(spec, result)
    for what, name in (
        ("report", "report.html"),
        ("timelines", "timelines"),
        ("detections", "detections.json"),
        ("TensorBoard", "tensorboard"),
    ):
        print(f"{what:12} {shown(run_directory / name)}")


class Figure(NamedTuple):
    """One figure in percent. name: average_mAP, or the tIoU."""

    name: str
    published: float
    obtained: float

    @property
    def difference(self) -> float:
        """Points by which the obtained figure is higher."""
        return self.obtained - self.published


class Reproduction(NamedTuple):
    """Figures, published and obtained. verdict: within, above or below the band, by average mAP; or unpublished."""

    figures: tuple[Figure, ...]
    verdict: str

    @property
    def accepted(self) -> bool:
        """False if the average mAP is below the band."""
        return self.verdict != "below"


def compare_with_published(spec: Spec, result: dict[str, Any]) -> Reproduction:
    """Compare a result with the spec's published figures. result: content of result.json, mAP in 0..1."""
    obtained = {AVERAGE: result["average_mAP"], **result["mAP"]}
    published = spec.published or {}
    names = [name for name in (AVERAGE, *result["mAP"]) if name in published]
    figures = tuple(Figure(name, published[name], 100 * obtained[name]) for name in names)
    if AVERAGE not in names:
        return Reproduction(figures, "unpublished")
    # To the digits in which figures are published: 0.5 less than 69.03 is 68.53.
    difference = round(figures[0].difference, 2)
    return Reproduction(figures, "within" if abs(difference) <= BAND else "above" if difference > 0 else "below")


def verdict_line(spec: Spec, reproduction: Reproduction) -> str:
    """Return the verdict as a sentence."""
    if reproduction.verdict == "unpublished":
        return f"{spec.name}: no average mAP was published to compare with"
    average = reproduction.figures[0]
    word = {"within": "reproduced", "above": "better than published", "below": "not reproduced"}[reproduction.verdict]
    return (
        f"{spec.name}: {word}: average mAP {average.obtained:.2f}, published {average.published:.2f} "
        f"({average.difference:+.2f}; accepted: {BAND} to either side)"
    )


def write_reproduction(folder: Path, spec: Spec, result: dict[str, Any], how: str) -> Reproduction:
    """Write reproduction.json and reproduction.md into a folder. how: a line that says where the figures come from."""
    reproduction = compare_with_published(spec, result)
    content = {
        "spec": spec.name,
        "reference": spec.reference,
        "how": how,
        "band": BAND,
        "verdict": reproduction.verdict,
        "figures": [{**figure._asdict(), "difference": figure.difference} for figure in reproduction.figures],
        "obtained": {"average_mAP": result["average_mAP"], "mAP": result["mAP"], "recall": result.get("recall", {})},
    }
    write_text(folder / "reproduction.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / "reproduction.md", _page(spec, result, reproduction, how))
    return reproduction


def _page(spec: Spec, result: dict[str, Any], reproduction: Reproduction, how: str) -> str:
    published = {figure.name: figure for figure in reproduction.figures}
    rows = []
    for name, value in {AVERAGE: result["average_mAP"], **result["mAP"]}.items():
        figure = published.get(name)
        theirs = f"{figure.published:.2f} | {figure.difference:+.2f}" if figure else " | "
        rows.append(f"| {'average' if name == AVERAGE else name} | {100 * value:.2f} | {theirs} |")
    table = "\n".join(["| mAP at tIoU | obtained | published | difference |", "| --- | --- | --- | --- |", *rows])
    return f"# {spec.name}\n\n{verdict_line(spec, reproduction)}\n\n{how}\n\n{table}\n"
