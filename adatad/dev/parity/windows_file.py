"""Golden windows: the frames, masks and segments that the reference cuts out of whole data sets.

Cases go through the functions of training and evaluation; for random windows, the reference's numbers are fed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from adatad.data.annotation_file import AMBIGUOUS
from adatad.data.annotations import Video, annotations_of
from adatad.data.classes import read_classes
from adatad.data.windows import (
    MAX_TRIES,
    Window,
    WindowPlace,
    complete_instances,
    evaluation_window,
    evaluation_windows,
    random_window,
    resize_indices,
    training_window,
)
from adatad.dev.parity.comparison import TOLERANCES, Comparison, largest, mismatch, relative_to_value, rows_of_cases
from adatad.dev.parity.post_file import segments_of, window_meta_of
from adatad.evaluation.postprocess import WindowMeta, to_seconds
from adatad.spec.data_sections import DataSpec, WindowSpec
from adatad.spec.quirks import Quirks
from adatad.training.validation import window_meta


def run_windows(content: dict[str, Any]) -> list[Comparison]:
    """Return every comparison of a windows.json."""
    class_map = [content["class_map"]] if "class_map" in content else []
    return [
        *rows_of_cases(content.get("cases", ()), _run_case, "data set"),
        *rows_of_cases(content.get("seconds_cases", ()), _seconds_rows, "seconds"),
        *rows_of_cases(content.get("resize_failures", ()), _resize_rows, "resize_failures"),
        *rows_of_cases(class_map, _class_rows, "class_map"),
    ]


def _seconds_rows(case: dict[str, Any]) -> Iterator[Comparison]:
    error = _seconds_error(case["segments"], case["seconds"], window_meta_of(case["meta"]))
    yield _row("seconds_cases", "seconds", error, "seconds_unrounded")


def _resize_rows(case: dict[str, Any]) -> Iterator[Comparison]:
    wanted = case["frames_wanted"]
    lengths = [len(resize_indices(total, wanted)) for total in case["failing_total_frames"]]
    yield _row(f"resize_failures {wanted}", "positions", largest(abs(n - wanted) for n in lengths))


def _row(case: str, quantity: str, error: float, kind: str = "exact") -> Comparison:
    return Comparison(f"windows/{case}", quantity, error, TOLERANCES[kind])


def _class_rows(case: dict[str, Any]) -> Iterator[Comparison]:
    """Compare the generated class list, with the reference's "Ambiguous" and without it."""
    spec, database, theirs = (
        DataSpec(annotations="class_map", videos=""),
        case["annotations"]["database"],
        case["classes"],
    )
    yield _row("class_map", "classes", mismatch([*read_classes(spec, database, keep_ambiguous=True).names], theirs))
    ours = [*read_classes(spec, database).names]
    yield _row("class_map", "fixed classes", mismatch(ours, [name for name in theirs if name != AMBIGUOUS]))


def _data_spec(case: dict[str, Any]) -> DataSpec:
    settings = case["settings"]
    # The reference has three names for the window's length, one for each kind of data set.
    strides = settings.get("feature_stride", 1), settings.get("sample_stride", 1)
    window = WindowSpec(
        kind="resize" if case["kind"] == "resize" else "sliding",
        size_grid=next(settings[key] for key in ("window_size", "resize_length", "trunc_len") if key in settings),
        frames_per_position=settings.get("scale_factor", 1),
        stride_frames=strides[0] * strides[1],  # frames of a feature times features of a position
        overlap=settings.get("window_overlap_ratio", 0.0),
        min_visible=settings.get("trunc_thresh", 0.5),
        crop_ratio=settings.get("crop_ratio"),
        offset_frames=settings.get("offset_frames", 0),
    )
    fps = settings.get("fps", -1)  # -1: each video has its own
    return DataSpec(
        annotations=case["name"], videos="", classes=tuple(case["classes"]), train_subset=settings["subset"],
        validation_subset=settings["subset"], fps=fps if fps > 0 else None, window=window,
        blocked_videos=tuple(settings.get("block_list") or ()), filter_short=settings.get("filter_gt", False),
    )  # fmt: skip


