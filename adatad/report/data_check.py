"""The page of a data set's check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from adatad.data.prepare.check import BLOCKING, CheckReport
from adatad.files import write_text
from adatad.report.html_file import page_file

TEMPLATE = Path(__file__).with_name("data_check.html")


def write_data_check(checked: list[CheckReport], name: str, path: Path) -> None:
    """Write the page of a data set's check."""
    kinds = Counter(kind for found in checked for kind, _ in found.problems).most_common()
    # Escaped: names of videos come from files that anybody may have written.
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        name=name, style=Markup(page_file("base.css")), checked=checked, kinds=kinds, blocking=", ".join(BLOCKING),
        good=sum(not found.problems for found in checked), blocked=sum(found.is_blocked for found in checked),
        hours=f"{sum(found.seconds for found in checked) / 3600:.2f}",
        frames=f"{sum(found.frames for found in checked):,}",
    )  # fmt: skip
    write_text(path, text)
