"""Pages of docs/ that are made from the code: `adatad dev docs` writes them, a test holds them against it."""

from __future__ import annotations

from collections.abc import Callable

from adatad.dev.docs.reference import commands_page, spec_page
from adatad.dev.docs.support import support_page

PAGES: dict[str, Callable[[], str]] = {
    "reference-spec.md": spec_page,
    "reference-commands.md": commands_page,
    "support.md": support_page,
}
"""What makes each page, by its name in docs/."""
