"""Golden cases of learning rates: lr.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adatad.dev.parity.comparison import TOLERANCES, Comparison, largest, rows_of_cases
from adatad.training.optimizer import learning_rate

LOWEST_RATE = 1e-8
"""At the end of the reference's cosine, where a case doesn't say."""


def run(content: dict[str, Any], folder: Path) -> list[Comparison]:
    return rows_of_cases(content.get("cases", ()), _rates, "schedule")


def _rates(case: dict[str, Any]) -> Iterator[Comparison]:
    warmup, total = (case[key] * case["steps_per_epoch"] for key in ("warmup_epochs", "max_epochs"))
    lowest = case.get("min_lr", LOWEST_RATE)
    errors = [
        abs(learning_rate(step, base, warmup, total, lowest) - rate)
        for step, rates in zip(case["steps"], case["lrs"], strict=True)
        for base, rate in zip(case["base_lrs"], rates, strict=True)
    ]
    yield Comparison(case["name"], "learning rates", largest(errors), TOLERANCES["learning_rate"])
