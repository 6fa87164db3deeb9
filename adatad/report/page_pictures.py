"""Small pictures for pages: a strip of a video's frames, and the first batch, as JPEG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from adatad.report.timelines import Thumbnail

STRIP_HEIGHT = 48
MAX_STRIP_WIDTH = 84
"""Pixels of one frame in a strip."""
MAX_WIDTH = 1400
STRIP_QUALITY, QUALITY = 60, 82


def strip(thumbnails: list[Thumbnail]) -> bytes | None:
    """Return frames side by side, each in an equal part, as a JPEG file's content; None without frames."""
    if not thumbnails:
        return None
    height, width = thumbnails[0][1].shape[:2]
    width = min(max(round(width * STRIP_HEIGHT / height), 1), MAX_STRIP_WIDTH)
    frames = [Image.fromarray(image).resize((width, STRIP_HEIGHT)) for _, image in thumbnails]
    return _jpeg(Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames], axis=1)), STRIP_QUALITY)


def as_jpeg(path: Path) -> bytes:
    """Return a picture, at most MAX_WIDTH wide, as a JPEG file's content. Raises OSError for what is no picture."""
    with Image.open(path) as image:
        image.thumbnail((MAX_WIDTH, 4 * MAX_WIDTH))
        return _jpeg(image.convert("RGB"), QUALITY)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality, optimize=True)
    return buffer.getvalue()
