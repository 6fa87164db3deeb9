"""The error of annotation files, which lists everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Sequence

from adatad.errors import UserError
from adatad.files import listed, shown

MAX_LISTED = 20
"""Problems that an error's text lists; the rest is counted."""


class LabelError(UserError):
    """Annotations that can't be read or written. problems: all of them, each a sentence with its line,
    tier or id; notes: what was guessed, which may be why nothing fits."""

    def __init__(self, where: object, problems: Sequence[str], notes: Sequence[str] = ()):
        """where: the file."""
        self.problems = tuple(problems)
        if len(self.problems) == 1 and not notes:
            text = f"{where}: {shown(self.problems[0])}"
        else:
            count = f"{len(self.problems)} problem{'' if len(self.problems) == 1 else 's'}"
            text = "\n  ".join([f"{where}: {count}:", listed(self.problems, MAX_LISTED, "\n  "), *map(shown, notes)])
        self.notes = tuple(notes)
        super().__init__(text)
