"""Parts of an HTML page that is one file: style, scripts and data that lie in it, and the digest that lets them run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILES = Path(__file__).with_name("page_files")


def page_file(name: str) -> str:
    """Return the text of a file that pages are made of, such as "base.css"."""
    return (FILES / name).read_text(encoding="utf-8")


def scripts(names: Iterable[str]) -> str:
    """Return scripts joined in their order, as one. names: without ".js"."""
    return "\n".join(page_file(f"{name}.js") for name in names)


def script_data(data: Any) -> str:
    """Return data as JSON that may stand between <script type="application/json"> and </script>. Raises ValueError for
    NaN and infinity, which JSON doesn't have."""
    # A browser reads the data as text up to the next "</script": so there may be no "<" in it.
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def policy_digest(script: str) -> str:
    """Return a script's digest as a Content-Security-Policy has it: the browser then runs this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def picture_url(content: bytes, kind: str = "png") -> str:
    """Return a picture as an address that holds it, so that the page needs no other file. kind: png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
