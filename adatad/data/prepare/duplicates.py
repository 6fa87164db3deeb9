"""Videos that are there twice: the same bytes under two names, or the same pictures in another coding or size; and
videos that are both trained and scored, of which a score says nothing.

Pictures are compared at a few times, as shares of the video's length. A copy that lost its beginning or its end isn't
found.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adatad.data.prepare.cells import SIDE

DUPLICATE, LEAK = "duplicate", "in training and validation"
LOOKS = 8
"""Times at which pictures are compared."""
LENGTH_TOLERANCE, LENGTH_SECONDS = 0.02, 0.5
"""Share of the length, or seconds if that is more, by which copies differ: another rate, a frame more or less."""
# Recordings of one camera differ from each other as much as from themselves at another time. Coding changes the mean
# grey of a cell by parts of a grey level.
MAX_SHARE = 0.25
"""Largest difference of two copies, as a share of what the video changes by itself from one of the times to another."""
LEAST_CHANGE = 1.0
"""Least change of a video by itself, in grey levels: of what stands still, pictures tell nothing."""
CHUNK_BYTES = 1 << 22


class Seen(NamedTuple):
    """Content of a video, to be compared. look: of `look_text`, "" if it couldn't be read; roles: subsets that it is
    in, training first."""

    name: str
    path: Path
    seconds: float
    look: str
    roles: tuple[str, ...]


def look_text(cells: np.ndarray) -> str:
    """Return the grey cells of LOOKS pictures, float32 [LOOKS, c], as text for a journal; "" if they are fewer."""
    return base64.b64encode(np.rint(cells).astype(np.uint8).tobytes()).decode() if len(cells) == LOOKS else ""


def duplicates(videos: Iterable[Seen]) -> dict[str, list[list[str]]]:
    """Return the problems, [kind, detail] each, by video: for each that is trained and scored, and for each but the
    first of several equal ones."""
    videos = list(videos)
    found: dict[str, list[list[str]]] = defaultdict(list)
    for video in videos:
        if len(video.roles) > 1:
            found[video.name].append([LEAK, "is trained on and scored: the score says nothing of other videos"])
    named = set()
    for first, copy, how in (*same_bytes(videos), *same_pictures(videos)):
        if (first.name, copy.name) not in named:
            named.add((first.name, copy.name))
            # One is trained on and the other scored: worse than one that merely counts twice.
            leaks = set(first.roles) != set(copy.roles)
            where = f", which is for {' and '.join(first.roles)}; this one is for {' and '.join(copy.roles)}"
            found[copy.name].append([LEAK if leaks else DUPLICATE, f"{how} {first.name}{where if leaks else ''}"])
    return found


def same_bytes(videos: Iterable[Seen]) -> Iterator[tuple[Seen, Seen, str]]:
    """Yield (first, copy, how) of files with the same content. Files of a size that no other has aren't read."""
    sizes: dict[int, list[Seen]] = defaultdict(list)
    for video in videos:
        try:
            sizes[video.path.stat().st_size].append(video)
        except (OSError, ValueError):
            # Missing, which is a problem of its own.
            continue
    for group in (group for size, group in sizes.items() if size and len(group) > 1):
        by_hash: dict[str, Seen] = {}
        for video in group:
            # A file that can't be read is like no other.
            first = by_hash.setdefault(_digest(video.path) or video.name, video)
            if first is not video:
                yield first, video, "the same bytes as"


def same_pictures(videos: Iterable[Seen]) -> Iterator[tuple[Seen, Seen, str]]:
    """Yield (first, copy, how) of videos of about the same length that show the same at all times."""
    videos = [video for video in videos if _cells(video.look) is not None and video.seconds > 0]
    place = {video.name: number for number, video in enumerate(videos)}
    videos.sort(key=lambda video: video.seconds)
    lengths = np.array([video.seconds for video in videos])
    looks = np.array([_cells(video.look) for video in videos], np.float32).reshape(len(videos), LOOKS, SIDE * SIDE)
    # Of each video by itself, between one time and the next.
    changes = np.abs(np.diff(looks, axis=1)).mean((1, 2))
    for number, video in enumerate(videos):
        if changes[number] < LEAST_CHANGE:
            continue
        longest = video.seconds + max(LENGTH_TOLERANCE * video.seconds, LENGTH_SECONDS)
        # In order of length: candidates are those that follow, so that each pair is seen once.
        last = int(np.searchsorted(lengths, longest, side="right"))
        differences = np.abs(looks[number + 1 : last] - looks[number]).mean((1, 2))
        for other in np.flatnonzero(differences <= MAX_SHARE * changes[number]).tolist():
            pair = sorted((video, videos[number + 1 + other]), key=lambda one: place[one.name])
            yield *pair, "the same pictures as"


def _cells(look: str) -> np.ndarray | None:
    """Return what `look_text` was given, rounded: uint8 [LOOKS x c]; None for an empty or damaged text."""
    try:
        cells = np.frombuffer(base64.b64decode(look), np.uint8)
    except (ValueError, TypeError):
        return None
    return cells if len(cells) == LOOKS * SIDE * SIDE else None


def _digest(path: Path) -> str:
    """Return a file's SHA-256; "" if it can't be read."""
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                content.update(chunk)
    except OSError:
        return ""
    return content.hexdigest()
