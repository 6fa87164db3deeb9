"""What `tools/data.py benchmark` concludes from its measurements, and that it measures real loading."""

import pytest

from adatad.data.prepare.reading_speed import DataSpeed, measure
from adatad.spec import load


@pytest.mark.parametrize(
    ("decode", "transform", "loader", "workers", "limit"),
    [(0.3, 0.1, 0.2, 2, "decode"), (0.1, 0.3, 0.2, 2, "transform"), (0.3, 0.1, 0.5, 2, "loader"),
     (0.3, 0.1, 0.5, 0, "decode")],
)  # fmt: skip
def test_the_part_that_limits_is_named(decode, transform, loader, workers, limit):
    assert DataSpeed(4, decode, transform, loader, workers).limit == limit


@pytest.mark.parametrize(("step", "windows", "workers"), [(1.0, 2, 1), (0.8, 2, 1), (0.5, 2, 2), (0.1, 4, 16)])
def test_workers_keep_up_with_steps(step, windows, workers):
    assert DataSpeed(4, 0.3, 0.1, 0.2, 2).workers_for(step, windows) == workers


@pytest.mark.parametrize("workers", [0, 1])
def test_all_three_ways_are_measured(tiny_spec, workers):
    speed = measure(load(tiny_spec, [f"data.workers={workers}"]), windows=4)
    assert speed.windows == 4
    assert min(speed.decode_seconds, speed.loader_seconds) > 0


def test_the_command_says_how_many_processes(tiny_spec, run_command):
    result = run_command("data", "benchmark", tiny_spec, "--windows", 2, "--step-seconds", 10)
    assert result.returncode == 0, result.stderr
    assert "steps of 10 s need data.workers 1 on each of 1 ranks" in result.stdout


@pytest.mark.parametrize("option", [("--windows", 0), ("--ranks", 0), ("--ranks", 97), ("--step-seconds", 0)])
def test_numbers_that_nothing_can_be_measured_with_are_refused(tiny_spec, run_command, option):
    result = run_command("data", "benchmark", tiny_spec, *option)
    assert result.returncode == 2
    assert option[0] in result.stderr
    assert "Traceback" not in result.stderr
