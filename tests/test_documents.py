"""The documents' commands exist, with the options that they name, and their links lead somewhere."""

import argparse
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from adatad.cli.main import VERBS, parser_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = sorted((ROOT / "tools").rglob("README.md"))
"""Their commands are run by tests/cli/test_data_set_pages.py."""


def commands(document: Path) -> list[list[str]]:
    """Words of every command in the bash blocks of a document."""
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text().replace("\\\n", " "), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_files_and_options_that_exist(document):
    for words in commands(document):
        specs = [word for word in words if word.startswith("configs/") and "=" not in word]
        assert all((ROOT / spec).exists() for spec in specs), specs
        script = next((word for word in words if word.endswith((".py", ".sh"))), None)
        if script is not None:
            assert (ROOT / script).is_file(), script
        verb = after = None
        if script is not None and script.endswith(".py"):
            verb, after = Path(script).stem, words[words.index(script) + 1 :]
        elif "adatad" in words:
            verb, *after = words[words.index("adatad") + 1 :]
        if verb is not None and verb in VERBS:
            known = options_of(verb, after[0] if after else "")
            assert [word for word in after if word.startswith("--") and word.partition("=")[0] not in known] == [], verb
        elif "adatad" in words:
            assert verb in ("--version", "--help"), words


@cache
def options_of(verb: str, command: str) -> set[str]:
    """Options of a verb; of its command, where it has commands."""
    parser = parser_of(verb)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser = action.choices[command]
    return set(parser._option_string_actions)


@pytest.mark.parametrize("document", DOCUMENTS + PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


FOLDERS = ("adatad/", "configs/", "docs/", "ds_configs/", "launch/", "slurm/", "tests/", "tools/")


def named_files(document: Path) -> list[list[str]]:
    """Words of every piece of inline code in which one names a file of the project."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    pieces = [code.split() for code in re.findall(r"`([^`]+)`", text)]
    return [words for words in pieces if any(word.startswith(FOLDERS) for word in words)]


@pytest.mark.parametrize("document", DOCUMENTS + PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_and_tests_named_in_the_text_exist(document):
    for words in named_files(document):
        for word in words:
            path, _, test = word.partition("::")
            if word.startswith(FOLDERS) and not set("<{") & set(word):
                assert list(ROOT.glob(path)), word
                assert not test or f"def {test}(" in (ROOT / path).read_text(), word
        if "-k" in words:
            chosen = words[words.index("-k") + 1]
            files = [ROOT / word for word in words if word.startswith("tests/")]
            assert any(re.search(rf"def test_\w*{chosen}", file.read_text()) for file in files), words


def test_each_fault_on_the_page_of_reliability_names_its_test():
    faults = (ROOT / "docs" / "reliability.md").read_text().partition("\n## ")[0]
    rows = [line for line in faults.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row or "::test_" not in row] == []
