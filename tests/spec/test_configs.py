"""The published experiments: their sizes, and what is trained in them."""

import re
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
    row = re.sub(r"_\d+gb$", "", path.stem)
    adapter = COUNTS[row.replace("_frozen", "_adapter").replace("_full", "_adapter")]
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
