"""Labels from an external video-level classifier, for detectors that find segments without telling classes apart."""

from __future__ import annotations

from typing import Literal

import numpy as np

Fusion = Literal["product", "sqrt"]


def fuse(
    segments: np.ndarray, scores: np.ndarray, class_scores: np.ndarray, top: int, fusion: Fusion, softmax: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Repeat all segments for each of the `top` classes of the video, best class first.

    segments: [n, 2]; scores: [n]; class_scores: [classes]. New scores are score x class score (product) or
    the square root of it (sqrt). Returns segments [top x n, 2], scores and class numbers [top x n].
    """
    if softmax:
        powers = np.exp(class_scores - class_scores.max())
        class_scores = powers / powers.sum()
    best = np.argsort(-class_scores, kind="stable")[:top]
    fused = []
    for number in best:
        product = scores * class_scores[number]
        fused.append(np.sqrt(product) if fusion == "sqrt" else product)
    labels = np.repeat(best, len(scores))
    return np.tile(segments, (len(best), 1)), np.concatenate(fused), labels
