"""Pages of docs/ as the site's builder takes them: with what they link to outside docs/, and lists of their folders."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from pathlib import Path

from adatad.files import read_text, write_text

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#]*)(#[^)\s]*)?(\))")
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
FROM_THE_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that are files of the checkout's root."""
LISTED = {
    "decisions": ("Design decisions", "Why things are as they are, one short page each."),
    "benchmarks": ("Benchmarks", "Measured and counted figures, each with the command that made it."),
}
"""Folders of docs/ that get a page with a list of theirs: title and first sentence."""
LANGUAGES = {".yaml": "yaml", ".json": "json", ".sh": "bash", ".py": "python"}
# Specs and source files would drown the guides in the search.
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def stage(root: Path, folder: Path) -> list[Path]:
    """Write the site's source of the checkout `root` to a folder, which is emptied first, and return the pages of
    docs/ in it, by name. Raises FileError, and KeyError with the link that leads nowhere."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, (title, text) in LISTED.items():
        pages = sorted((root / "docs" / name).glob("*.md"))
        lines = [f"- [{title_of(read_text(page))}]({page.name})" for page in pages]
        write_text(folder / name / "index.md", f"# {title}\n\n{text}\n\n" + "\n".join(lines) + "\n")
    sources = {page: root / "docs" / page.relative_to(folder) for page in sorted(folder.rglob("*.md"))}
    for name, file in FROM_THE_ROOT.items():
        sources[folder / name] = root / file
        write_text(folder / name, f"# {Path(file).stem.capitalize()}\n\nThis checkout has no {file}.\n")
    places = {os.path.normpath(source): page for page, source in sources.items()}
    waiting = list(sources.items())
    while waiting:
        page, source = waiting.pop()
        text = read_text(source if source.exists() else page)
        more: dict[Path, Path] = {}
        write_text(page, relinked(text, root, source, page, folder, places, more))
        for outside, target in more.items():
            if outside.suffix == ".md":
                waiting.append((target, outside))
            else:
                write_text(target, as_page(outside, root))
    return sorted(sources)


def relinked(
    text: str, root: Path, source: Path, page: Path, folder: Path, places: dict[str, Path], more: dict[Path, Path]
) -> str:
    """Return a page's text with its links leading to the site's pages. more: files outside docs/ that need a page, and
    where it goes; they are added to it and to `places`."""

    def place_of(target: str) -> Path:
        file = Path(os.path.normpath(source.parent / target))
        if file.is_relative_to(root / "docs") and file.suffix != ".py":
            inside = folder / file.relative_to(root / "docs")
            inside = inside / "index.md" if inside.is_dir() else inside
            if inside.exists():
                return inside
        if file.is_dir():
            file = file / "README.md"
        if not file.is_file():
            raise KeyError(f"{source.relative_to(root)}: {target} leads nowhere")
        if str(file) not in places:
            places[str(file)] = more[file] = folder / "files" / f"{file.relative_to(root).with_suffix('')}.md"
        return places[str(file)]

    def new(link: re.Match[str]) -> str:
        before, target, anchor, after = link.groups()
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = Path(os.path.relpath(place_of(target), page.parent)).as_posix()
        return f"{before}{posixpath.normpath(path)}{anchor or ''}{after}"

    parts, end = [], 0
    # Code stays as it is: what looks like a link there is none.
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(new, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(new, text[end:])])


def as_page(file: Path, root: Path) -> str:
    """Return a page that shows a file of the checkout."""
    text = read_text(file).rstrip()
    name = file.relative_to(root)
    return f"{UNSEARCHED}# {name}\n\n```{LANGUAGES.get(file.suffix, 'text')}\n{text}\n```\n"


def title_of(text: str) -> str:
    """Return a page's title, its first heading."""
    found = TITLE.search(text)
    return found[1].replace("`", "") if found else ""


def first_sentence(text: str) -> str:
    """Return the first sentence under a page's title, without marks of Markdown; "" if a list or table comes first."""
    body = FENCE.sub("", text[found.end() :] if (found := TITLE.search(text)) else text)
    # Prose alone: no tables, lists, pictures or sub-headings.
    prose = [part for part in body.split("\n\n") if part.strip() and part.strip()[0] not in "|#-!<*"]
    sentences = re.split(r"(?<=[.?])\s+(?=[A-Z`])", " ".join(prose[0].split()) if prose else "")
    # Of a page that is made from the code: what it is, not how.
    sentence = next((found for found in sentences if not found.startswith("Made by")), "")
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", sentence).rstrip(":").replace("`", "").replace("*", "")
