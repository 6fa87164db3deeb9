"""XML of annotation files, parsed without anything that a document type could bring in."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from adatad.labels.problems import LabelError

BEFORE_ROOT = re.compile(r"\ufeff?(?:\s+|<\?.*?\?>|<!--.*?-->)*", re.DOTALL)


def parse_xml(text: str, path: Path) -> ElementTree.Element:
    """Return the root of a document. Raises LabelError for text that is no XML, and for a document type.

    Entities can only be declared in a document type: without one, neither other files nor endless texts come in.
    """
    prolog = BEFORE_ROOT.match(text)
    if prolog and text.startswith("<!", prolog.end()):
        raise LabelError(path, ["has a document type (<!DOCTYPE ...>), which no label file needs; take it out"])
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LabelError(path, [f"line {error.position[0]}: is not readable as XML: {error}"]) from error
    except ValueError as error:
        raise LabelError(path, [f"is not readable as XML: {error}"]) from error
