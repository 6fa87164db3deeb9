"""What a run prints at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from adatad.files import shown
from adatad.printing import print_table
from adatad.spec import Spec


def print_scores(spec: Spec, result: dict[str, Any]) -> None:
    """mAP, average and by tIoU, with what is published beside it, and what was reached without training."""
    if not result["ap_per_class"]:
        subset = spec.data.validation_subset
        print(f"{shown(spec.name)}: {shown(spec.data.annotations)} has no instances in {subset!r}: nothing was scored")
        return
    untrained, published = result.get("untrained_average_mAP"), spec.published or {}
    table = Table("mAP", "%", *(["published"] if published else []), title=shown(spec.name))

    def add(what: str, value: float, name: str, **options: str) -> None:
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
    """The scores, and where to look."""
    print_scores(spec, result)
    for what, name in (
        ("report", "report.html"),
        ("timelines", "timelines"),
        ("detections", "detections.json"),
        ("TensorBoard", "tensorboard"),
    ):
        print(f"{what:12} {shown(run_directory / name)}")
