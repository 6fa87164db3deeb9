"""Every golden case, the project's own and the reference's, within its tolerances; and a runner that can fail."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from adatad.dev.parity import golden_cases, model_case
from adatad.dev.parity.comparison import NOT_COMPUTED, largest
from adatad.dev.parity.golden_cases import CaseError, find_cases, read_case
from adatad.dev.parity.model_case import run_case
from adatad.dev.parity.verify_golden import verify
from adatad.spec.schema import MemorySpec

OWN = Path(__file__).parents[1] / "golden"
SHARED = os.environ.get("ADATAD_SHARED")


POLICIES = {
    "selective": MemorySpec(policy="selective"),
    "block": MemorySpec(policy="block"),
    "tile": MemorySpec(policy="tile", tile_clips=1, segment_blocks=2),
    "tile rebuild": MemorySpec(policy="tile", tile_clips=2, segment_blocks=3, recompute="twice"),
}


def under_policies() -> list:
    """The reference's cases that have a backbone, each under every policy; without --full under two, which change from
    case to case: that policies are exact for any shape, tests/memory shows."""
    cases = find_cases(Path(SHARED or "/nowhere") / "golden" / "model")
    cases = [case for case in cases if json.loads((case / "case.json").read_text())["backbone"]]
    return [
        pytest.param(case, name, id=f"{case.name}-{name}", marks=[] if (c + p) % 2 == 0 else pytest.mark.full)
        for c, case in enumerate(cases)
        for p, name in enumerate(POLICIES)
    ]


def failures(folder: Path, memory: MemorySpec | None = None) -> list[str]:
    rows = run_case(read_case(folder), memory, double_trajectory=memory is not None)
    return [f"{row.quantity}: {row.error:.2e} > {row.tolerance:.0e}" for row in rows if not row.passed]


@pytest.mark.parametrize("folder", find_cases(OWN), ids=lambda path: path.name)
def test_own_case(folder):
    assert failures(folder) == []


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="ADATAD_SHARED, the folder of the reference's goldens, isn't set")
@pytest.mark.parametrize(
    "folder", find_cases(Path(SHARED or "/nowhere") / "golden" / "model"), ids=lambda path: path.name
)
def test_case_of_the_reference(folder):
    assert failures(folder) == []


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="ADATAD_SHARED, the folder of the reference's goldens, isn't set")
@pytest.mark.parametrize(("folder", "policy"), under_policies())
def test_case_of_the_reference_under_a_policy(folder, policy):
    assert failures(folder, POLICIES[policy]) == []


def copied_case(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OWN / "adapter_padded", tmp_path / "case"))


def change_arrays(file: Path, *keys: str) -> None:
    arrays = dict(np.load(file))
    arrays |= {key: arrays[key] * 1.01 + 0.01 for key in keys}
    np.savez(file, **arrays)


EXPECTED = {
    "train/block/1": "train/block",
    "train/features": "train/features",
    "train/logits/2": "train/logits",
    "gradient/module.rpn_head.cls_head.weight": "gradients, joint",
    "eval/scores/0": "eval/scores",
}
"""What is noticed if an array is changed that the model's are compared with: one array in one comparison."""
STEP = {"losses": "trajectory: losses", "gradient_norm": "trajectory: gradient norms", "group_lrs": "trajectory: rates"}


def test_changed_arrays_and_figures_of_a_step_are_noticed_each(tmp_path):
    folder = copied_case(tmp_path)
    change_arrays(folder / "expected.npz", *EXPECTED)
    expected = json.loads((folder / "expected.json").read_text())
    step = expected["trajectory"][3]
    step["losses"]["cost"] *= 1.01
    step["gradient_norm"] *= 1.01
    step["group_lrs"][0] *= 1.01
    (folder / "expected.json").write_text(json.dumps(expected))
    noticed = failures(folder)
    for quantity in (*EXPECTED.values(), *STEP.values()):
        assert any(line.startswith(quantity) for line in noticed), (quantity, noticed)


def test_a_changed_weight_is_noticed(tmp_path):
    folder = copied_case(tmp_path)
    change_arrays(folder / "weights.npz", "module.backbone.model.backbone.blocks.0.mlp.layers.0.0.weight")
    assert any(line.startswith("train/block") for line in failures(folder))


def test_exit_codes(tmp_path, capsys):
    folder = copied_case(tmp_path)
    assert verify(tmp_path) == 0
    change_arrays(folder / "expected.npz", "train/features")
    assert verify(tmp_path, failures_only=True) == 1
    assert "OVER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "holds no case: neither a folder with case.json"),
        (lambda folder: folder.rmdir(), "no such folder"),
        (lambda folder: (folder.rmdir(), folder.write_text("")), "is a file"),
        (lambda folder: [(folder / str(n)).mkdir() for n in range(4)], "holds more than 3 folders"),
    ],
)
def test_a_folder_without_cases_is_refused(tmp_path, monkeypatch, make, says):
    monkeypatch.setattr(golden_cases, "MAX_FOLDERS", 3)
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    with pytest.raises(CaseError, match=says):
        verify(folder)


def unlinked(file: Path) -> None:
    file.unlink()


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def nested(file: Path) -> None:
    file.write_text("[" * 100_000)


def a_list(file: Path) -> None:
    file.write_text("[1]")


