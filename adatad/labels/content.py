"""The text of an annotation file of any form, whatever its encoding, within bounds."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from adatad.files import GZIP_START, UTF16_STARTS, read_bytes, read_text, what_it_is
from adatad.labels.problems import LabelError
from adatad.labels.text_table import OTHER_FILES, SAVE_AS_CSV

MAX_LABEL_BYTES = 256 << 20
"""Longest file that is read: hours of labels of every frame are some megabytes."""
OLD_ENCODING = "cp1252"
"""What programs on Windows in Europe and America write where they don't write UTF-8; holds all that latin-1 prints."""
XML_ENCODING = re.compile(rb"""<\?xml[^>]*\bencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
TEXTS = (b"<", b"{", b"[{")
"""Starts of other files than tables, which are forms of their own here."""


def read_content(path: Path, notes: list[str]) -> str:
    """Return the text of a file without a byte order mark.

    Read are UTF-8, UTF-16 with a mark or by its zeros, what XML says of itself, and as a last resort Windows-1252,
    which is said in `notes`. Raises LabelError for another kind of file, FileError for one that can't be read.
    """
    content = read_bytes(path, MAX_LABEL_BYTES)
    if content.startswith(GZIP_START):
        return read_text(path, MAX_LABEL_BYTES)
    others = [text for start, text in OTHER_FILES.items() if start not in TEXTS and content.startswith(start)]
    what = what_it_is(content) or (f"{others[0]}; {SAVE_AS_CSV}" if others else None)
    if what:
        raise LabelError(path, [f"is {what}"])
    text = _decoded(content, notes)
    if text is None or "\0" in text:
        raise LabelError(path, ["is a binary file, or text of another encoding than UTF-8; save it as UTF-8"])
    if not text.strip():
        raise LabelError(path, ["is empty; expected labels"])
    return text


def _decoded(content: bytes, notes: list[str]) -> str | None:
    """Return a text; None where it can't be one."""
    named = XML_ENCODING.match(content.lstrip()[:200])
    try:
        if content.startswith(UTF16_STARTS):
            return content.decode("utf-16")
        # Text without a mark in which every second byte is zero.
        if content[1:200:2].count(0) > len(content[:200]) // 4:
            return content.decode("utf-16-le")
        if content[0:200:2].count(0) > len(content[:200]) // 4:
            return content.decode("utf-16-be")
        if named and codecs.lookup(named[1].decode()).name not in ("utf-8", "utf-16"):
            return content.decode(named[1].decode())
        return content.decode("utf-8-sig")
    # LookupError: an encoding that XML names and nobody knows, or one that is no encoding of texts.
    except (UnicodeDecodeError, LookupError):
        pass
    if content.lstrip().startswith((b"{", b"[", b"<")):
        return None
    try:
        text = content.decode(OLD_ENCODING)
    except UnicodeDecodeError:
        return None
    notes.append("is no UTF-8, and was read as Windows-1252 (latin-1): look at letters with accents")
    return text