def _run_case(case: dict[str, Any]) -> Iterator[Comparison]:
    spec, settings = _data_spec(case), case["settings"]
    agnostic = settings.get("class_agnostic", False)
    # With the reference's quirks: the cases are what it made of these data sets.
    data = annotations_of(case["annotations"]["database"], spec, Quirks.of("reference"), class_agnostic=agnostic)
    testing = settings.get("test_mode", False)
    videos = data.validation if testing else data.train
    match case["kind"]:
        case "random_trunc":
            # Windows at random places: the reference's draws are replayed.
            expected = case["samples"]
            ours, errors = _random_windows(case, {video.name: video for video in videos}, spec.window)
            yield _row(case["name"], "draws", largest(errors))
        case _:
            expected = case["windows"]
            places = _places(videos, spec.window, testing, settings.get("ioa_thresh", 0.0))
            yield _row(case["name"], "places", mismatch(*_places_as_listed(places, expected, spec.window)))
            ours = [_cut(place, case, spec.window, testing) for place in places]
    yield from _window_rows(case["name"], ours, expected, spec)
    if case.get("mended_windows") is not None:
        fixed = [place for video in videos for place in evaluation_windows(video, spec.window)]
        centres = [[place.video.name, *_centres(place, spec.window)] for place in fixed]
        yield _row(case["name"], "fixed windows", mismatch(centres, case["mended_windows"]))


def _places(videos: tuple[Video, ...], spec: WindowSpec, testing: bool, completeness: float) -> list[WindowPlace]:
    """Return all windows of a data set in its order; for training, those that hold instances."""
    places = [place for video in videos for place in evaluation_windows(video, spec, repeat_windows=True)]
    if testing or spec.kind == "resize":
        return places
    # The reference trains on windows with instances that are visible enough, and drops the others.
    complete = [complete_instances(place, spec, completeness) for place in places]
    return [place for place in complete if place is not None]


def _centres(place: WindowPlace, spec: WindowSpec) -> list[int]:
    """Return [first frame, last frame, positions] of a sliding window."""
    last = place.start_grid + place.length_grid - 1
    return [place.start_grid * spec.stride_frames, last * spec.stride_frames, place.length_grid]


def _places_as_listed(
    places: list[WindowPlace], expected: list[dict[str, Any]], spec: WindowSpec
) -> tuple[list[Any], list[Any]]:
    """Return the places of our windows and of the reference's, in one form."""
    if spec.kind == "resize":
        return [place.video.name for place in places], [window["video"] for window in expected]
    ours = [
        [place.video.name, _centres(place, spec), place.start_grid, place.start_grid + place.length_grid - 1]
        for place in places
    ]
    keys = ("video", "centres", "feature_start_idx", "feature_end_idx")
    return ours, [[window[key] for key in keys] for window in expected]


def _cut(place: WindowPlace, case: dict[str, Any], spec: WindowSpec, testing: bool) -> Window:
    frames = case["decoder_frames"][place.video.name]
    if spec.kind == "resize" and not testing:
        # A resized window is the whole video: nothing is drawn.
        return training_window(place.video, frames, spec, np.random.default_rng(0))
    return evaluation_window(place, frames, spec)


class _Fed:
    """A random generator that gives the reference's numbers, and repeats the last one when they end.

    drawn: [low, high, value] of each draw, both ends included.
    """

    def __init__(self, numbers: list[int]):
        self.numbers, self.drawn = numbers, []

    def integers(self, low: int, high: int | None = None) -> int:
        """Return the next number of the list, and note the range that was asked for."""
        # As NumPy: with one argument it is the end, which isn't included.
        first, last = (0, low - 1) if high is None else (low, high - 1)
        number = self.numbers.pop(0) if len(self.numbers) > 1 else self.numbers[0]
        self.drawn.append([first, last, number])
        return number


