"""Golden cases of learning rates: lr.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adatad.parity.compare import TOLERANCES, Row, largest
from adatad.training.schedule import learning_rate


def run(content: dict[str, Any], folder: Path) -> list[Row]:
    rows = []
    for case in content["cases"]:
        warmup, total = (case[key] * case["steps_per_epoch"] for key in ("warmup_epochs", "max_epochs"))
        errors = [
            abs(learning_rate(step, base, warmup, total, case["min_lr"]) - rate)
            for step, rates in zip(case["steps"], case["lrs"], strict=True)
            for base, rate in zip(case["base_lrs"], rates, strict=True)
        ]
        rows.append(Row(case["name"], "learning rates", largest(errors), TOLERANCES["learning_rate"]))
    return rows
