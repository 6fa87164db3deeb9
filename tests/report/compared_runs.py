"""Run directories with detections, as training leaves them, whose comparison has a known answer."""

from __future__ import annotations

import json
from pathlib import Path

from small_data_set import write_annotations, write_spec

VIDEOS = 12
LABELS = ("pour", "stir")


def annotations(folder: Path, start: float = 2.0) -> Path:
    """An annotation file with an instance of each class in every validation video."""
    items = [{"segment": [start + 10 * n, start + 4 + 10 * n], "label": label} for n, label in enumerate(LABELS)]
    entry = {"subset": "validation", "duration": 30.0, "frame": 240, "annotations": items}
    videos = {f"v{n}": entry for n in range(VIDEOS)}
    videos["t0"] = {**entry, "subset": "training"}
    return write_annotations(folder, {"database": videos}, f"annotations{start:g}.json")


def write_run(folder: Path, truth: Path, average: float, found: int = VIDEOS, settings: str = "") -> Path:
    """A run that finds everything in the first `found` videos; `settings`: lines of YAML added to its spec."""
    folder.mkdir(parents=True)
    write_spec(folder, annotations=str(truth), more=settings)
    items = json.loads(truth.read_text())["database"]["v0"]["annotations"]
    detections = {f"v{n}": [{**item, "score": 0.9} for item in items] if n < found else [] for n in range(VIDEOS)}
    (folder / "detections.json").write_text(json.dumps({"results": detections}))
    lines = [
        {"kind": "evaluation", "step": step, "epoch": step, "average_mAP": average * step / 40, "mAP": {}}
        for step in (0, 20, 40)
    ]
    lines.append({"kind": "train", "step": 1, "memory_bytes": 3 << 29})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    result = {"average_mAP": average, "best_average_mAP": average, "untrained_average_mAP": None, "seconds": 90}
    (folder / "result.json").write_text(json.dumps(result))
    return folder
