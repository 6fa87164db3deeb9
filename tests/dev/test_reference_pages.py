"""Pages that are made from the code are what the code says today, and say all of it."""

from pathlib import Path

import pytest

from adatad.cli.main import VERBS, parser_of
from adatad.dev.docs import tested
from adatad.dev.docs.pages import made_pages
from adatad.dev.docs.support import refusal
from adatad.spec.keys import all_keys

PAGES = made_pages({verb: (what, parser_of(verb)) for verb, what in VERBS.items()})
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name):
    assert (DOCS / name).read_text() == PAGES[name](), "run adatad dev docs"


def test_every_key_and_every_command_has_a_heading():
    lines = (DOCS / "reference-spec.md").read_text().splitlines()
    headings = [line.split("`")[1].replace(".N", ".0") for line in lines if line.startswith("#") and "`" in line]
    assert set(all_keys()) <= set(headings)
    assert len(headings) == len(set(headings))
    commands = (DOCS / "reference-commands.md").read_text()
    assert all(f"\n## `adatad {verb}`\n" in commands for verb in VERBS)


def test_what_the_spec_refuses_is_asked_of_it():
    assert "ddp" in refusal(("parallel.engine=zero1", "memory.optimizer_state=host"))
    assert refusal(("parallel.engine=ddp", "memory.optimizer_state=host")) is None


def test_precisions_are_read_from_a_test_its_constants_and_its_parameters(tmp_path, monkeypatch):
    (tmp_path / "parallel").mkdir()
    (tmp_path / "parallel" / "test_one.py").write_text(
        "ENGINE = ['parallel.engine=fsdp']\n"
        "@pytest.mark.parametrize('p', ['bf16'])\ndef test_a(p): run([*ENGINE, f'train.precision={p}'])\n"
        "def test_b():\n    with pytest.raises(E): load(['parallel.engine=zero2', 'train.precision=fp16'])\n"
        "def test_c(): run(['parallel.engine=ddp'], 'bf16')\n"
    )
    monkeypatch.setattr(tested, "TESTS", tmp_path)
    found = sorted(case[:2] + case[3:] for case in tested.trained_precisions(["ddp", "fsdp", "zero2"]))
    assert found == [("fsdp", "bf16", False), ("zero2", "fp16", True)]
