"""Scores of detections in texts: behind the label, in brackets, as subtitles and ELAN hold them."""

from __future__ import annotations

import re

SCORE = re.compile(r"0(?:\.\d{1,6})?|1(?:\.0{1,6})?")


def score_text(score: float) -> str:
    """Return a score to four places, without needless zeros: "0.87"."""
    return f"{score:.4f}".rstrip("0").rstrip(".")


def with_score(label: str, score: float | None) -> str:
    """Return a label with its score behind: "pour [0.87]"; without a score the label alone."""
    return label if score is None else f"{label} [{score_text(score)}]"


def split_score(text: str) -> tuple[str, float | None]:
    """Return (label, score) of a text that `with_score` may have made. A label of its own that ends so is split too."""
    text = text.strip()
    # The last bracket alone, without a search: texts of files may be long.
    label, bracket, score = text.rpartition("[")
    is_score = bracket and label.strip() and score.endswith("]") and SCORE.fullmatch(score[:-1])
    return (label.strip(), float(score[:-1])) if is_score else (text, None)