def one_array(file: Path) -> None:
    with open(file, "wb") as out:
        np.save(out, np.zeros(3))


def without_classes(file: Path) -> None:
    facts = json.loads(file.read_text())
    del facts["detector"]["classes"]
    file.write_text(json.dumps(facts))


def other_shape(file: Path) -> None:
    arrays = dict(np.load(file))
    arrays["masks"] = arrays["masks"][:, :5]
    np.savez(file, **arrays)


def without_masks(file: Path) -> None:
    arrays = dict(np.load(file))
    del arrays["train/level_mask/0"]
    np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("inputs.npz", unlinked, "missing"),
        ("inputs.npz", cut, "can't be read"),
        ("weights.npz", emptied, "can't be read"),
        ("expected.npz", one_array, "expected an .npz file of several arrays"),
        ("case.json", emptied, "it is empty"),
        ("case.json", cut, "not readable as JSON"),
        ("case.json", nested, "nested too deeply"),
        ("expected.json", a_list, "expected a JSON object"),
        ("case.json", without_classes, "'classes' is missing"),
        ("inputs.npz", other_shape, "masks: expected the shape ["),
        ("expected.npz", without_masks, "'train/level_mask/0' is missing"),
    ],
)
def test_a_damaged_case_fails_in_a_line_that_names_it(tmp_path, capsys, name, damage, says):
    folder = copied_case(tmp_path)
    damage(folder / name)
    assert verify(tmp_path) == 2
    out, err = capsys.readouterr()
    assert out == "1 cases, 0 files, 0 comparisons, 0 over tolerance, 0 not computed, 1 unreadable\n"
    assert err.count("\n") == 1
    assert str(folder) in err
    assert says in err


def test_a_file_without_comparisons_is_not_ok(tmp_path, capsys):
    (tmp_path / "nms.json").write_text('{"wrapper_case": []}')
    assert verify(tmp_path) == 2
    assert "nms.json: holds nothing to compare" in capsys.readouterr().err


def test_a_case_inside_a_file_that_cannot_be_run_is_unreadable(tmp_path, capsys):
    (tmp_path / "nms.json").write_text('{"wrapper_cases": [{"name": "bad[red]"}]}')
    assert verify(tmp_path) == 2
    out = capsys.readouterr().out
    assert "bad[red]" in out
    assert "0 over tolerance" in out
    assert "1 unreadable" in out


def with_an_idle_block(tmp_path: Path) -> Path:
    """The side variant's case with a third block, which feeds no adapter."""
    folder = Path(shutil.copytree(OWN / "side_pyramid", tmp_path / "side"))
    facts = json.loads((folder / "case.json").read_text())
    facts["backbone"]["depth"] = 3
    (folder / "case.json").write_text(json.dumps(facts))
    weights = dict(np.load(folder / "weights.npz"))
    weights |= {name.replace(".blocks.1.", ".blocks.2."): array for name, array in weights.items()}
    np.savez(folder / "weights.npz", **weights)
    arrays = dict(np.load(folder / "expected.npz"))
    np.savez(folder / "expected.npz", **arrays, **{"train/block/2": arrays["train/block/1"] + 1})
    return folder


@pytest.mark.parametrize("policy", ["none", "block", "tile"])
def test_a_block_that_the_side_variant_does_not_run_is_not_computed(tmp_path, policy):
    rows = run_case(read_case(with_an_idle_block(tmp_path)), MemorySpec(policy=policy))
    assert [row.quantity for row in rows if not row.passed] == []
    idle = [row for row in rows if row.verdict == NOT_COMPUTED]
    expected = "train/block:" if policy == "tile" else "train/block/2:"
    assert [row.quantity.split()[0] for row in idle if "block" in row.quantity.split(":")[0]][-1] == expected


@pytest.mark.parametrize(("also_in_double", "said"), [(False, ["steps (in float64)"]), (True, ["steps"])])
def test_float64_decides_where_float32_ends_over_tolerance(monkeypatch, also_in_double, said):
    def trajectory(checks, parts):
        double = next(parts.model.parameters()).dtype == torch.float64
        checks.add("steps", 0.0 if double and not also_in_double else 1.0, "loss")

    monkeypatch.setattr(model_case, "trajectory", trajectory)
    case = read_case(OWN / "side_pyramid")
    rows = model_case.trained_rows(case, model_case.spec_of(case), double=False)
    assert [row.quantity for row in rows] == said
    assert all(row.passed for row in rows) is not also_in_double


def test_a_block_that_is_missing_elsewhere_is_over_tolerance(tmp_path):
    folder = copied_case(tmp_path)
    arrays = dict(np.load(folder / "expected.npz"))
    np.savez(folder / "expected.npz", **arrays, **{"train/block/9": arrays["train/block/1"]})
    assert [line for line in failures(folder) if line.startswith("train/block: inf")]


def test_weights_without_a_place_are_named(tmp_path):
    folder = copied_case(tmp_path)
    arrays = dict(np.load(folder / "weights.npz"))
    arrays["module.decoder.weight"] = np.zeros(1, np.float32)
    np.savez(folder / "weights.npz", **arrays)
    with pytest.raises(CaseError, match=r"module\.decoder\.weight"):
        run_case(read_case(folder))


def test_nan_never_passes():
    assert np.isnan(largest([0.0, float("nan"), 1.0]))
