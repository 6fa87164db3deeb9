"""Keys of the spec that docs/from-opentad.md names exist."""

import re
from pathlib import Path

from adatad.spec.explain import fields_at
from adatad.spec.schema import Spec

PAGE = Path(__file__).parents[2] / "docs" / "from-opentad.md"


def test_every_key_of_ours_exists():
    ours = [line.split(" | ")[-1] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    sections = "|".join(name for name in Spec.model_fields if fields_at((name,)))
    keys = {key for text in ours for key in re.findall(rf"`((?:{sections})\.[a-z_.]+)", text)}
    assert len(keys) > 30
    for key in keys:
        *section, last = key.removesuffix(".0.lr").split(".")
        assert last in fields_at(tuple(section)), key
