"""Files of InternVideo2 and InternVideo-Next, made here in tiny sizes: each gives the backbone that it was made of."""

import pytest
import torch
import torch.nn.functional as F

from adatad.convert.backbone_weights import convert_backbone, load_backbone_weights
from adatad.convert.learned_positions import fit_positions
from adatad.convert.licences import INTERNVIDEO2, licence_of
from adatad.convert.weight_file import WeightsError
from adatad.models.families import build_backbone
from adatad.spec.model_sections import BackboneSpec

SIZES = {"width": 24, "depth": 2, "heads": 2, "patch": 8, "mlp_ratio": 3, "position_grid": 3}


def backbone(seed=0, **changes):
    torch.manual_seed(seed)
    made = build_backbone(BackboneSpec(**{**SIZES, "preset": "internvideo2-1b", "mode": "full", **changes}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    return made


def bare(made):
    """The names of the authors' modules."""
    pairs = (
        ("patch_embed.class_token", "cls_token"), ("patch_embed.positions", "pos_embed"),
        ("patch_embed.weight", "patch_embed.proj.weight"), ("patch_embed.bias", "patch_embed.proj.bias"),
        (".attn.scale", ".ls1.gamma"), (".mlp.scale", ".ls2.gamma"),
    )  # fmt: skip
    tensors = {}
    for name, parameter in made.named_parameters():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        if ".adapter." not in name:
            tensors[name] = parameter.detach().clone()
    return tensors


def with_others(tensors):
    """A pretrained encoder, with what is learned beside it."""
    table = torch.ones(1, 73, 24)
    return tensors | {
        "clip_projector.norm1_q.weight": torch.ones(24), "clip_decoder.0.head.weight": torch.ones(9, 24),
        "final_clip_decoder.norm.weight": torch.ones(9), "mae_decoder.0.head.0.weight": torch.ones(24, 24),
        "clip_pos_embed": table, "mae_pos_embed": table[:, 1:], "img_pos_embed": table[:, :10],
        "fc_norm.weight": torch.ones(8), "head.weight": torch.ones(5, 8),
    }  # fmt: skip


def behind(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()} | {"text_encoder.x": torch.ones(2)}


FORMS = {
    "InternVideo2": {
        "bare": bare,
        "pretrained": lambda made: {"model": with_others(bare(made))},
        "stage 2": lambda made: {"module": behind("vision_encoder.", with_others(bare(made)))},
        "of transformers": lambda made: {n.replace("gamma", "weight"): t for n, t in bare(made).items()},
    },
    "AdaTAD": {"ours": lambda made: {name: p.detach().clone() for name, p in made.named_parameters()}},
}


@pytest.mark.parametrize(("title", "form"), [(title, form) for title, forms in FORMS.items() for form in forms])
def test_every_form_gives_the_backbone_that_it_was_made_from(title, form, tmp_path):
    made, file = backbone(), tmp_path / "weights.pth"
    torch.save(FORMS[title][form](made), file)
    fresh = backbone(seed=1, mode="adapter")
    loaded = load_backbone_weights(fresh, file)
    assert (loaded.title, loaded.positions) == (title, "those of the file")
    got = dict(fresh.named_parameters())
    assert all(torch.equal(got[name], parameter) for name, parameter in made.named_parameters())


def test_pixels_norm_of_the_next_model_goes_into_the_patch_embedding(tmp_path):
    made, norm = backbone(preset="internvideo-next-base", clip_frames=8), torch.rand(8 * 8 * 3) + 0.5
    tensors = bare(made) | {"patch_embed.norm_before.weight": norm}
    factors = norm.view(1, 8, 8, 3).permute(3, 0, 1, 2)
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"] / factors
    torch.save({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "w.pth")
    fresh = backbone(seed=1, preset="internvideo-next-base", clip_frames=8)
    assert load_backbone_weights(fresh, tmp_path / "w.pth").title == "InternVideo-Next"
    for one, other in zip(fresh.parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    ours = {name: p.detach().clone() for name, p in made.named_parameters()}
    torch.save(ours, tmp_path / "ours.pth")
    assert load_backbone_weights(fresh, tmp_path / "ours.pth").title == "AdaTAD"
    with pytest.raises(WeightsError, match=r"of InternVideo-Next, the spec's .* of InternVideo2$"):
        load_backbone_weights(backbone(), tmp_path / "w.pth")


def test_tables_of_other_clips_are_resized_along_time_and_in_space(tmp_path):
    """The authors' fine-tuning does the same: linearly, then bicubically, and class tokens as they are."""
    made = backbone(clip_frames=4, position_grid=5)
    torch.save(bare(made), tmp_path / "w.pth")
    fresh = backbone(seed=1, clip_frames=6, position_grid=5)
    assert load_backbone_weights(fresh, tmp_path / "w.pth").positions == "those of the file, resized from 101 to 151"
    table = made.patch_embed.positions.detach()
    # [1, t, p, c], each place and channel along time.
    over_time = F.interpolate(table[:, 1:].view(1, 4, 25, 24).permute(0, 2, 3, 1).reshape(25, 24, 4), 6, mode="linear")
    expected = over_time.permute(2, 0, 1)
    fitted = fresh.patch_embed.positions
    torch.testing.assert_close(fitted[:, 1:].view(6, 25, 24), expected)
    assert torch.equal(fitted[:, :1], table[:, :1])
    # A table of eight frames of another size, as most are.
    published = torch.randn(1, 1 + 8 * 16, 24)
    planes = published[0, 1:].view(8, 4, 4, 24).permute(0, 3, 1, 2)
    smaller = F.interpolate(planes, (3, 3), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(fit_positions(published, 1, 0, 8, 3)[0, 1:], smaller)


def test_what_does_not_fit_is_named(tmp_path):
    file = tmp_path / "w.pth"
    for change, message in (
        (lambda t: t.pop("cls_token"), r"missing patch_embed\.class_token"),
        (lambda t: t.pop("pos_embed"), r"missing patch_embed\.positions"),
        (lambda t: t.update(pos_embed=torch.ones(1, 12, 24)), r"positions is \(1, 12, 24\), expected \(1, 73, 24\)"),
        (lambda t: t.update(pos_embed_cls=torch.ones(1, 1, 24)), r"unknown pos_embed_cls"),
        (lambda t: t["pos_embed"].fill_(torch.nan), r"patch_embed\.positions holds NaN"),
    ):
        tensors = bare(backbone())
        change(tensors)
        torch.save(tensors, file)
        with pytest.raises(WeightsError, match=message):
            load_backbone_weights(backbone(seed=1), file)
    torch.save(bare(backbone()), file)
    with pytest.raises(WeightsError, match=r"of InternVideo2, the spec's .* of VideoMAE"):
        load_backbone_weights(backbone(preset="large"), file)
    with pytest.raises(WeightsError, match="needs no conversion"):
        convert_backbone(file, tmp_path / "ours.safetensors")


def test_the_licence_is_known_by_the_name_and_by_the_folder_of_a_download():
    assert licence_of("pretrained/InternVideo2-Stage1-1B-224p-K400.pth") == INTERNVIDEO2
    folder = "models--OpenGVLab--InternVideo2-Stage1-1B-224p-K400"
    assert licence_of(f"{folder}/1B_ft_k710_ft_k400_f8.pth") == INTERNVIDEO2
