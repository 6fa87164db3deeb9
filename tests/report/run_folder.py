"""A run directory as training leaves it, written by hand, for tests of its page."""

import json
from pathlib import Path

LINE = {
    "kind": "train",
    "epoch": 0,
    "segment_loss": 0.5,
    "lr": {"adapter": 1e-3},
    "gradient_norm": 2.0,
    "step_seconds": 0.5,
}


def train_line(step, **values):
    """A line of metrics.jsonl."""
    return {**LINE, "step": step, "class_loss": 1 / max(step, 1), **values}


def write_lines(folder: Path, lines, how: str = "w") -> None:
    with (folder / "metrics.jsonl").open(how) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def make_run(folder: Path, spec, classes=("blink", "pulse"), label: str = "pulse") -> Path:
    """Write what the page is drawn from, but spec.yaml. label: of the detections."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "average_mAP": 0.5, "untrained_average_mAP": 0.01, "best_average_mAP": 0.625, "mAP": {"0.3": 0.7, "0.5": 0.3},
        "epochs": 3, "seconds": 75, "ap_per_class": {classes[0]: [0.8, 0.9], classes[1]: [0.1, 0.2]},
    }  # fmt: skip
    found = [
        {"segment": [1.0, 3.0], "label": label, "score": 0.875},
        {"segment": [2.0, 5.0], "label": label, "score": 0.25},
    ]
    names = [path.stem for path in sorted((Path(spec.data.videos)).glob("*validation*"))]
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "detections.json").write_text(json.dumps({"results": {name: found for name in names}}))
    (folder / "trained.txt").write_text("backbone.blocks.0.adapter.gamma\ndetector.head.cls_head.bias\n")
    lines = [train_line(step) for step in range(1, 9)]
    lines.append({"kind": "evaluation", "step": 8, "epoch": 1, "average_mAP": 0.5, "mAP": {"0.3": 0.7, "0.5": 0.3}})
    write_lines(folder, lines)
    # Another line is being written.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    return folder
