"""Where a run lies: the next free id, and what --force deletes and what it doesn't."""

import os
import socket
import subprocess
import sys

import pytest

from adatad.errors import UserError
from adatad.parallel.processes import Processes
from adatad.spec import Spec, load
from adatad.training.ownership import claim, last_opening
from adatad.training.resume import chosen_run
from adatad.training.run_directory import (
    RunDirectory,
    RunDirectoryError,
    check_overwritable,
    next_of_command,
    open_run,
    reserved,
    run_directory,
    with_id,
)

ALONE = Processes(0, 1, None)


@pytest.fixture
def spec(tiny_spec) -> Spec:
    return load(tiny_spec)


def a_run_that_ended(run: RunDirectory) -> RunDirectory:
    """Files of a run whose process is gone."""
    run.checkpoints.mkdir(parents=True)
    run.metrics.touch()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (run.path / "owner.txt").write_text(f"abc on {socket.gethostname()}, pid {gone.pid}, 2026-01-01 00:00:00\n")
    return run


def test_a_run_without_an_id_of_the_users_takes_the_next_free_one_and_says_so(spec):
    a_run_that_ended(run_directory(spec))
    with chosen_run(spec, ALONE, resume=None, overwrite=False) as which:
        assert which.spec.run.id == 1
        assert "id0 holds a run" in which.notes[0]
        assert which.notes[0].endswith("id1")
        run = open_run(which.spec, False, False, which.is_reserved)
    assert run.path == run_directory(with_id(spec, 1)).path
    with chosen_run(spec, ALONE, resume=None, overwrite=False) as which:
        assert which.spec.run.id == 2


@pytest.mark.parametrize("number", [0, 1])
def test_an_id_of_the_users_is_kept_and_refused_where_it_is_taken(spec, number):
    chosen = with_id(spec, number)
    a_run_that_ended(run_directory(chosen))
    with chosen_run(chosen, ALONE, resume=None, overwrite=False) as which:
        assert which.spec.run.id == number
        with pytest.raises(RunDirectoryError, match="--resume auto continues it, --id N starts another"):
            open_run(which.spec, False, False, which.is_reserved)


def test_runs_that_begin_at_once_get_different_ids_and_leave_nothing_if_they_are_not_opened(spec):
    root = run_directory(spec).path.parents[1]
    with reserved(spec) as first, reserved(spec) as second, reserved(spec) as third:
        assert [s.run.id for s in (first, second, third)] == [0, 1, 2]
    assert not root.exists()


def test_resume_auto_says_which_of_several_runs_it_continues(spec):
    for number in (0, 1):
        a_run_that_ended(run_directory(with_id(spec, number)))
    with chosen_run(spec, ALONE, resume="auto", overwrite=False) as which:
        assert which.spec.run.id == 0
        assert "id0; there are id1 too" in which.notes[0]


def test_overwrite_deletes_a_run_whose_process_is_gone(spec, capsys):
    run = a_run_that_ended(run_directory(with_id(spec, 0)))
    (run.path / "result.json").touch()
    (run.path / "slurm").mkdir()
    opened = open_run(with_id(spec, 0), resume=False, overwrite=True)
    assert sorted(path.name for path in opened.path.iterdir()) == [
        "checkpoints", "log.txt", "metrics.jsonl", "owner.txt", "tensorboard",
    ]  # fmt: skip
    assert "deleting" in capsys.readouterr().out
    assert [path.name for path in run.path.parent.iterdir()] == ["id0"]


def test_overwrite_is_refused_while_the_run_s_process_lives(spec):
    run = open_run(with_id(spec, 0), resume=False, overwrite=False)
    with pytest.raises(RunDirectoryError, match=rf"while it is trained \(.*pid {os.getpid()} on"):
        open_run(with_id(spec, 0), resume=False, overwrite=True)
    assert run.metrics.exists()
    # Another process of that number isn't the one.
    owner = run.path / "owner.txt"
    owner.write_text(owner.read_text().rsplit("start", 1)[0] + "start 1\n")
    check_overwritable(run)


@pytest.mark.parametrize("name", ["precious.txt", "checkpoints/mine"])
def test_overwrite_deletes_no_folder_with_other_files_in_it_and_names_them(spec, name):
    run = a_run_that_ended(run_directory(with_id(spec, 0)))
    (run.path / name).touch()
    with pytest.raises(RunDirectoryError, match=f"holds more than a run.*{name}"):
        open_run(with_id(spec, 0), resume=False, overwrite=True)
    assert (run.path / name).exists()


def test_overwrite_deletes_no_folder_that_is_no_run(spec):
    run = run_directory(with_id(spec, 0))
    run.checkpoints.mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="isn't a run"):
        open_run(with_id(spec, 0), resume=False, overwrite=True)


def test_overwrite_follows_a_link_to_a_run(spec, tmp_path):
    elsewhere = a_run_that_ended(RunDirectory(tmp_path / "big disk" / "run"))
    link = run_directory(with_id(spec, 0)).path
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere.path)
    open_run(with_id(spec, 0), resume=False, overwrite=True)
    assert link.is_symlink()
    assert (elsewhere.path / "owner.txt").is_file()


@pytest.mark.parametrize("damage", ["file", "loop", "long name", "metrics is a folder", "checkpoints is a file"])
def test_a_directory_that_cannot_hold_a_run_is_refused_in_a_line(spec, damage):
    run = run_directory(with_id(spec, 0))
    run.path.parent.mkdir(parents=True)
    match damage:
        case "file":
            run.path.touch()
        case "loop":
            run.path.symlink_to(run.path)
        case "long name":
            spec = spec.model_copy(update={"name": "x" * 300})
        case "metrics is a folder":
            run.metrics.mkdir(parents=True)
        case "checkpoints is a file":
            run.path.mkdir()
            run.checkpoints.touch()
    for resume in (False, True):
        with pytest.raises((UserError, OSError)) as refused:
            open_run(with_id(spec, 0), resume=resume, overwrite=False)
        assert "\n" not in str(refused.value)


def test_what_killed_processes_left_unfinished_is_removed_at_the_next_start(spec):
    run = a_run_that_ended(run_directory(with_id(spec, 0)))
    left = [".owner.txt.abc", ".result.json.77.unfinished.json", "checkpoints/.step-00000003.abc.unfinished",
            "checkpoints/.best.new", "../.id0.abc.unfinished"]  # fmt: skip
    for name in left:
        (run.path / name).mkdir()
    (run.path / left[2] / "parameters.safetensors").touch()
    open_run(with_id(spec, 0), resume=True, overwrite=False)
    assert [name for name in left if (run.path / name).exists()] == []


def test_a_command_replaces_its_own_run_and_no_other(spec, monkeypatch):
    for number, command in enumerate(["train.py", "demo.py"]):
        run = RunDirectory(run_directory(with_id(spec, number)).path)
        run.checkpoints.mkdir(parents=True)
        monkeypatch.setattr(sys, "argv", [f"tools/{command}"])
        claim(run.path)
        assert last_opening(run.path).command == command
        (run.path / "owner.txt").write_text((run.path / "owner.txt").read_text().rsplit("start", 1)[0] + "start 1\n")
    taken, again = next_of_command(spec, "demo.py")
    assert (taken.run.id, again) == (1, True)
    (run_directory(taken).path / "note.txt").touch()
    assert next_of_command(spec, "demo.py") == (spec, False)
    assert next_of_command(with_id(spec, 0), "demo.py")[1] is False
