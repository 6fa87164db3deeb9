"""Files of features: one array a video, and beside it a JSON file that says where on the video's time each row stands.

`adatad extract` writes them (docs/features.md). The array is float32 or float16 [positions, channels], one row a
position in the order of time, as `<video>.npy` or, named `features`, in `<video>.safetensors`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from adatad.errors import UserError
from adatad.files import FileError, atomic_write, read_json, shown, write_json
from adatad.spec.feature_width import FEATURES

FORMATS = ("npy", "safetensors")
TENSOR = "features"
"""Name of the array in a safetensors file."""


class FeatureError(UserError):
    """Features that are missing, damaged, or unlike what is asked for; the message names the file."""


@dataclass(frozen=True)
class FeatureFacts:
    """Facts on a video's features, as their JSON file holds them.

    fps: frames a second, as strides count them; stride_frames: frames from one feature to the next; window_frames: span
    of frames that one feature is a mean over; first_seconds, last_seconds: middles of the first and the last span;
    positions, channels: shape; format: ending of the array's file; backbone, preset, weights_sha256: what computed
    them, the hash also of the settings; adapters: whether trained ones were in it; preprocessing: size and
    normalization; video: path, size and time of change of the file; program: with its version; dtype: of
    the array, float32 or float16.
    """

    fps: float
    stride_frames: int
    stride_seconds: float
    window_frames: int
    first_seconds: float
    last_seconds: float
    duration_seconds: float
    positions: int
    channels: int
    format: str
    backbone: str
    preset: str
    weights_sha256: str
    adapters: bool
    preprocessing: dict[str, Any]
    video: dict[str, Any]
    program: str
    dtype: str = "float32"


def facts_path(folder: Path, name: str) -> Path:
    """Return the path of a video's JSON file."""
    return folder / f"{name}.json"


def array_path(folder: Path, name: str, form: str) -> Path:
    """Return the path of a video's array."""
    return folder / f"{name}.{form}"


def write_features(folder: Path, name: str, features: np.ndarray, facts: FeatureFacts) -> None:
    """Write the features of a video, [positions, channels]. A kill leaves no JSON file beside an array that isn't its
    own. Raises FileError."""
    path = array_path(folder, name, facts.format)
    # Without its array a JSON file counts for nothing, and says that an array that comes after it is ours.
    path.unlink(missing_ok=True)
    write_json(facts_path(folder, name), {FEATURES: asdict(facts)})
    with atomic_write(path) as unfinished:
        if facts.format == "npy":
            with open(unfinished, "wb") as file:
                np.save(file, features)
        else:
            from safetensors.numpy import save_file

            save_file({TENSOR: np.ascontiguousarray(features)}, unfinished)


def read_feature_facts(folder: Path, name: str) -> FeatureFacts:
    """Return what the JSON file of a video's features says. Raises FeatureError."""
    path = facts_path(folder, name)
    if not path.is_file():
        raise FeatureError(f"video {shown(name)!r}: {shown(path)} isn't there; extract its features: adatad extract")
    try:
        content = read_json(path)
        facts = FeatureFacts(**content[FEATURES])
        numbers = (facts.fps, facts.stride_seconds, facts.first_seconds, facts.last_seconds, facts.duration_seconds)
        counts = (facts.stride_frames, facts.window_frames, facts.positions, facts.channels)
        sound = all(isinstance(n, int | float) and math.isfinite(n) and not isinstance(n, bool) for n in numbers)
        sound = sound and all(type(n) is int and 0 < n < 2**31 for n in counts) and 1e-6 <= facts.fps <= 1e6
        if not sound or facts.duration_seconds <= 0 or facts.format not in FORMATS:
            raise ValueError
        return facts
    except FileError as error:
        raise FeatureError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        known = ", ".join(field.name for field in fields(FeatureFacts))
        raise FeatureError(
            f"{shown(path)}: isn't a JSON file of adatad extract, which has {FEATURES!r} with {known}; extract the "
            "video again into another folder"
        ) from error


def read_features(folder: Path, name: str, facts: FeatureFacts, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return rows [first, last) of a video's features: float32 [rows, channels]. Raises FeatureError for a file that
    is missing, damaged, of another shape than its JSON file says, or with numbers that are none in these rows."""
    path = array_path(folder, name, facts.format)
    if not path.is_file():
        raise FeatureError(
            f"video {shown(name)!r}: {shown(path)} isn't there, though its JSON file is; extract it again"
        )
    try:
        whole = _opened(path, facts.format)
        shape, dtype = tuple(whole.shape), whole.dtype
        if shape == (facts.positions, facts.channels) and dtype in (np.float32, np.float16):
            rows = np.array(whole[first:last], dtype=np.float32)
        else:
            rows = None
    # A damaged file may raise anything that its library knows.
    except Exception as error:
        raise FeatureError(f"{shown(path)}: can't be read as {facts.format}; extract the video again") from error
    if rows is None:
        wanted = f"float32 or float16 [{facts.positions}, {facts.channels}] as its JSON file says"
        raise FeatureError(f"{shown(path)}: holds {dtype} {list(shape)}, expected {wanted}; extract the video again")
    if not np.isfinite(rows).all():
        raise FeatureError(f"{shown(path)}: holds numbers that are none (NaN or infinite); extract the video again")
    return rows


def _opened(path: Path, form: str) -> np.ndarray:
    """Return the array of a file, as a view of the disk where that can be."""
    if form == "npy":
        # Of hours of video a window is needed; and nothing in the file is executed.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    from safetensors.numpy import load_file

    return load_file(path)[TENSOR]
