"""The documents' commands exist, with the options that they name, and their links lead somewhere."""

import argparse
import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from adatad.cli.main import parser_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = sorted((ROOT / "tools").rglob("README.md"))
"""Their commands are run by tests/cli/test_data_set_pages.py."""


class Command(NamedTuple):
    """A command of a document: its words, and what it needs by a mark ("data", "a GPU", "Slurm"), or None."""

    words: list[str]
    needs: str | None


MARK = re.compile(r"# needs (data|a GPU|Slurm|time)\b")
"""In a command's own comment, or in a comment line above it, of all commands of the block."""


def marked_commands(document: Path) -> list[Command]:
    """Commands of the bash blocks of a document, with their marks (docs/development.md)."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", document.read_text().replace("\\\n", " "), re.DOTALL):
        needs = None
        for line in block.splitlines():
            mark = MARK.search(line)
            if line.startswith("#"):
                needs = mark[1] if mark else needs
            elif words := shlex.split(line, comments=True):
                found.append(Command(words, mark[1] if mark else needs))
    return found


def commands(document: Path) -> list[list[str]]:
    """Words of every command in the bash blocks of a document."""
    return [command.words for command in marked_commands(document)]


def adatad_words(words: list[str]) -> list[str] | None:
    """Words behind `adatad`, or the verb of a script of tools/ and the words behind it; None for another program."""
    script = next((word for word in words if word.startswith("tools/") and word.endswith(".py")), None)
    if script is None and "adatad" not in words:
        return None
    after = words[words.index(script or "adatad") + 1 :]
    # What follows in the shell is none of the command's.
    ends = [number for number, word in enumerate(after) if word in ("|", "||", "&&", ">", ">>", "2>", ";")]
    return [*([Path(script).stem] if script else []), *after[: min(ends, default=None)]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_taken_by_their_parsers_and_name_files_that_exist(document, capsys):
    for words in commands(document):
        specs = [word for word in words if word.startswith("configs/") and "=" not in word]
        assert all((ROOT / spec).exists() for spec in specs), specs
        script = next((word for word in words if word.endswith((".py", ".sh"))), None)
        assert script is None or (ROOT / script).is_file(), script
        after = adatad_words(words)
        if after and after[0] not in ("--version", "--help"):
            # A loop's variable stands for a number here.
            values = [re.sub(r"\$\{?\w+\}?", "1", word) for word in after[1:]]
            code, said = parse(after[0], values, capsys)
            assert code == 0, (words, said)


def parse(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message with which a verb's parser takes these words."""
    try:
        parser(verb).parse_args(words)
    except SystemExit as left:
        return left.code, capsys.readouterr().err
    return 0, ""


parser = cache(parser_of)


# What is run


def texts(path: Path) -> set[str]:
    """All words in the texts of a file of tests."""
    constants = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    return {word for text in constants if isinstance(text, str) and len(text) < 2000 for word in text.split()}


@cache
def words_of_tests() -> list[set[str]]:
    """The words of every file of tests, with those of the pages whose commands it runs."""
    return [texts(path) for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)]


WITHOUT_DATA = ("spec", "plan", "doctor", "weights", "model", "export", "completion", "dev", "submission")
"""Verbs that read no videos, so that any spec will do."""
ASKING = {"--check", "--dry-run", "--help"}
PROGRAMS = {"source", "pip", "wandb", "python", "PYTHON=python3.12", "ffmpeg", ".venv/bin/ruff", ".venv/bin/python"}
"""Programs of others, whose commands aren't run here."""
SHELL = re.compile(r"(for|do|done|if|fi)$|\w+=")
MADE = {"reference-commands.md"}
"""Its commands are the examples of `--help`."""


def is_run(words: list[str]) -> bool:
    """Whether a test starts the command's verb, or its script of launch/; options are looked at by the parser."""
    after = adatad_words(words)
    if after is None:
        launched = next((word for word in words if word.endswith(".sh")), "")
        return bool(SHELL.match(words[0])) or any(
            launched and (launched in seen or Path(launched).name in seen) for seen in words_of_tests()
        )
    if after[0].startswith("--"):
        return any(after[0] in seen for seen in words_of_tests())
    if after[:2] == ["dev", "benchmark"]:
        # Suites are called as functions, at a tiny size.
        suite = f"{after[2]}_suite"
        return any(suite in path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    verb, command = after[0], after[1] if len(after) > 1 else ""
    groups = [action for action in parser(verb)._actions if isinstance(action, argparse._SubParsersAction)]
    return any({verb, *([command] if groups else [])} <= seen for seen in words_of_tests())


def reads_data(words: list[str]) -> bool:
    """Whether a command reads a public data set: it names a spec of one, and its verb does more than look at it."""
    after = adatad_words(words) or words
    specs = [w for w in after if re.match(r"(configs/)?(thumos|multithumos|activitynet|charades|epic|ego4d|hacs)\b", w)]
    return bool(specs) and after[0] not in WITHOUT_DATA and not ASKING & set(after)


@pytest.mark.parametrize(
    "document", [page for page in DOCUMENTS[1:] if page.name not in MADE], ids=lambda path: path.name
)
def test_commands_are_run_by_a_test_or_marked(document):
    unknown = []
    for command in marked_commands(document):
        others = command.words[0] in PROGRAMS or command.words[0] in ("sbatch", "srun")
        if not command.needs and not others and (reads_data(command.words) or not is_run(command.words)):
            unknown.append(" ".join(command.words))
    assert unknown == [], "no test runs these; mark what needs data or a GPU (docs/development.md)"


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
