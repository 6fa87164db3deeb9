"""V-JEPA 2's files in both layouts, made here in tiny sizes: each gives the backbone that it was made from."""

import pytest
import torch
from safetensors.torch import save_file

from adatad.convert.backbone_weights import convert_backbone, initial_weights, load_backbone_weights
from adatad.convert.licences import VJEPA2, licence_of
from adatad.convert.weight_file import WeightsError, read_weight_file
from adatad.models.families import build_backbone
from adatad.spec.model_sections import BackboneSpec

SIZES = {"width": 24, "depth": 2, "heads": 2, "patch": 8, "mlp_ratio": 3}


def backbone(seed=0, **changes):
    torch.manual_seed(seed)
    made = build_backbone(BackboneSpec(**{**SIZES, "preset": "vjepa2-large", "mode": "full", **changes}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    return made


def bare(made):
    """The names of the authors' modules."""
    pairs = (("patch_embed.", "patch_embed.proj."), ("final_norm.", "norm."))
    tensors = {name: p.detach().clone() for name, p in made.named_parameters() if "adapter" not in name}
    for ours, theirs in pairs:
        tensors = {theirs + n.removeprefix(ours) if n.startswith(ours) else n: t for n, t in tensors.items()}
    return tensors


def authors(made, **parts):
    """A checkpoint of theirs; its target encoder is what features come from."""
    target = {f"module.backbone.{name}": tensor for name, tensor in bare(made).items()}
    target["module.backbone.pos_embed"] = torch.ones(1, 4, 24)
    student = {name: torch.zeros_like(tensor) for name, tensor in target.items()}
    predictor = {"module.backbone.predictor_blocks.0.attn.qkv.weight": torch.ones(9, 3)}
    state = {"encoder": student, "target_encoder": target, "predictor": predictor, "opt": {"lr": 1e-3}, "epoch": 3}
    return {**state, **parts}


def hugging_face(made, prefix=""):
    tensors = {}
    for name, tensor in bare(made).items():
        for ours, theirs in (("patch_embed.proj.", "embeddings.patch_embeddings.proj."), ("blocks.", "layer."),
                             (".attn.", ".attention.")):  # fmt: skip
            name = name.replace(ours, theirs)
        name = f"{prefix}encoder.{'layernorm.' + name[5:] if name.startswith('norm.') else name}"
        for kind, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            if ".qkv." in name:
                tensors[name.replace("qkv", kind)] = part.clone()
        if ".qkv." not in name:
            tensors[name] = tensor
    others = {"predictor.layernorm.weight": torch.ones(12), "predictor.layer.0.norm1.weight": torch.ones(12)}
    return tensors | {prefix + name: tensor for name, tensor in others.items()} | {"pooler.cross.bias": torch.ones(2)}


FORMATS = {
    "V-JEPA 2": [authors, lambda made: authors(made)["target_encoder"], bare],
    "Hugging Face V-JEPA 2": [hugging_face, lambda made: hugging_face(made, "vjepa2.")],
    "AdaTAD": [lambda made: {name: p.detach().clone() for name, p in made.named_parameters()}],
}


@pytest.mark.parametrize(
    ("title", "form"), [pytest.param(t, f, id=f"{t} {n}") for t, forms in FORMATS.items() for n, f in enumerate(forms)]
)
def test_every_form_gives_the_backbone_that_it_was_made_from(title, form, tmp_path):
    made, file = backbone(), tmp_path / "weights.pt"
    torch.save(form(made), file)
    fresh = backbone(seed=1, mode="adapter")
    adapters = {name: p.detach().clone() for name, p in fresh.named_parameters() if "adapter" in name}
    loaded = load_backbone_weights(fresh, file)
    assert loaded.title == title
    assert loaded.mapped == len(list(made.parameters()))
    got = dict(fresh.named_parameters())
    assert all(torch.equal(got[name], parameter) for name, parameter in made.named_parameters())
    assert all(torch.equal(got[name], tensor) for name, tensor in adapters.items())


def test_a_converted_file_is_read_back(tmp_path):
    made, source, output = backbone(), tmp_path / "model.safetensors", tmp_path / "ours.safetensors"
    save_file(hugging_face(made), source)
    lines = convert_backbone(source, output)
    assert "Hugging Face V-JEPA 2" in lines[0]
    assert read_weight_file(output).tensors.keys() == dict(made.named_parameters()).keys()
    fresh = backbone(seed=1)
    load_backbone_weights(fresh, output)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), fresh.parameters(), strict=True))
    with pytest.raises(WeightsError, match="OpenTAD has no V-JEPA 2"):
        convert_backbone(source, tmp_path / "ours.pth")
    assert not (tmp_path / "ours.pth").exists()


