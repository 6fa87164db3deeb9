"""The published experiments: which spec files they are, and how a row is found by any of its names.

A row is a spec under configs/ whose own file says `reference:`, the experiment's name in OpenTAD.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from adatad.errors import UserError
from adatad.files import shown
from adatad.resources import here_or_resource, resource
from adatad.spec.text import cut, nearest

CONFIGS = resource("configs")
ALIASES = {"anet": "activitynet", "thumos14": "thumos", "multi_thumos": "multithumos", "fullft": "full"}
"""Words that people use for those in our names."""
MAX_LISTED = 6
"""Rows that a name could mean, of which each is named."""
MAX_NAME = 200
"""Characters of the name of a shipped spec."""
USUAL = "adapter"
"""The mode that a name without one means."""


class RowError(UserError):
    """A name that stands for no published row, or for several."""


class Row(NamedTuple):
    """name: thumos/s_768x160_adapter; reference: thumos/e2e_thumos_videomae_s_768x1_160_adapter."""

    name: str
    reference: str
    path: Path

    @property
    def shown(self) -> str:
        """The path as a command takes it in the project's folder."""
        return f"configs/{self.name}.yaml"

    @property
    def words(self) -> frozenset[str]:
        """thumos, s, 768x160, 768, 160, adapter."""
        parts = re.split(r"[/_]", self.name)
        return frozenset([*parts, *parts[2].split("x")])


@cache
def all_rows(folder: Path = CONFIGS) -> tuple[Row, ...]:
    """The published rows, by name."""
    found = []
    # A spec of the user's, somewhere in between, that can't be read is none of them.
    for path in sorted(path for path in folder.glob("*/*.yaml") if os.access(path, os.R_OK) and path.is_file()):
        reference = re.search(r"^reference: (\S+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if reference:
            found.append(Row(str(path.relative_to(folder).with_suffix("")), reference[1], path))
    return tuple(found)


def row_of_reference(path: str | Path) -> Row:
    """The row that OpenTAD's configuration file at `path` stands for, wherever that lies. Raises RowError."""
    rows = {Path(row.reference).name: row for row in all_rows()}
    stem = Path(path).stem
    if stem not in rows:
        close = nearest(stem, rows)
        hint = f"; the nearest is {rows[close].reference}.py, here {rows[close].shown}" if close else ""
        raise RowError(f"{cut(path)}: unknown configuration of OpenTAD's configs/adatad{hint} (docs/model-zoo.md)")
    return rows[stem]


def find_row(text: str) -> Row:
    """The row that a name means: ours, the reference's, a path to either, or some of its words (thumos-s-768).

    Without a mode, the adapters in the blocks are meant. Raises RowError.
    """
    stem = re.sub(r"\.(yaml|py)$", "", text)
    for row in all_rows():
        if stem in (row.name, row.reference) or stem.endswith((f"/{row.name}", f"/{row.reference}")):
            return row
    asked = re.sub(r"\b(multi_thumos)\b", "multithumos", stem.lower())
    words = {ALIASES.get(word, word) for word in re.split(r"[-_/\s]+", asked) if word}
    candidates = [row for row in all_rows() if words <= row.words]
    for wanted in (lambda row: USUAL in row.words, lambda row: len(row.name.split("_")) == 3):
        if len(candidates) > 1:
            candidates = [row for row in candidates if wanted(row)] or candidates
    if len(candidates) == 1:
        return candidates[0]
    if candidates and words:
        names = [row.name for row in candidates]
        more = f" or {len(names) - MAX_LISTED} others" if len(names) > MAX_LISTED else ""
        raise RowError(f"{cut(text)}: could be {', '.join(names[:MAX_LISTED])}{more}; give more words of its name")
    close = nearest(stem, [row.name for row in all_rows()])
    hint = f"; did you mean {close}?" if close else ""
    raise RowError(f"{cut(text)}: no published row has this name{hint} (docs/model-zoo.md lists them)")


def spec_path(text: str) -> tuple[str, str | None]:
    """The spec file that a SPEC argument means, and a line to print where it isn't the file itself. A name is that of
    a shipped spec (demo/tia), of a published row (thumos-s-768) or of the row's file in OpenTAD; one that isn't known
    comes back as it is."""
    if not text or (os.path.lexists(text) and not text.endswith(".py")):
        return text, None
    if text.endswith((".yaml", ".yml")):
        return here_or_resource(text), None
    if not text.endswith(".py") and not os.path.isabs(text) and ".." not in text:
        named = f"configs/{text.removeprefix('configs/')}.yaml"
        if len(text) < MAX_NAME and os.access(resource(named), os.R_OK) and resource(named).is_file():
            return here_or_resource(named), f"{shown(text)} is the shipped {named}, which is used"
    reference = text.endswith(".py")
    try:
        row = row_of_reference(text) if reference else find_row(text)
    except RowError:
        return text, None
    what = f"OpenTAD's name of {row.shown}" if reference else f"the row of {row.shown}"
    here = Path(row.shown)
    path = here if here.is_file() and here.samefile(row.path) else row.path
    return str(path), f"{shown(text)} is {what}, which is used"
