"""adatad weights list, where, fetch and check: what is known is said without a network, and files are checked."""

import json

import pytest
import torch

from adatad.spec import load
from adatad.spec.experiments import find_spec_path
from adatad.spec.presets import PRESETS
from adatad.spec.published import by_file, published

SMALL = "vit-small-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth"
BASE = "vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-860a3cd3.pth"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_the_list_is_filtered_by_words_and_names_are_whole(run_command):
    done = run_command("weights", "list", "MULTITHUMOS", "log")
    assert done.returncode == 0
    assert "multithumos/g_1536x224_adapter/log" in done.stdout
    assert SMALL not in done.stdout
    everything = json.loads(run_command("weights", "list", "--json").stdout)
    assert [entry["name"] for entry in everything] == list(published())
    assert run_command("weights", "list", "no such thing").returncode == 2


def test_where_says_address_and_place(run_command):
    done = run_command("weights", "where", SMALL)
    for words in ("https://drive.google.com/file/d/", f"pretrained/{SMALL}", "no commercial use", "not known"):
        assert words in done.stdout
    unknown = run_command("weights", "where", "thumos/s_768x160_adaptor")
    assert unknown.returncode == 2
    assert "did you mean thumos/s_768x160_adapter" in unknown.stderr


def test_a_failed_fetch_says_what_to_download_and_where_to_put_it(run_command, monkeypatch):
    def refused(*_):
        from adatad.convert.download import DownloadError

        raise DownloadError("no network")

    monkeypatch.setattr("adatad.convert.download.download", refused)
    done = run_command("weights", "fetch", SMALL, "--output", "my folder")
    assert done.returncode == 2
    assert "no network" in done.stderr
    assert f"save the file as my folder/{SMALL}" in done.stderr
    made = run_command("weights", "fetch", "vit-giant-p14_videomaev2-hybrid_pt_1200e_k710_ft_my.pth")
    assert made.returncode == 2
    assert "adatad weights fetch vit_g_hybrid" in made.stderr


def test_check_opens_a_file_and_refuses_pages_and_other_digests(run_command, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(3)}}, "mine.pth")
    assert "opens: 1 tensors" in run_command("weights", "check", "mine.pth").stdout
    (tmp_path / "page.pth").write_text("<!doctype html>")
    assert "is an HTML page" in run_command("weights", "check", "page.pth").stderr
    missing = run_command("weights", "check", BASE)
    assert missing.returncode == 2
    assert "isn't there; fetch it" in missing.stderr
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "mine.pth").rename(tmp_path / "pretrained" / BASE)
    wrong = run_command("weights", "check", BASE)
    assert wrong.returncode == 2
    assert "expected 860a3cd3" in wrong.stderr


def _encoder(preset):
    """An encoder of a preset's size: of its widths and depth, with few numbers in the file."""
    size = PRESETS[preset]
    shapes = {
        "patch_embed.weight": (size.width, 3, 2, size.patch, size.patch),
        **{f"blocks.{n}.mlp.fc1.weight": (int(size.width * size.mlp_ratio), 1) for n in range(size.depth)},
    }
    return {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}


def test_check_names_the_preset_and_refuses_another_than_the_name_stands_for(run_command):
    torch.save(_encoder("tiny"), SMALL)
    refused = run_command("weights", "check", SMALL)
    assert refused.returncode == 2
    assert "its backbone is tiny (width 96" in refused.stderr
    assert "its name stands for small" in refused.stderr
    torch.save(_encoder("small"), SMALL)
    assert "its backbone is small (width 384" in run_command("weights", "check", SMALL).stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"PK\x03\x04 cut off", "not a readable weight file"), (b"hello", "not a readable weight file"),
     (b"<html>Google Drive", "is an HTML page"), (None, "is a folder")],
)  # fmt: skip
def test_check_says_in_a_line_what_is_no_weight_file(run_command, tmp_path, content, words):
    path = tmp_path / "mine.pth"
    path.mkdir() if content is None else path.write_bytes(content)
    done = run_command("weights", "check", "mine.pth")
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_presets_of_published_backbones_exist_and_are_those_of_their_specs():
    for entry in published().values():
        assert entry.preset is None or entry.preset in PRESETS, entry.name
        if entry.kind == "model":
            spec = load(find_spec_path(entry.name)[0], check_files=False)
            assert spec.model.backbone.preset == entry.preset, entry.name
            assert (by_file(spec.model.backbone.weights) or entry).preset == entry.preset, entry.name
