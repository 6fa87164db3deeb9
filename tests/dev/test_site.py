"""The site is built of docs/ with every page in its navigation; nothing on it leads nowhere or comes from elsewhere."""

import re
import tomllib
from pathlib import Path

import pytest

from adatad.dev.docs.site import build_site, sections
from adatad.dev.docs.stage import FROM_THE_ROOT, LISTED, first_sentence, stage
from adatad.errors import UserError

ROOT = Path(__file__).parents[2]
pytest.importorskip("zensical", reason="zensical is not installed")
NAVIGATION = 'nav = [{ "Start" = [{ "One" = "index.md" }, { "Two" = "memory.md" }] }]'
IN_THE_NAVIGATION = [
    name for _, pages in sections(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]) for name in pages
]


def test_every_page_stands_in_the_navigation_once():
    made = [*FROM_THE_ROOT, *(f"{folder}/index.md" for folder in LISTED)]
    assert sorted(IN_THE_NAVIGATION) == sorted([*(page.name for page in (ROOT / "docs").glob("*.md")), *made])


def test_pages_llms_txt_and_search_are_there_and_nothing_is_loaded_from_elsewhere(site):
    index = (site / "llms.txt").read_text()
    for name in IN_THE_NAVIGATION:
        page = site / name.removesuffix("index.md") if name.endswith("index.md") else site / name.removesuffix(".md")
        html = (page / "index.html").read_text()
        assert not re.search(r'<(?:script|img|link)[^>]*(?:src|href)="https?://', html), name
        # Each page a line, with the page's own text beside the site's.
        assert index.count(f"]({name})") == 1
        assert (site / name).is_file()
    assert "memory.policy" in (site / "search.json").read_text()


def test_what_a_page_links_to_outside_docs_is_a_page_too(site):
    html = (site / "data-sets" / "index.html").read_text()
    assert 'href="../files/tools/prepare_data/thumos/' in html
    assert (site / "files" / "configs" / "thumos" / "g_1536x224_adapter" / "index.html").is_file()


@pytest.mark.parametrize("link", ["[gone](missing.md)", "[gone](memory.md#no-such-part)", "![gone](images/no.png)"])
def test_a_link_that_leads_nowhere_is_an_error(link, tmp_path):
    root = tmp_path / "checkout"
    (root / "docs").mkdir(parents=True)
    (root / "docs" / "index.md").write_text(f"# One\n\n{link}\n")
    (root / "docs" / "memory.md").write_text("# Memory\n")
    settings = (ROOT / "zensical.toml").read_text()
    (root / "zensical.toml").write_text(re.sub(r"nav = \[.*?^\]", NAVIGATION, settings, flags=re.DOTALL | re.MULTILINE))
    with pytest.raises(UserError, match=r"missing\.md|no-such-part|no\.png"):
        build_site(root, tmp_path / "site")


def test_code_keeps_what_looks_like_a_link(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# One\n\n```python\nx = [f](y)\n```\n")
    stage(tmp_path, tmp_path / "staged")
    assert "x = [f](y)" in (tmp_path / "staged" / "index.md").read_text()


def test_the_first_sentence_of_a_page_is_its_own():
    assert first_sentence("# T\n\n| a |\n\nOne [page](x.md) of `a`. Two.\n") == "One page of a."
