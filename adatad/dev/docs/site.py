"""The documentation as a site: staged, built with broken links and anchors as errors, with llms.txt beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adatad.dev.docs.stage import first_sentence, stage, title_of
from adatad.errors import UserError
from adatad.files import read_text, write_text

FOLDERS = re.compile(r'^(docs_dir|site_dir) = ".*"$', re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def build_site(root: Path, output: Path) -> None:
    """Build the site of a checkout in a folder, from a source that is staged beside it. Raises UserError if a link or
    an anchor leads nowhere, or zensical isn't installed."""
    if find_spec("zensical") is None:
        raise UserError("the site is built by zensical, which isn't installed: bash launch/docs.sh installs it")
    source = output.with_name(f"{output.name}-source")
    shutil.rmtree(output, ignore_errors=True)
    try:
        pages = stage(root, source / "pages")
    except KeyError as error:
        raise UserError(error.args[0]) from None
    # The builder writes nowhere but below its settings: what it has built is moved.
    folders = {"docs_dir": "pages", "site_dir": "site"}
    settings = read_text(root / "zensical.toml")
    write_text(source / "zensical.toml", FOLDERS.sub(lambda line: f'{line[1]} = "{folders[line[1]]}"', settings))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=source, capture_output=True, text=True
    )
    if done.returncode:
        # Its own traceback, below what it found, says nothing more.
        found = COLOURS.sub("", done.stdout + done.stderr).partition("Traceback")[0].strip()
        raise UserError(f"the site can't be built; mend these links in docs/:\n{found}")
    shutil.move(source / "site", output)
    for page in pages:
        target = output / page.relative_to(source / "pages")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, target)
    write_text(output / "llms.txt", llms(settings, source / "pages"))


def llms(settings: str, pages: Path) -> str:
    """Return llms.txt: the pages in the order of the navigation, each with its address, relative to the site, and its
    first sentence. settings: the text of zensical.toml."""
    project = tomllib.loads(settings)["project"]
    lines = [f"# {project['site_name']}", "", f"> {project['site_description']}"]
    for section, inside in sections(project):
        lines += ["", f"## {section}", ""]
        for name in inside:
            text = read_text(pages / name)
            lines.append(f"- [{title_of(text)}]({name}): {first_sentence(text)}".removesuffix(": "))
    return "\n".join(lines) + "\n"


def sections(project: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the sections of the navigation: title, and file names of their pages."""
    for entry in project["nav"]:
        for title, pages in entry.items():
            yield title, [name for page in pages for name in page.values()]
