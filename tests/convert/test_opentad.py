"""Names of OpenTAD's checkpoints: every parameter has one place there, and comes back."""

import pytest
import torch

from adatad.convert.opentad_checkpoint import is_dropped, name_map, opentad_name, our_name
from adatad.models.detector import build_model
from adatad.spec.model_sections import AdapterSpec, BackboneSpec, DetectorSpec, ModelSpec

BACKBONE = {"width": 16, "depth": 2, "heads": 2, "patch": 8}


@pytest.mark.parametrize("mode", ["adapter", "side", "full"])
@pytest.mark.parametrize("neck", ["identity", "fpn"])
def test_every_parameter_has_its_own_name_there_and_comes_back(mode, neck):
    blocks = AdapterSpec(blocks=(0, 1))
    detector = DetectorSpec(width=8, neck=neck, neck_norm=True)
    backbone = BackboneSpec(**BACKBONE, mode=mode, adapter=blocks)
    with torch.device("meta"):
        model = build_model(ModelSpec(backbone=backbone, detector=detector), 3)
    ours = [name for name, _ in model.named_parameters()]
    theirs = [opentad_name(name) for name in ours]
    assert len(set(theirs)) == len(ours)
    assert [our_name(name) for name in theirs] == ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.model.backbone.blocks.3.adapter.conv.weight", "backbone.blocks.3.adapter.pointwise.weight"),
        ("backbone.model.backbone.blocks.3.adapter.dwconv.bias", "backbone.blocks.3.adapter.depthwise.bias"),
        ("backbone.model.backbone.ladders.adapters.1.up_proj.bias", "backbone.side_adapters.1.up.bias"),
        ("backbone.model.backbone.blocks.0.mlp.layers.0.0.weight", "backbone.blocks.0.mlp.fc1.weight"),
        ("projection.stem.0.attn.query_conv.conv.weight", "detector.projection.stem.0.attn.query_conv.conv.weight"),
        ("projection.branch.1.mlp.3.bias", "detector.projection.branch.1.mlp.2.bias"),
        ("projection.branch.1.drop_path_mlp.scale", "detector.projection.branch.1.mlp_scale"),
        ("rpn_head.scale.4.scale", "detector.head.scales.4"),
        ("neck.fpn_norms.2.weight", "detector.neck.norms.2.weight"),
    ],
)
def test_names(theirs, ours):
    assert our_name(theirs) == our_name("module." + theirs) == ours
    assert opentad_name(ours) == "module." + theirs


def test_what_has_no_place_here():
    dropped = [
        "module.backbone.model.backbone.pos_embed",
        "module.backbone.model.backbone.fc_norm.weight",
        "module.rpn_head.loss_normalizer",
    ]
    assert all(is_dropped(name) for name in dropped)
    assert name_map([*dropped, "module.rpn_head.cls_head.bias"]) == {
        "module.rpn_head.cls_head.bias": "detector.head.cls_head.bias"
    }
    with pytest.raises(KeyError, match="decoder"):
        our_name("module.decoder.weight")
