"""How far a task is: lines at most every LINE_SECONDS without a terminal, one bar at a time on one."""

import io

import pytest
from rich.console import Console

from adatad import progress_bar
from adatad.progress_bar import new_bar, progress, showing
from adatad.training.monitor import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; clock[0] is its time in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_with_the_time_left_now_and_then(clock, capsys):
    with progress("videos checked", 100) as bar:
        for done in range(1, 81):
            clock[0] += 1.0
            bar.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line[9:] for line in lines] == [
        "videos checked 30/100  left 0:01:10",
        "videos checked 60/100  left 0:00:40",
    ]


def test_a_short_task_and_other_ranks_say_nothing(clock, capsys):
    for quiet in (False, True):
        with progress("videos checked", 100, quiet=quiet) as bar:
            clock[0] += 100 if quiet else 1
            bar.advance()
    assert capsys.readouterr().err == ""


def test_a_task_within_another_is_shown_in_its_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with showing(new_bar(console)) as bar:
        bar.add_task("epoch 1/3", total=9, note="")
        with progress("windows evaluated", 4) as task:
            task.advance()
            assert [shown.description for shown in bar.tasks] == ["epoch 1/3", "windows evaluated"]
            assert bar.tasks[1].completed == 1
        assert len(bar.tasks) == 1


def test_training_without_a_terminal_has_a_line_an_epoch_and_now_and_then(clock):
    out = io.StringIO()
    with ProgressBar(Console(file=out, width=60), steps_per_epoch=100, epochs=2, done=0) as bar:
        for step in range(1, 201):
            clock[0] += 1.0
            bar.show(step, (step - 1) // 100, 0.5, 1e-4, 2**30)
    lines = out.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[0].split(" ", 1)[1] == (
        "epoch 1/2  step 30/200  loss 0.500  lr 1.0e-04  memory 1.00 GiB  left 0:02:50"
    )
