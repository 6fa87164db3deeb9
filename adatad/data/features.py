"""Windows of features in place of windows of frames: the same windows and labels, found by the same times.

Position i of a window stands for the span of time from its frame to the next position's; what it gets is interpolated
linearly between the two features whose middles lie beside the middle of that span. So features may be as far apart as
positions, or further, as a backbone's tubelets are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adatad.data.annotations import Video
from adatad.data.feature_file import (
    FeatureError,
    FeatureFacts,
    array_path,
    facts_path,
    read_feature_facts,
    read_features,
)
from adatad.data.windows import Window
from adatad.files import listed, shown
from adatad.spec.data_sections import DataSpec

MAX_STRETCH = 4.0
"""Most positions between two features: more would be made up of too little."""
SLACK = 1.01
"""Rates of files and annotations differ in the last digits."""
MAX_LISTED_MISSING = 10
"""Missing videos that a message names; the rest is counted."""


def feature_window(spec: DataSpec, video: Video, cut: Callable[[int], Window]) -> tuple[Tensor, Window]:
    """Return the features of a window, float32 [channels, positions], and the window.

    cut: returns the window of a video of so many frames, counted at the annotation's rate. Raises FeatureError.
    """
    folder = Path(spec.features)
    facts = read_feature_facts(folder, video.name)
    window = cut(max(1, round(facts.duration_seconds * video.fps)))
    seconds = (window.indices[:: spec.window.frames_per_position] + spec.window.stride_frames / 2) / video.fps
    places = np.clip((seconds - facts.first_seconds) / facts.stride_seconds, 0, facts.positions - 1)
    # Sums in seconds leave places beside whole numbers, which would mix two features.
    places = np.where(np.abs(places - np.rint(places)) < 1e-6, np.rint(places), places)
    first = int(places.min())
    rows = read_features(folder, video.name, facts, first, int(np.ceil(places.max())) + 1)
    before = np.floor(places).astype(np.int64)
    share = (places - before).astype(np.float32)[:, None]
    after = np.minimum(before + 1 - first, len(rows) - 1)
    features = rows[before - first] * (1 - share) + rows[after] * share
    return torch.from_numpy(np.ascontiguousarray(features.T)), window


def check_features(spec: DataSpec, videos: Sequence[Video]) -> None:
    """Raise FeatureError unless the features of all videos are there, are of one kind, and suit the windows."""
    folder = Path(spec.features)
    missing = [video.name for video in videos if not facts_path(folder, video.name).is_file()]
    if missing:
        raise FeatureError(
            f"{shown(folder)}: features of {len(missing)} of {len(videos)} videos of {shown(spec.annotations)} aren't "
            f"there, such as {shown(facts_path(folder, missing[0]))}: "
            f"{listed([shown(name) for name in missing], MAX_LISTED_MISSING)}; adatad extract writes them"
        )
    first: FeatureFacts | None = None
    for video in videos:
        facts = read_feature_facts(folder, video.name)
        where = shown(facts_path(folder, video.name))
        if not array_path(folder, video.name, facts.format).is_file():
            raise FeatureError(f"video {shown(video.name)!r}: {where} has no array beside it; extract it again")
        first = first or facts
        for key in ("channels", "stride_frames", "window_frames", "weights_sha256", "preprocessing"):
            if getattr(facts, key) != getattr(first, key):
                raise FeatureError(
                    f"{where}: {key} is {getattr(facts, key)}, but {getattr(first, key)} in the file of "
                    f"{shown(videos[0].name)!r}; extract all videos with the same settings"
                )
        _check_stride(spec, video, facts, where)


def _check_stride(spec: DataSpec, video: Video, facts: FeatureFacts, where: str) -> None:
    """Raise FeatureError if positions are further apart than features, or much nearer."""
    step_seconds = spec.window.stride_frames / video.fps
    if facts.stride_seconds / MAX_STRETCH / SLACK <= step_seconds <= facts.stride_seconds * SLACK:
        return
    right = max(1, round(facts.stride_seconds * video.fps))
    raise FeatureError(
        f"data.window.stride_frames {spec.window.stride_frames}: positions are {step_seconds:.4g} s apart at "
        f"{video.fps:.6g} frames a second, but features {facts.stride_seconds:.4g} s ({where}); set it to {right}, or "
        "extract at another stride"
    )
