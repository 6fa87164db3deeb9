"""Every golden case, the project's own and the reference's, within its tolerances; and a runner that can fail."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from adatad.parity.cases import CaseError, find_cases, read_case
from adatad.parity.compare import largest
from adatad.parity.model_case import run_case
from adatad.parity.verify import verify
from adatad.spec.schema import MemorySpec

OWN = Path(__file__).parents[1] / "golden"
SHARED = os.environ.get("ADATAD_SHARED")


POLICIES = {
    "selective": MemorySpec(policy="selective"),
    "block": MemorySpec(policy="block"),
    "tile": MemorySpec(policy="tile", tile_clips=1, segment_blocks=2),
    "tile rebuild": MemorySpec(policy="tile", tile_clips=2, segment_blocks=3, recompute="rebuild"),
}


def with_backbone() -> list[Path]:
    """The reference's cases that have one."""
    cases = find_cases(Path(SHARED or "/nowhere") / "golden" / "model")
    return [case for case in cases if json.loads((case / "case.json").read_text())["backbone"]]


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
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("folder", with_backbone(), ids=lambda path: path.name)
def test_case_of_the_reference_under_a_policy(folder, policy):
    assert failures(folder, POLICIES[policy]) == []


def copied_case(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OWN / "adapter_padded", tmp_path / "case"))


def change_array(file: Path, key: str) -> None:
    arrays = dict(np.load(file))
    arrays[key] = arrays[key] * 1.01 + 0.01
    np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("file", "key", "quantity"),
    [
        ("expected.npz", "train/block/1", "train/block"),
        ("expected.npz", "train/features", "train/features"),
        ("expected.npz", "train/logits/2", "train/logits"),
        ("expected.npz", "gradient/module.rpn_head.cls_head.weight", "gradients, joint"),
        ("expected.npz", "eval/scores/0", "eval/scores"),
        ("weights.npz", "module.backbone.model.backbone.blocks.0.mlp.layers.0.0.weight", "train/block"),
    ],
)
def test_a_changed_array_is_noticed(tmp_path, file, key, quantity):
    folder = copied_case(tmp_path)
    change_array(folder / file, key)
    assert any(line.startswith(quantity) for line in failures(folder))


@pytest.mark.parametrize(
    ("key", "quantity"),
    [
        ("losses", "trajectory: losses"),
        ("gradient_norm", "trajectory: gradient norms"),
        ("group_lrs", "trajectory: rates"),
    ],
)
def test_a_changed_step_is_noticed(tmp_path, key, quantity):
    folder = copied_case(tmp_path)
    expected = json.loads((folder / "expected.json").read_text())
    step = expected["trajectory"][3]
    match step[key]:
        case dict(values):
            values["cost"] *= 1.01
        case list(values):
            values[0] *= 1.01
        case number:
            step[key] = number * 1.01
    (folder / "expected.json").write_text(json.dumps(expected))
    assert any(line.startswith(quantity) for line in failures(folder))


def test_exit_codes(tmp_path, capsys):
    assert verify(tmp_path) == 2
    assert verify(tmp_path / "gone") == 2
    folder = copied_case(tmp_path)
    assert verify(tmp_path) == 0
    change_array(folder / "expected.npz", "train/features")
    assert verify(tmp_path, failures_only=True) == 1
    assert "OVER" in capsys.readouterr().out


def test_an_unreadable_case_fails_and_is_named(tmp_path, capsys):
    folder = copied_case(tmp_path)
    (folder / "inputs.npz").unlink()
    with pytest.raises(CaseError, match=r"inputs\.npz: missing"):
        read_case(folder)
    assert verify(tmp_path) == 1
    assert "inputs.npz" in capsys.readouterr().out.replace("\n", "")


def test_weights_without_a_place_are_named(tmp_path):
    folder = copied_case(tmp_path)
    arrays = dict(np.load(folder / "weights.npz"))
    arrays["module.decoder.weight"] = np.zeros(1, np.float32)
    np.savez(folder / "weights.npz", **arrays)
    with pytest.raises(CaseError, match=r"module\.decoder\.weight"):
        run_case(read_case(folder))


def test_nan_never_passes():
    assert np.isnan(largest([0.0, float("nan"), 1.0]))
