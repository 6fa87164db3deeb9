"""When waiting for data is worth a warning."""

import pytest

from adatad.training.monitor import DataWait


def epoch(wait: DataWait, *steps: tuple[float, float]) -> str | None:
    for step in steps:
        wait.add(*step)
    return wait.end_epoch()


def test_the_first_step_of_a_run_does_not_count():
    assert epoch(DataWait(), (9.0, 10.0)) is None
    assert epoch(DataWait(), (9.0, 10.0), (0.1, 1.0)) is None


@pytest.mark.parametrize(("waited", "warned"), [(0.99, False), (1.01, True)])
def test_a_tenth_of_the_time_is_the_border(waited, warned):
    line = epoch(DataWait(), (0.0, 1.0), (waited, 4.0), (0.0, 6.0))
    assert (line is not None) == warned
    if line is not None:
        assert line.startswith("10% of this epoch's time")
        assert "data.workers" in line


def test_epochs_are_judged_alone():
    wait = DataWait()
    assert epoch(wait, (0.0, 1.0), (0.0, 10.0)) is None
    assert epoch(wait, (0.5, 1.0)).startswith("50%")


def test_one_warning_is_enough():
    wait = DataWait()
    assert epoch(wait, (0.0, 1.0), (1.0, 2.0))
    assert epoch(wait, (1.0, 2.0)) is None
