"""The bars of the memory suite, for the rows that are counted quickly and the one that matters most."""

import pytest

from adatad.dev.benchmarks.memory_suite import MEMORY_CASES, count
from adatad.dev.benchmarks.tables import Result, verdict

QUICK_NAMES = ("L ", "B ", "S ", "g side")
QUICK = [case for case in MEMORY_CASES if case.name.startswith(QUICK_NAMES) or case.name == "g 1536 x 224, hold"]
# Placements change what a step holds as much in a small model: tests/memory/test_planner.py counts it.
LONG = [case for case in MEMORY_CASES if case.name.startswith(("g 1536 x 224, hold, rows", "all of it"))]
ROWS = [pytest.param(case, id=case.name) for case in QUICK]
ROWS += [pytest.param(case, id=case.name, marks=pytest.mark.full) for case in LONG]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_training_step_fits(row):
    peak, where = count(row)
    assert peak > 0.5
    assert row.bar_gib is None or peak <= row.bar_gib
    # Of the smallest model the detector takes more than the tiles that go back.
    assert ("detector" if row.name.startswith("S ") else "backward") in where


def test_the_last_line_names_what_is_not_met(capsys):
    assert verdict([Result("a", 1.0, 2.0), Result("b", 3.0)]) == 0
    assert verdict([Result("a", 1.0, 2.0), Result("c", 3.0, 2.0), Result("d", 3.0, 2.0)]) == 1
    assert capsys.readouterr().out.splitlines() == ["all bars met", "not met: c, d"]
