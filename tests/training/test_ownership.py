"""Who may write to a run: the process that opened it last, and no other."""

import os
import shutil

import pytest
import torch
from tiny_spec import saved_state

from adatad.spec import load
from adatad.training.checkpoint import Checkpoint, CheckpointWriter, all_checkpoints, read_checkpoint
from adatad.training.ownership import RunOwnershipLost, claim
from adatad.training.run_directory import open_run


def checkpoint_of(value: float) -> Checkpoint:
    weights = {"w": torch.full((3,), value)}
    return Checkpoint(weights, weights, {}, saved_state(5), "name: x\n")


def test_the_first_owner_writes_nothing_once_there_is_a_second(tmp_path):
    folder = tmp_path / "checkpoints"
    old = CheckpointWriter(folder, keep=1, owner=claim(tmp_path))
    old.submit(4, checkpoint_of(1.0))
    old.wait()
    new = CheckpointWriter(folder, keep=1, owner=claim(tmp_path))
    new.submit(5, checkpoint_of(2.0))
    new.wait()
    for step in (5, 6):
        old.submit(step, checkpoint_of(9.0))
        with pytest.raises(RunOwnershipLost, match="was opened by another process"):
            old.wait()
    assert [path.name for path in all_checkpoints(folder)] == ["step-00000005"]
    assert read_checkpoint(folder / "step-00000005").parameters["w"].tolist() == [2.0] * 3
    assert not list(folder.glob(".*"))


def test_opening_a_run_takes_it_over(tiny_spec):
    spec = load(tiny_spec)
    first = open_run(spec, resume=False, overwrite=False)
    first.owner.check()
    unfinished = first.checkpoints / f".step-00000001.{first.owner.token}.unfinished"
    unfinished.mkdir()
    second = open_run(spec, resume=True, overwrite=False)
    second.owner.check()
    with pytest.raises(RunOwnershipLost, match=rf"{first.owner.token}, writes nothing more"):
        first.owner.check()
    assert not unfinished.exists()


def test_an_attempt_that_was_given_up_before_it_opened_the_run_leaves_it_to_the_later_one(tmp_path, monkeypatch):
    attempts = tmp_path / "slurm" / "attempts"
    attempts.mkdir(parents=True)
    # 7-002 is one of another job of that number, long ago.
    for seconds, name in enumerate(("7-002", "7-000", "7-001", "7_1-002", "77-002")):
        (attempts / f"{name}.start").touch()
        os.utime(attempts / f"{name}.start", (seconds, seconds))
    monkeypatch.setenv("ADATAD_ATTEMPT", str(attempts / "7-001"))
    owner = claim(tmp_path)
    monkeypatch.setenv("ADATAD_ATTEMPT", str(attempts / "7-000"))
    with pytest.raises(RunOwnershipLost, match="attempt 7-001 of this job has begun since"):
        claim(tmp_path)
    owner.check()


@pytest.mark.parametrize("damage", ["file emptied", "file deleted", "folder deleted"])
def test_a_run_whose_owner_file_is_lost_is_still_its_own_and_can_be_saved(tmp_path, damage, caplog):
    run = tmp_path / "id0"
    run.mkdir()
    owner = claim(run)
    text = (run / "owner.txt").read_text()
    match damage:
        case "file emptied":
            (run / "owner.txt").write_text("")
        case "file deleted":
            (run / "owner.txt").unlink()
        case "folder deleted":
            shutil.rmtree(run)
    owner.check()
    assert (run / "owner.txt").read_text() == text
    assert caplog.text.count("owner.txt was deleted or emptied while this run trains") == 1
    claim(run)
    with pytest.raises(RunOwnershipLost):
        owner.check()
