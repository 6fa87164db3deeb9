"""Pages of docs/ that are made from the code: `adatad dev docs` writes them, a test holds them against it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from adatad.dev.docs.reference import Commands, commands_page, spec_page
from adatad.dev.docs.support import support_page


def made_pages(commands: Commands) -> dict[str, Callable[[], str]]:
    """Return what makes each page, by its name in docs/."""
    return {
        "reference-spec.md": spec_page,
        "reference-commands.md": partial(commands_page, commands),
        "support.md": support_page,
    }