def _random_windows(
    case: dict[str, Any], videos: dict[str, Video], spec: WindowSpec
) -> tuple[list[Window], list[float]]:
    """Return the window of each sample, and for each comparable one 1 if we drew otherwise than the reference."""
    windows, errors = [], []
    tries = case["settings"].get("max_trials", MAX_TRIES)
    for sample in case["samples"]:
        crop, frames, draws = sample["crop"], case["decoder_frames"][sample["video"]], sample["draws"]
        all_listed = len(draws) == sample["num_draws"]
        short = crop["sampled_frames"] <= spec.size_grid * spec.frames_per_position
        # A short video's length is drawn too. Where not all tries are listed, the last one's start is all that counts.
        length = [crop["length"]] if short and spec.crop_ratio is not None else []
        draw = _Fed([value for *_, value in draws] if all_listed and draws else [*length, crop["start"]])
        windows.append(random_window(videos[sample["video"]], frames, spec, draw, tries))
        if all_listed:
            errors.append(mismatch(draw.drawn, draws))
        elif crop["tries"] == tries:
            # All tries failed: at least their number must be the reference's.
            errors.append(mismatch(len(draw.drawn), sample["num_draws"]))
    return windows, errors


def _window_rows(name: str, ours: list[Window], expected: list[dict[str, Any]], spec: DataSpec) -> Iterator[Comparison]:
    # Not strict: a missing window is a row of its own, and the others are compared.
    pairs = list(zip(ours, expected, strict=False))
    count = abs(len(ours) - len(expected))
    yield _row(name, f"{len(expected)} windows", float(count))
    frames = largest(mismatch(o.indices.tolist(), _frames(t["frame_inds"])) for o, t in pairs)
    yield _row(name, "frames", frames + largest(mismatch(len(o.indices), t["clip_len"]) for o, t in pairs))
    # A mask is its valid positions, then padding: two numbers tell it.
    masks = [((o.valid_grid, spec.window.size_grid), (t["valid"], t["mask_len"])) for o, t in pairs]
    yield _row(name, "masks", largest(mismatch(*pair) for pair in masks))
    yield _row(name, "meta", largest(_meta_error(window_meta(o, spec), t["meta"], spec) for o, t in pairs))
    labelled = [(o, t) for o, t in pairs if "gt_segments" in t]
    if labelled:
        segments = [relative_to_value(o.segments_grid, segments_of(t["gt_segments"])) for o, t in labelled]
        yield _row(name, "segments", largest(segments), "segments_grid")
        yield _row(name, "labels", largest(mismatch(o.labels.tolist(), t["gt_labels"]) for o, t in labelled))
    seconds = [
        _seconds_error(t["pred_segments"], t["pred_seconds"], window_meta(o, spec))
        for o, t in pairs if "pred_seconds" in t
    ]  # fmt: skip
    if seconds:
        yield _row(name, "seconds", largest(seconds), "seconds_unrounded")


def _frames(indices: dict[str, list]) -> list[int]:
    if "list" in indices:
        return indices["list"]
    # Long lists are stored as runs: first frame, step, count.
    return [first + step * number for first, step, count in indices["runs"] for number in range(count)]


def _meta_error(ours: WindowMeta, theirs: dict[str, Any], spec: DataSpec) -> float:
    """Return 0 if two windows lie in the same place, else 1; cases don't tell the start of a random one."""
    expected = window_meta_of(theirs)
    # What cases don't list can't be compared, and is taken as equal.
    start = expected.start_frame if "window_start_frame" in theirs or "resize_length" in theirs else ours.start_frame
    same = (ours.duration_seconds, ours.fps, ours.stride_frames, ours.start_frame, ours.resize_grid) == (
        expected.duration_seconds, expected.fps, expected.stride_frames, start, expected.resize_grid,
    )  # fmt: skip
    return float(not (same and theirs.get("window_size", spec.window.size_grid) == spec.window.size_grid))


def _seconds_error(segments: list[list[float]], seconds: list[list[float]], meta: WindowMeta) -> float:
    difference = to_seconds(segments_of(segments), meta).astype(np.float64) - segments_of(seconds)
    return largest(np.abs(difference).ravel())