def test_files_of_another_family_or_size_are_refused_by_name(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(hugging_face(backbone()), file)
    before = backbone(seed=1, depth=3)
    kept = {name: p.detach().clone() for name, p in before.named_parameters()}
    with pytest.raises(WeightsError, match=r"depth 2.*the spec's a size without a name \(.*depth 3.* of V-JEPA 2"):
        load_backbone_weights(before, file)
    assert all(torch.equal(kept[name], p) for name, p in before.named_parameters())
    with pytest.raises(WeightsError, match=r"the file is .* of V-JEPA 2, the spec's .* of VideoMAE"):
        load_backbone_weights(backbone(preset="large", position_grid=2), file)
    videomae = backbone(preset="large", position_grid=2)
    torch.save({name: p.detach() for name, p in videomae.named_parameters()}, tmp_path / "videomae.pth")
    with pytest.raises(WeightsError, match=r"the file is .* of VideoMAE, the spec's .* of V-JEPA 2"):
        load_backbone_weights(backbone(), tmp_path / "videomae.pth")


def without(part):
    def damage(tensors):
        del tensors[next(name for name in tensors if name.endswith(part))]

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("encoder.layernorm.bias"), r"missing final_norm\.bias"),
        (without("layer.1.attention.key.bias"), r"missing blocks\.1\.attn\.qkv\.bias"),
        (lambda t: t.update({"encoder.layer.0.mlp.gate.weight": torch.ones(2)}), r"unknown blocks\.0\.mlp\.gate"),
        (lambda t: t.update({"encoder.registers": torch.ones(2)}), r"unknown encoder\.registers"),
        (lambda t: t.update({"encoder.layernorm.bias": torch.full((24,), torch.nan)}), r"final_norm\.bias holds NaN"),
        (
            lambda t: t.update({"encoder.layernorm.bias": torch.ones(3)}),
            r"final_norm\.bias is \(3,\), expected \(24,\)",
        ),
    ],
)
def test_damaged_files_are_refused_and_change_nothing(damage, message, tmp_path):
    tensors = hugging_face(backbone())
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    fresh = backbone(seed=1)
    kept = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    with pytest.raises(WeightsError, match=message):
        load_backbone_weights(fresh, tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], p) for name, p in fresh.named_parameters())


@pytest.mark.parametrize("key", ["target_encoder", "ema_encoder"])
def test_an_encoder_of_the_next_version_is_read_with_its_vector_of_videos(key, tmp_path):
    made, vector = backbone(preset="vjepa2.1-large"), torch.randn(1, 1, 24)
    tensors = {f"module.backbone.{name}": tensor for name, tensor in bare(made).items()}
    for kind in ("weight", "bias"):
        # Of four norms behind blocks the last one is the encoder's.
        norm = tensors.pop(f"module.backbone.norm.{kind}")
        tensors |= {f"module.backbone.norms_block.{n}.{kind}": torch.zeros(24) for n in range(3)}
        tensors[f"module.backbone.norms_block.3.{kind}"] = norm
    tensors["module.backbone.patch_embed_img.proj.weight"] = torch.ones(24, 3, 1, 8, 8)
    tensors["module.backbone.img_mod_embed"] = torch.ones(1, 1, 24)
    tensors["module.backbone.patch_embed.proj.bias"] -= vector[0, 0]
    tensors["module.backbone.video_mod_embed"] = vector
    torch.save({"encoder": {}, key: tensors}, tmp_path / "v.pt")
    fresh = backbone(seed=1, preset="vjepa2.1-large")
    assert load_backbone_weights(fresh, tmp_path / "v.pt").title == "V-JEPA 2.1"
    for one, other in zip(fresh.parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(WeightsError, match=r"of V-JEPA 2\.1, the spec's .* of V-JEPA 2$"):
        load_backbone_weights(backbone(), tmp_path / "v.pt")
    with pytest.raises(WeightsError, match="needs no conversion"):
        convert_backbone(tmp_path / "v.pt", tmp_path / "ours.safetensors")


@pytest.mark.parametrize("folder", ["vjepa2-vitl-fpc64-256", "models--facebook--vjepa2-vitg-fpc64-384"])
def test_the_licence_is_known_by_the_folder_of_a_download(folder):
    assert licence_of(f"pretrained/{folder}/model.safetensors") == VJEPA2


def test_a_missing_file_s_message_gives_the_command_that_fetches_it():
    with pytest.raises(WeightsError, match="fetch it: adatad weights fetch vjepa2-vitl-fpc64-256 --output"):
        initial_weights(backbone(), "nowhere/vjepa2-vitl-fpc64-256/model.safetensors")
