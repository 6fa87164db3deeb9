"""Cost by size: operations and bytes a video are counted, and slopes are exponents."""

import sys
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from adatad.data.annotations import read_annotations
from adatad.data.dataset import check_videos
from adatad.dev.benchmarks.scale_data import detections, names_of, truth, write_annotations
from adatad.dev.benchmarks.scale_suite import Curve, slope
from adatad.dev.benchmarks.watched import watch
from adatad.evaluation.detection_map import evaluate, ground_truth_segments
from adatad.spec.data_sections import DataSpec

MAX_BYTES_A_VIDEO = 16_000
"""Of memory while an annotation file with six instances a video is read."""
COUNTED = ("open", "os.listdir", "os.scandir")


def data_set(folder: Path, videos: int) -> DataSpec:
    (folder / "videos").mkdir(parents=True)
    for name in names_of(videos):
        (folder / "videos" / f"{name}.mp4").touch()
    write_annotations(folder / "annotations.json", videos, instances=6, classes=8)
    return DataSpec(annotations=str(folder / "annotations.json"), videos=str(folder / "videos"))


def events_of(action) -> Counter[str]:
    counts, active = Counter(), [True]
    # A hook can't be taken away: it only counts while it is active.
    sys.addaudithook(lambda event, _: counts.update([event] if active and event in COUNTED else []))
    action()
    active.clear()
    return counts


def read(spec: DataSpec) -> None:
    annotations = read_annotations(spec)
    check_videos(spec, annotations.train + annotations.validation)


def test_a_start_opens_as_many_files_for_200_videos_as_for_20(tmp_path):
    sets = [data_set(tmp_path / str(videos), videos) for videos in (10, 20, 200)]
    # The first reading imports what it needs.
    _, few, many = (events_of(partial(read, spec)) for spec in sets)
    assert few == many
    assert set(few) == {"open"}


def test_a_file_of_500_videos_takes_few_bytes_a_video(tmp_path):
    spec = data_set(tmp_path, 500)
    tracemalloc.start()
    try:
        read(spec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500 * MAX_BYTES_A_VIDEO


def test_one_reading_gives_the_ground_truth_too(tmp_path):
    from adatad.data.annotations import ground_truth

    spec = data_set(tmp_path, 20)
    found = read_annotations(spec)
    assert found.ground_truth == ground_truth(spec)
    assert len(found.ground_truth["database"]) == 10


class CountedFloat(float):
    """A float that counts subtractions from it."""

    subtractions = 0

    def __sub__(self, other):
        CountedFloat.subtractions += 1
        return float(self) - other


@pytest.mark.parametrize("number", [200, 800])
def test_duplicates_are_searched_among_neighbours_alone(number):
    CountedFloat.subtractions = 0
    items = [{"segment": [CountedFloat(n), n + 0.5], "label": "a"} for n in range(number)]
    repeated = [{"segment": [CountedFloat(n + 0.0005), n + 0.5], "label": "a"} for n in range(number)]
    content = {"database": {"v": {"subset": "test", "annotations": items + repeated}}}
    assert len(ground_truth_segments(content, "test")["a"]["v"]) == number
    assert CountedFloat.subtractions <= 6 * number


def test_duplicates_are_those_that_a_plain_search_finds():
    draw = np.random.default_rng(0)
    # Many a thousandth of a second apart, where rounding decides.
    starts = draw.integers(0, 40, 300) / 1000
    ends = 1 + draw.integers(0, 4, 300) / 1000
    pairs = list(zip(starts.tolist(), ends.tolist(), strict=True))
    content = {"database": {"v": {"subset": "t", "annotations": [{"segment": [*p], "label": "a"} for p in pairs]}}}
    kept: list[tuple[float, float]] = []
    for start, end in pairs:
        if not any(abs(start - s) <= 0.001 and abs(end - e) <= 0.001 for s, e in kept):
            kept.append((start, end))
    assert ground_truth_segments(content, "t")["a"]["v"].tolist() == [list(pair) for pair in kept]


def test_made_up_detections_are_scored():
    result = evaluate(truth(20, 6, 5), detections(20, 50, 6, 5), "validation", (0.3, 0.7))
    assert (result.num_ground_truth, result.num_detections, len(result.ap_per_class)) == (120, 1000, 5)
    assert 0 < result.mAP[0.7] < result.mAP[0.3] < 1


def test_a_slope_is_the_exponent_between_the_largest_sizes():
    assert slope((10, 40), [3.0, 12.0]) == pytest.approx(1)
    assert Curve("videos", (1, 10, 100), "mAP", "MiB", [5.0, 1.0, 100.0]).slope == pytest.approx(2)
    assert slope((10, 40), [0.0, 12.0]) == 0


def test_a_watched_command_has_its_own_memory_and_its_failure_is_said(tmp_path):
    grown = tmp_path / "grown"
    script = f"b = bytearray(64 << 20); open({str(grown)!r}, 'w').close(); import time; time.sleep(30)"
    cost = watch([sys.executable, "-c", script], grown.exists)
    assert 64 << 20 < cost.peak_bytes < 256 << 20
    with pytest.raises(RuntimeError, match="exit code 3"):
        watch([sys.executable, "-c", "raise SystemExit(3)"])
