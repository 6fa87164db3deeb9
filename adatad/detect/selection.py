"""Which of a model's candidates count as detections: those above a threshold, of some classes, the best of a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adatad.labels.records import Segment


@dataclass(frozen=True)
class Selection:
    """Choice among a video's candidates. threshold: least score, of all classes or by class, 0 of one that isn't
    named; classes: those that are wanted, None for all; top_k: at most so many a video, the best of what is left."""

    threshold: float | dict[str, float] = 0.0
    classes: tuple[str, ...] | None = None
    top_k: int | None = None

    def of(self, candidates: Sequence[Segment]) -> tuple[Segment, ...]:
        """Return what is kept of candidates, in their order: the best first."""
        # Candidates come best first, so that the first of what is left are the best.
        kept = [found for found in candidates if self.keeps(found.label, found.score or 0.0)]
        return tuple(kept[: self.top_k])

    def keeps(self, label: str, score: float) -> bool:
        """Return whether a candidate counts, whatever the others are."""
        if self.classes is not None and label not in self.classes:
            return False
        least = self.threshold
        return score >= (least.get(label, 0.0) if isinstance(least, dict) else least)

    def as_json(self) -> dict[str, Any]:
        """Return the selection as JSON values, by which two are compared."""
        classes = None if self.classes is None else sorted(self.classes)
        return {"threshold": self.threshold, "classes": classes, "top_k": self.top_k}


def best_first(candidates: Sequence[Segment]) -> tuple[Segment, ...]:
    """Return candidates by falling score, of equal ones the earlier, in one order whatever order they come in."""
    return tuple(sorted(candidates, key=lambda s: (-(s.score or 0.0), s.start_seconds, s.end_seconds, s.label)))
