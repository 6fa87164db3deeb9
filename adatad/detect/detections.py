"""Detections as a notebook wants them: small records of text and numbers, and a CSV file of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

from adatad.detect.selection import Selection
from adatad.errors import UserError
from adatad.files import write_text


@dataclass(frozen=True, slots=True)
class Detection:
    """A segment that was found in a video. score: from 0 to 1."""

    video: str
    label: str
    start_seconds: float
    end_seconds: float
    score: float


class Detections(list[Detection]):
    """List of detections, best first in each video."""

    def to_csv(self, path: str | Path) -> None:
        """Write them as UTF-8 with a header: video,label,start_seconds,end_seconds,score. Raises FileError."""
        # In memory first: the file appears only when it is whole.
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(Detection)])
        writer.writerows(astuple(detection) for detection in self)
        write_text(path, text.getvalue())


def wanted(
    known: Iterable[str],
    threshold: float | Mapping[str, float] | None,
    classes: Iterable[str] | None,
    own: Mapping[str, float] | None = None,
) -> Selection:
    """Return what a call's options keep. known: classes of the model; own: its thresholds, taken where `threshold` is
    None. Raises UserError for a class that the model doesn't know, and a threshold that is no score."""
    known = tuple(known)
    # A text is a list of letters otherwise.
    classes = [classes] if isinstance(classes, str) else classes
    chosen = None if classes is None else tuple(classes)
    by_class = dict(threshold) if isinstance(threshold, Mapping) else {"": threshold or 0.0}
    named = [*(chosen or ()), *(by_class if isinstance(threshold, Mapping) else ())]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise UserError(f"{unknown[0]!r} is no class of this model; it knows {', '.join(known)}")
    for name, number in by_class.items():
        # False for NaN too. Scores that an external classifier has changed may lie above 1.
        if isinstance(number, bool) or not isinstance(number, Real) or not 0 <= number < float("inf"):
            of = f" of class {name!r}" if name else ""
            raise UserError(f"threshold{of}: expected a score from 0 on, such as 0.3, got {number!r}")
    if threshold is None:
        # Not among the checked ones: an external classifier may name other classes than the model.
        return Selection(dict(own or {}), chosen)
    return Selection(by_class if isinstance(threshold, Mapping) else float(threshold), chosen)


def records(video: str, found: Iterable[Mapping[str, Any]], rule: Selection) -> Iterable[Detection]:
    """Yield those detections in the ActivityNet form that count, whatever the others are."""
    for item in found:
        if rule.keeps(item["label"], item["score"]):
            yield Detection(video, item["label"], *item["segment"], item["score"])
