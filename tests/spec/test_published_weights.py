"""The list of published weights: whole, well-formed, and no page or spec that names a file that was replaced."""

import hashlib
import re
import subprocess
from pathlib import Path

from adatad.spec.published import by_file, published, trained_model

ROOT = Path(__file__).parents[2]
# Their digests and not the ids: these mustn't stand anywhere in the repository.
REPLACED = {
    "0e5fd685408d5b33", "f0b2ffa8f4b1b326", "33d6b414df00c737", "083531775a594282", "8918adfde50c1fb0",
    "245a77a50b4eea70", "e6fb474fd608d5e1", "b5f4c7f9344b8372", "5f8bb8685de1716e", "505bb9b74129ba70",
    "a2c0ab1a7a918577", "68e6ad56204968c7", "60d5641cffde6a73", "45c068d116a02081",
}  # fmt: skip
"""Starts of the SHA-256 of the ids of Google Drive that OpenTAD replaced in October 2024."""


def test_all_models_and_logs_of_the_published_table_are_listed_once():
    kinds = [entry.kind for entry in published().values()]
    assert (kinds.count("model"), kinds.count("log")) == (28, 30)
    ids = [entry.drive for entry in published().values() if entry.drive]
    assert len(set(ids)) == len(ids) == 63
    assert all(re.fullmatch(r"1[\w-]{32}", file_id) for file_id in ids)
    paths = [entry.path for entry in published().values()]
    assert len(set(paths)) == len(paths)


def test_every_file_has_an_address_or_is_made_of_one_that_has():
    for entry in published().values():
        assert (entry.page() or published()[entry.made_from].download()) is not None, entry.name


def test_no_file_names_an_id_that_was_replaced():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, files.decode().split("\0")):
        if Path(name).suffix not in {".py", ".md", ".yaml", ".json", ".cfg", ".toml", ".sh"}:
            continue
        path = ROOT / name
        if path.is_file():
            found = set(
                re.findall(r"(?<![\w-])1[\w-]{32}(?![\w-])", path.read_text(encoding="utf-8", errors="replace"))
            )
            old = {one for one in found if hashlib.sha256(one.encode()).hexdigest()[:16] in REPLACED}
            assert not old, f"{name} names {old}"


def test_a_missing_giant_is_fetched_and_converted_to_the_name_that_is_missing():
    giant = by_file("my weights/vit-giant-p14_videomaev2-hybrid_pt_1200e_k710_ft_my.pth")
    fetch, convert = giant.fetch("my weights/x.pth").split(" && ")
    assert fetch == "adatad weights fetch vit_g_hybrid_pt_1200e_k710_ft.pth"
    assert convert.endswith("pretrained/vit_g_hybrid_pt_1200e_k710_ft.pth --output 'my weights/x.pth'")


def test_rows_that_share_a_model_name_the_same_one():
    shared = trained_model("activitynet/g_768x224_adapter")
    assert shared is trained_model("activitynet/g_768x224_adapter_internvideo2") is not None
    assert trained_model("thumos/s_768x160_full") is None
