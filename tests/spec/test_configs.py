"""The published experiments: their sizes, and what is trained in them."""

import json
from pathlib import Path

import pytest
import torch

from adatad.models.detector import build_model
from adatad.models.trained import freeze
from adatad.spec import load
from adatad.training.optimizer import parameter_groups

THUMOS = Path(__file__).parents[2] / "configs" / "thumos"

# Trained parameters of the reference's models, and all but its unused final norm (2 x width).
COUNTS = {
    "s_768x160_adapter": (27_702_568, 49_582_504 - 2 * 384),
    "s_768x160_side": (27_199_138, 49_078_306),
    "b_768x160_adapter": (31_289_896, 117_517_096 - 2 * 768),
    "l_768x160_adapter": (41_895_988, 345_756_724 - 2 * 1024),
    "h_768x160_adapter": (57_665_596, 689_272_636 - 2 * 1280),
    "g_768x160_adapter": (73_014_852, 1_084_625_604 - 2 * 1408),
    "g_1536x224_adapter": (50_641_712, 1_062_252_464 - 2 * 1408),
    "g_1536x224_side": (38_849_712, 1_050_457_648),
}


@pytest.mark.parametrize("path", sorted(THUMOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_published_model_has_the_reference_s_parameters(path):
    spec = load(path, check_files=False)
    with torch.device("meta"):
        model = build_model(spec.model, num_classes=20)
    freeze(model, spec.model.backbone)
    groups = parameter_groups(model, spec.optimizer)
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    total = sum(parameter.numel() for parameter in model.parameters())
    adapter = COUNTS[path.stem.replace("_frozen", "_adapter").replace("_full", "_adapter")]
    match spec.model.backbone.mode:
        case "frozen":
            detector = sum(parameter.numel() for parameter in model.detector.parameters())
            assert trained == detector < adapter[0]
        case "full":
            assert trained == total == adapter[1] - (adapter[0] - _detector(model))
        case _:
            assert (trained, total) == adapter


def _detector(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.detector.parameters())


def test_every_published_row_repeats_the_reference_and_says_what_it_reached():
    for path in THUMOS.glob("*.yaml"):
        spec = load(path, check_files=False)
        assert spec.compat == "reference"
        has_result = spec.model.backbone.mode in ("adapter", "side") and path.stem != "s_768x160_side"
        assert (spec.published is not None) == has_result


def id_of_row(name: str) -> str:
    """What the reference calls an experiment: b_768x160_full is e2e_thumos_videomae_b_768x1_160_fullft."""
    size, window, mode = name.split("_")
    frames, pixels = window.split("x")
    backbone = "videomaev2" if size == "g" else "videomae"
    end = {"full": "fullft", "side": "side_2e-4" if size == "g" else "side"}.get(mode, mode)
    return f"thumos/e2e_thumos_{backbone}_{size}_768x{int(frames) // 768}_{pixels}_{end}"


@pytest.mark.parametrize("path", sorted(THUMOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_training_frames_are_changed_as_in_the_reference(path, shared_folder):
    rows = {row["id"]: row for row in json.loads((shared_folder / "rows.json").read_text())["rows"]}
    steps = {step["op"]: step for step in rows[id_of_row(path.stem)]["data"]["train"]["pipeline"]}
    data = load(path, check_files=False).data
    short_side = steps["resize_short_side"]["size"]
    if "random_area_crop" not in steps:
        assert data.augment is None
        assert data.size_pixels == short_side
        return
    assert data.augment.crop_short_side_pixels == short_side
    assert [data.size_pixels] * 2 == steps["resize_exact_wh"]["size"]
    assert data.augment.flip == steps["horizontal_flip"]["p"]
    assert data.augment.rand_augment is ("rand_augment_15" in steps)
    jitter = data.augment.color_jitter.model_dump()
    assert jitter == {name: steps["color_jitter"][name] for name in jitter}
