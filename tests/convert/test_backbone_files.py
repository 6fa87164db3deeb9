"""Files of other projects, made here in their own names: each gives the backbone that it was made from."""

import argparse

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from adatad.convert.backbone_weights import convert_backbone, initial_weights, load_backbone_weights
from adatad.convert.weight_file import WeightsError, read_weight_file
from adatad.models.families import build_backbone
from adatad.models.vit import sine_table
from adatad.spec.model_sections import AdapterSpec, BackboneSpec

SIZES = {"width": 16, "depth": 2, "heads": 2, "patch": 8, "mlp_ratio": 3, "position_grid": 2}


def backbone(seed=0, **changes):
    torch.manual_seed(seed)
    made = build_backbone(BackboneSpec(**{**SIZES, "mode": "full", **changes}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    return made


def original(made, prefix=""):
    """VideoMAE's names, as its fine-tuned files have them, with head and last norm."""
    tensors = {f"{prefix}{name}": p.detach().clone() for name, p in made.named_parameters() if "adapter" not in name}
    tensors = {name.replace("patch_embed.", "patch_embed.proj."): tensor for name, tensor in tensors.items()}
    ends = {"fc_norm.weight": torch.ones(16), "head.weight": torch.ones(5, 16), "head.bias": torch.ones(5)}
    return tensors | ends


def mmaction(made, prefix="backbone."):
    pairs = (("patch_embed.proj.", "patch_embed.projection."), (".fc1.", ".layers.0.0."), (".fc2.", ".layers.1."))
    renamed = original(made)
    for new, old in pairs:
        renamed = {name.replace(new, old): tensor for name, tensor in renamed.items()}
    head = {"head.weight": "cls_head.fc_cls.weight", "head.bias": "cls_head.fc_cls.bias"}
    renamed = {head.get(name, prefix + name): tensor for name, tensor in renamed.items()}
    return renamed | {f"{prefix}pos_embed": sine_table(8 * 4, 16)}


def hugging_face(made, prefix="videomae."):
    pairs = (
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("blocks.", "encoder.layer."),
        (".attn.proj.", ".attention.output.dense."), (".attn.", ".attention.attention."),
        (".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."),
        (".mlp.fc1.", ".intermediate.dense."), (".mlp.fc2.", ".output.dense."), ("head.", "classifier."))  # fmt: skip
    tensors = {}
    for name, tensor in original(made).items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        outside = name.startswith(("classifier", "fc_norm"))
        if name.endswith("qkv.weight"):
            for kind, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[prefix + name.replace("qkv", kind)] = part.clone()
        else:
            tensors[name if outside else prefix + name] = tensor
    return tensors


def with_whole_bias(tensors):
    """One bias of queries, keys and values, as in timm's blocks."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith("q_bias")]:
        value = tensors.pop(name.replace("q_bias", "v_bias"))
        query = tensors.pop(name)
        tensors[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.randn(16), value])
    return tensors


def pretrained(made):
    rest = {"mask_token": torch.ones(1, 1, 8), "encoder_to_decoder.weight": torch.ones(8, 16),
            "decoder.blocks.0.attn.qkv.weight": torch.ones(24, 8), "encoder.norm.weight": torch.ones(16)}  # fmt: skip
    encoder = {name: tensor for name, tensor in original(made, "encoder.").items() if name.startswith("encoder.")}
    return {"model": encoder | rest, "epoch": 799, "args": argparse.Namespace(model="pretrain_videomae", lr=1e-3)}


def averaged(made):
    prefix = "module.backbone.model.backbone."
    bare = {name: torch.zeros_like(tensor) for name, tensor in mmaction(made, prefix).items()}
    return {"epoch": 3, "state_dict": bare, "state_dict_ema": mmaction(made, prefix)}


FORMATS = {
    "VideoMAE or VideoMAEv2, fine-tuned": lambda made: {"module": original(made)},
    "VideoMAE, pre-trained": pretrained,
    "mmaction2": lambda made: {"meta": {"epoch": 1}, "state_dict": mmaction(made)},
    "InternVideo (VideoMAE's names behind backbone.)": lambda made: {"model": original(made, "backbone.")},
    "InternVideo (VideoMAE's names behind visual.)": lambda made: with_whole_bias(original(made, "visual.")),
    "Hugging Face VideoMAE": hugging_face,
    "OpenTAD checkpoint": averaged,
}


@pytest.mark.parametrize("title", FORMATS)
def test_every_format_gives_the_backbone_that_it_was_made_from(title, tmp_path):
    made, file = backbone(), tmp_path / "weights.pth"
    torch.save(FORMATS[title](made), file)
    fresh = backbone(seed=1, mode="adapter", adapter=AdapterSpec(blocks=(1,)))
    adapters = {name: p.detach().clone() for name, p in fresh.named_parameters() if "adapter" in name}
    loaded = load_backbone_weights(fresh, file)
    assert loaded.title == title
    assert loaded.mapped == len(list(made.parameters()))
    got = dict(fresh.named_parameters())
    assert all(torch.equal(got[name], parameter) for name, parameter in made.named_parameters())
    assert all(torch.equal(got[name], tensor) for name, tensor in adapters.items())
    ignored = {name for names in loaded.ignored.values() for name in names}
    assert any("norm.weight" in name for name in ignored) == ("whole" not in title)


@given(width=st.sampled_from([8, 16, 24]), depth=st.integers(1, 3), wrapped=st.booleans())
def test_hugging_face_files_of_any_size(tmp_path_factory, width, depth, wrapped):
    sizes = {"width": width, "depth": depth}
    made = backbone(**sizes)
    file = tmp_path_factory.mktemp("hf") / "model.safetensors"
    save_file(hugging_face(made, "videomae." if wrapped else ""), file)
    fresh = backbone(seed=1, **sizes)
    load_backbone_weights(fresh, file)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), fresh.parameters(), strict=True))


def test_a_bias_of_keys_changes_no_feature():
    made = backbone()
    attention, x = made.blocks[0].attn, torch.randn(2, 8, 16)
    whole = torch.cat([attention.q_bias, torch.randn(16), attention.v_bias])
    q, k, v = torch.nn.functional.linear(x, attention.qkv.weight, whole).reshape(2, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
    scores = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1) @ v
    expected = attention.proj(scores.transpose(1, 2).reshape(2, 8, 16))
    assert torch.allclose(attention(x), expected, atol=1e-6)


def test_a_model_of_another_size_is_refused_with_both_sizes(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(original(backbone(depth=3)), file)
    fresh = backbone(seed=1)
    before = [parameter.detach().clone() for parameter in fresh.parameters()]
    with pytest.raises(WeightsError, match=r"weights\.pth: .*width 16, depth 3, .*width 16, depth 2, "):
        load_backbone_weights(fresh, file)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.parameters(), strict=True))
    with torch.device("meta"):
        small, base = (build_backbone(BackboneSpec(preset=preset, mode="full")) for preset in ("small", "base"))
    torch.save(original_shapes(small), file)
    with pytest.raises(WeightsError, match=r"the file is small \(width 384, .* the spec's base \(width 768"):
        load_backbone_weights(base, file)


def original_shapes(made):
    return {name.replace("patch_embed.", "patch_embed.proj."): torch.zeros(p.shape, dtype=torch.uint8)
            for name, p in made.named_parameters()}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.norm2.bias"), r"missing blocks\.1\.norm2\.bias"),
        (lambda t: t.update({"blocks.1.gamma_1": torch.ones(16)}), r"unknown blocks\.1\.gamma_1"),
        (lambda t: t.update({"cls_token": torch.ones(1, 1, 16)}), r"unknown cls_token"),
        (lambda t: t.update({"blocks.1.norm2.bias": torch.ones(3)}), r"norm2\.bias is \(3,\), expected \(16,\)"),
        (lambda t: t.pop("patch_embed.proj.weight"), r"of no known format"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    tensors, file = original(backbone()), tmp_path / "weights.pth"
    change(tensors)
    torch.save(tensors, file)
    with pytest.raises(WeightsError, match=message):
        load_backbone_weights(backbone(seed=1), file)


def test_position_tables_as_the_reference_treats_them(tmp_path):
    file, table = tmp_path / "weights.pth", torch.randn(1, 8 * 4, 16)
    torch.save(mmaction(backbone()) | {"backbone.pos_embed": table}, file)
    fresh = backbone(seed=1)
    assert load_backbone_weights(fresh, file).positions == "those of the file"
    assert torch.equal(fresh.position_table, table)
    other = backbone(seed=1, position_grid=3)
    assert "(1, 32, 16), not (1, 72, 16)" in load_backbone_weights(other, file).positions
    assert torch.equal(other.position_table, sine_table(8 * 9, 16))


class Bomb:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    file = tmp_path / "bomb.pth"
    torch.save({"model": original(backbone()), "more": Bomb()}, file)
    with pytest.raises(WeightsError, match=r"bomb\.pth: holds more than tensors and numbers.*print"):
        read_weight_file(file)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("a.pth", b"nothing"), ("a.pth", b""), ("a.safetensors", b"nothing")])
def test_what_is_no_weight_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name}: (not a readable|holds more)"):
        read_weight_file(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"b\.pth: no parameters found: .*got epoch"):
        read_weight_file(tmp_path / "b.pth")


def test_training_needs_weights_or_the_word_random(tmp_path):
    fresh = backbone()
    assert initial_weights(fresh, "random") == ["random backbone, as model.backbone.weights asks for"]
    with pytest.raises(WeightsError, match="say random"):
        initial_weights(fresh, None)
    name = "vit-small-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth"
    with pytest.raises(WeightsError, match=rf"no file my/{name}; fetch it: adatad weights fetch {name} --output my$"):
        initial_weights(fresh, f"my/{name}")


def test_a_converted_file_is_named_as_mmaction2_does_and_reads_the_same(run_command, tmp_path):
    made, source = backbone(), tmp_path / "vit_g_hybrid_pt_1200e_k710_ft.pth"
    torch.save({"module": original(made)}, source)
    done = run_command("weights import", source, "--output", tmp_path / "converted.pth")
    assert done.returncode == 0, done.stderr
    assert "VideoMAE or VideoMAEv2, fine-tuned, width 16, depth 2" in done.stdout
    convert_backbone(source, tmp_path / "converted.safetensors")
    for output in (tmp_path / "converted.pth", tmp_path / "converted.safetensors"):
        fresh = backbone(seed=1, position_grid=28)
        load_backbone_weights(fresh, output)
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), fresh.parameters(), strict=True))
    state = torch.load(tmp_path / "converted.pth", weights_only=True)["state_dict"]
    assert state.keys() == mmaction(made).keys()
    assert torch.equal(state["backbone.pos_embed"], sine_table(8 * 28**2, 16))
    (tmp_path / "other.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"other\.pth: not a readable"):
        convert_backbone(tmp_path / "other.pth", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()
