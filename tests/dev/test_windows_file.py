"""The reference's windows of whole data sets: all ours, and a change in any of them is noticed."""

import copy
import json

import pytest

from adatad.dev.parity.verify_golden import run_data_file
from adatad.dev.parity.windows_file import run_windows


@pytest.fixture
def content(shared_folder) -> dict:
    return json.loads((shared_folder / "golden" / "data" / "windows.json").read_text())


def failures(content, folder) -> list[str]:
    return [f"{row.case}: {row.quantity}" for row in run_windows(content) if not row.passed]


def test_all_windows_are_the_reference_s(shared_folder):
    rows = run_data_file(shared_folder / "golden" / "data" / "windows.json")
    assert [row for row in rows if not row.passed] == []
    assert len({row.case for row in rows}) >= 27 + 5


def first(content, kind: str, **settings) -> dict:
    """A copy of the file with one case alone."""
    cases = (case for case in content["cases"] if case["kind"] == kind)
    case = next(case for case in cases if all(case["settings"].get(key) == value for key, value in settings.items()))
    return {**copy.deepcopy(content), "cases": [copy.deepcopy(case)], "seconds_cases": [], "resize_failures": []}


def more(number: float) -> float:
    return number + 1


@pytest.mark.parametrize(
    ("kind", "settings", "path", "quantity"),
    [
        ("sliding", {"test_mode": True}, ("windows", 0, "centres", 1), "places"),
        ("sliding", {"test_mode": True}, ("windows", 3, "valid"), "masks"),
        ("sliding", {"test_mode": True}, ("windows", 3, "meta", "window_start_frame"), "meta"),
        ("sliding", {"test_mode": True}, ("windows", 3, "meta", "fps"), "meta"),
        ("sliding", {"test_mode": True}, ("windows", 0, "pred_seconds", 0, 0), "seconds"),
        ("sliding", {"test_mode": True}, ("mended_windows", 0, 3), "fixed windows"),
        ("sliding", {"test_mode": True}, ("windows", 0, "frame_inds", "runs", 0, 1), "frames"),
        ("sliding", {"test_mode": False}, ("windows", 1, "gt_segments", 0, 0), "segments"),
        ("sliding", {"test_mode": False}, ("settings", "ioa_thresh"), "places"),
        ("sliding", {"offset_frames": 8}, ("settings", "offset_frames"), "meta"),
        ("resize", {"test_mode": False}, ("windows", 1, "gt_labels", 0), "labels"),
        ("resize", {"test_mode": False}, ("windows", 1, "gt_segments", 0, 1), "segments"),
        ("random_trunc", {"scale_factor": 2}, ("samples", 0, "gt_segments", 0, 1), "segments"),
        ("random_trunc", {"scale_factor": 2}, ("samples", 0, "draws", 0, 1), "draws"),
    ],
)
def test_a_changed_number_is_noticed(content, tmp_path, kind, settings, path, quantity):
    changed = first(content, kind, **settings)
    assert failures(changed, tmp_path) == []
    *parents, last = path
    place = changed["cases"][0]
    for key in parents:
        place = place[key]
    place[last] = more(place[last])
    assert any(line.endswith(f": {quantity}") for line in failures(changed, tmp_path))


def test_a_window_more_or_less_is_noticed(content, tmp_path):
    changed = first(content, "sliding", test_mode=True)
    changed["cases"][0]["windows"].pop()
    assert any("windows" in line for line in failures(changed, tmp_path))


def test_seconds_and_classes_are_compared(content, tmp_path):
    changed = {**copy.deepcopy(content), "cases": []}
    changed["seconds_cases"][1]["seconds"][0][1] += 1
    changed["class_map"]["classes"].reverse()
    assert failures(changed, tmp_path) == [
        "windows/seconds_cases: seconds", "windows/class_map: classes", "windows/class_map: fixed classes",
    ]  # fmt: skip
