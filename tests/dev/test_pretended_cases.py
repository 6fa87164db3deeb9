"""Training on the pretended GPU: how often the host waits, and that nothing races or pins memory in a step.

A few cases; `tools/benchmark.py --suite launches` runs all of them.
"""

from collections import Counter
from dataclasses import replace

import pytest

from adatad.dev.benchmarks import launches_suite
from adatad.dev.benchmarks.launches_suite import counted_step, pretended_results
from adatad.dev.benchmarks.tables import verdict
from adatad.dev.pretended.cases import CASES, CONFIG, TILE, TINY, PretendedCase, case_of, run_case
from adatad.dev.pretended.operators import DeviceMismatchError
from adatad.dev.pretended.streams import Counts
from adatad.spec import load

MAX_PLANNER_ERROR = 0.1
"""Of the launches that the planner composes a step of, beside those that are counted in one: it takes all tiles for
such with two neighbours, and here half of them have one."""

# One of each kind, with all that moves in it; the others move a part of that.
CHECKED = (
    "tile, everything on the host",
    pytest.param("full, tile, rows, halos, frames on the host", marks=pytest.mark.full),
    pytest.param("tile, accumulation", marks=pytest.mark.full),
    "tile, two ranks",
    "augmentation",
    "evaluation",
    "run",
)
SHALLOW = f"{TILE} model.backbone.depth=2 train.global_batch=1"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_the_host_hardly_waits_and_nothing_races(name):
    case = case_of(name)
    counts = run_case(case)
    assert counts.launches.total() > 200
    if case.max_waits is not None:
        assert counts.waits.total() <= case.max_waits, counts.waits.most_common()
    faults = case.faults(counts)
    assert not any(faults.values()), faults


@pytest.mark.slow
def test_more_clips_add_no_host_waits():
    waits = []
    for size in (32, 48):
        window = f"data.window.size_grid={size} model.detector.max_length=64"
        waits.append(run_case(PretendedCase("tile", f"{SHALLOW} {window}")).waits.total())
    assert waits[1] == waits[0]


@pytest.mark.slow
def test_the_planner_composes_a_step_of_as_many_launches_as_it_has():
    # Draws differ from block to block, and the planner weighs one of each kind; augmentation isn't in its count.
    overrides = f"{TILE} model.backbone.drop_path=0 data.augment.rand_augment=false data.augment.color_jitter=null"
    counted = run_case(PretendedCase("tile", overrides)).launches.total()
    spec = load(CONFIG, [*TINY.split(), *overrides.split()], check_files=False)
    assert counted_step(spec).launches == pytest.approx(counted, rel=MAX_PLANNER_ERROR)


def test_cases_have_names_of_their_own_and_specs_that_are_allowed():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        if case.kind != "run":
            case.spec()
    with pytest.raises(ValueError, match="no case 'titel'; there are 'none', 'selective'"):
        case_of("titel")


def test_the_suite_names_the_case_and_the_bar_that_is_not_met(monkeypatch, capsys):
    counts = Counts(waits=Counter({"value: a.py:1": 3}), races=Counter({"reads: b.py:2": 1}))
    monkeypatch.setattr(launches_suite, "run_case", lambda case: counts)
    case = replace(case_of("tile"), name="tile of a test")
    assert verdict(list(pretended_results((case,)))) == 1
    assert capsys.readouterr().out == "not met: tile of a test: host waits, tile of a test: races, races, in all\n"


def test_the_suite_goes_on_after_a_device_mismatch(monkeypatch):
    def run(case):
        if case.name == "none":
            raise DeviceMismatchError("add of tensors on both: a.py:1")
        return Counts()

    monkeypatch.setattr(launches_suite, "run_case", run)
    results = list(pretended_results((case_of("none"), case_of("tile"))))
    assert [result.name for result in results if not result.passed] == ["none: device mismatches"]
    assert "tile: host waits" in [result.name for result in results]
