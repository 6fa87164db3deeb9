"""Which checkpoint a run goes on from, and which it refuses because others stand in the way."""

import pytest

from adatad.training.checkpoint import BEST, checkpoint_path, mark_best
from adatad.training.resume import AUTO, ResumeError, checkpoint_to_resume, resume_after_restart
from adatad.training.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run with checkpoints after steps 3, 6 and 9, the best after 6."""
    run = RunDirectory(tmp_path / "id0")
    for step in (3, 6, 9):
        checkpoint_path(run.checkpoints, step).mkdir(parents=True)
    mark_best(run.checkpoints, checkpoint_path(run.checkpoints, 6))
    return run


def test_the_newest_checkpoint_may_be_named(run):
    path = checkpoint_path(run.checkpoints, 9)
    assert checkpoint_to_resume(run, str(path)) == (path, [])


@pytest.mark.parametrize(
    ("name", "newer"), [("step-00000003", r"step-00000006, step-00000009"), (BEST, r"step-00000009")]
)
def test_an_older_one_is_refused_and_the_newer_ones_are_named(run, name, newer):
    with pytest.raises(ResumeError, match=rf"\({newer}\).*--id N, or remove them"):
        checkpoint_to_resume(run, str(run.checkpoints / name))


def test_one_of_another_run_starts_a_run_that_has_none(run, tmp_path):
    path = run.checkpoints / BEST
    assert checkpoint_to_resume(RunDirectory(tmp_path / "id1"), str(path)) == (path, [])


def test_one_of_another_run_is_refused_where_there_are_others(run, tmp_path):
    checkpoint_path(tmp_path / "id1" / "checkpoints", 100).mkdir(parents=True)
    with pytest.raises(ResumeError, match=r"step-00000003, step-00000006, step-00000009"):
        checkpoint_to_resume(run, str(checkpoint_path(tmp_path / "id1" / "checkpoints", 100)))


def test_a_path_that_does_not_exist_is_refused(run):
    with pytest.raises(ResumeError, match="--resume latest: no such checkpoint directory; expected auto or"):
        checkpoint_to_resume(run, "latest")


def test_an_empty_name_is_not_taken_for_this_folder(run):
    with pytest.raises(ResumeError, match="--resume '': expected auto or a checkpoint's path"):
        checkpoint_to_resume(run, "")


def test_auto_does_not_start_afresh_where_all_checkpoints_are_broken(run):
    with pytest.raises(ResumeError, match=r"step-00000009: .*; .*step-00000003: .*--force .*, --id N beside it"):
        checkpoint_to_resume(run, AUTO)


def test_auto_takes_none_where_there_is_none(tmp_path):
    assert checkpoint_to_resume(RunDirectory(tmp_path / "new"), "auto") == (None, [])


def test_a_restarted_attempt_goes_on_from_its_job_s_checkpoints_else_from_what_was_named(run, tmp_path):
    """A checkpoint of another run counts until the new run has one of its own."""
    named = str(run.checkpoints / BEST)
    assert resume_after_restart(run, named) == resume_after_restart(run, None) == AUTO
    assert resume_after_restart(RunDirectory(tmp_path / "id1"), named) == named
    assert resume_after_restart(RunDirectory(tmp_path / "id1"), None) == AUTO


@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_a_run_is_no_checkpoint_and_its_checkpoints_are_named(run, tmp_path, name):
    with pytest.raises(ResumeError, match=r"is a run, not a checkpoint of it; .*step-00000003, step-00000006"):
        checkpoint_to_resume(RunDirectory(tmp_path / "id1"), str(run.path / name))
