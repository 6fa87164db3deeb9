"""The reference's transforms, all of them to the last bit but for warps; and a comparison that can fail."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adatad.dev.parity.golden_cases import CaseError
from adatad.dev.parity.verify_golden import run_data_file


def test_transforms_of_the_reference(shared_folder):
    rows = run_data_file(shared_folder / "golden" / "data" / "transforms.json")
    assert [row for row in rows if not row.passed] == []
    # Better than asked for.
    assert [row for row in rows if row.error and row.quantity != "mean level"] == []
    assert max(row.error for row in rows) < 0.4


def write(folder, name: str, image: np.ndarray, result: np.ndarray, **case) -> None:
    np.savez(folder / "transforms.npz", **{f"{name}.in0": image, f"{name}.out0": result})
    case = {"name": name, "frames": 1, "in_hw": list(image.shape[:2]), "out_hw": list(result.shape[:2]), **case}
    (folder / "transforms.json").write_text(json.dumps({"cases": [case]}))


def test_a_wrong_result_is_noticed(tmp_path):
    image = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
    write(tmp_path, "flip", image, image[:, ::-1], op="horizontal_flip")
    assert all(row.passed for row in run_data_file(tmp_path / "transforms.json"))
    write(tmp_path, "flip", image, image, op="horizontal_flip")
    assert not any(row.passed for row in run_data_file(tmp_path / "transforms.json"))
    write(tmp_path, "cut", image, image[:, 1:7], op="center_crop", size=6, box=[0, 0, 6, 6])
    assert [row.quantity for row in run_data_file(tmp_path / "transforms.json") if not row.passed] == ["box"]
    write(tmp_path, "short", image, image, op="resize_short_side", size=5)
    assert not any(row.passed for row in run_data_file(tmp_path / "transforms.json"))


def test_what_cannot_be_compared_is_named(tmp_path):
    image = np.zeros((6, 8, 3), np.uint8)
    write(tmp_path, "odd", image, image, op="vertical_flip")
    (row,) = run_data_file(tmp_path / "transforms.json")
    assert not row.passed
    assert "'vertical_flip' isn't a transform" in row.quantity
    (tmp_path / "transforms.npz").unlink()
    with pytest.raises(CaseError, match=r"transforms\.npz: can't be read"):
        run_data_file(tmp_path / "transforms.json")


def crop_box(folder, box: list[int], **case) -> bool:
    """Whether a random cut of a very wide image, none of whose candidates fits, is what a case says."""
    np.savez(folder / "transforms.npz", none=np.zeros(1))
    case = {"in_hw": [30, 400], "aspects": [0.8, 1.2], "area_fractions": [0.9, 0.8], "box": box, **case}
    (folder / "transforms.json").write_text(json.dumps({"crop_boxes": [case]}))
    return all(row.passed for row in run_data_file(folder / "transforms.json"))


@pytest.mark.parametrize("said", [{}, {"fallback": True}, {"fallback": None}])
def test_a_random_cut_without_a_fitting_candidate_is_the_square_in_the_middle(tmp_path, said):
    assert crop_box(tmp_path, [185, 0, 215, 30], **said)
    assert not crop_box(tmp_path, [184, 0, 214, 30], **said)
    assert not crop_box(tmp_path, [185, 0, 214, 30], **said)
