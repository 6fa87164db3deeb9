"""Writes that training can do without: what a full or lost disk doesn't take is said once, and tried again."""

import errno
import json
import logging
import os
import re
import resource
import shutil
import sys

import pytest
from rich.console import Console

import adatad.training.run_directory as room
from adatad.files import FileError
from adatad.printing import lasting_output
from adatad.report import page
from adatad.spec import load
from adatad.training.metrics import MetricsWriter
from adatad.training.monitor import BestEffort, log_to
from adatad.training.run import train_run
from adatad.training.run_directory import RunDirectory
from adatad.training.tensor_board import TensorBoard


class FullDisk:
    """Beyond a size the system takes no more of a file."""

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def writer(folder, said: list[str]) -> MetricsWriter:
    best_effort = BestEffort(said.append)
    return MetricsWriter(folder, best_effort, [TensorBoard(folder, 0, best_effort)])


def test_lines_of_metrics_wait_for_room_and_none_is_cut(tmp_path):
    said: list[str] = []
    metrics = writer(tmp_path, said)
    metrics.write("train", 1, 0, {"loss": 1.0})
    with FullDisk():
        for step in (2, 3):
            metrics.write("train", step, 0, {"loss": 1.0})
    metrics.write("train", 4, 0, {"loss": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    about_lines = [line for line in said if line.startswith("metrics.jsonl")]
    assert about_lines == [
        "metrics.jsonl can't be written (File too large); training goes on without, and tries again",
        "metrics.jsonl can be written again",
    ]
    metrics.close()


def test_a_board_that_cannot_be_written_is_left_out(tmp_path, capfd):
    said: list[str] = []
    with FullDisk():
        metrics = writer(tmp_path, said)
        for step in range(30):
            metrics.write("train", step, 0, {"loss": 1.0})
        metrics.close()
    assert sum(line.startswith("tensorboard can't be written") for line in said) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_the_log_goes_on_after_a_full_disk_and_after_it_was_deleted(tmp_path, capsys):
    path = tmp_path / "run" / "log.txt"
    path.parent.mkdir()
    logger = log_to(path, Console(width=200))
    logger.info("one")
    with FullDisk():
        logger.info("two")
        logger.info("three")
    logger.info("four")
    assert "four" in path.read_text()
    assert capsys.readouterr().out.count("the run goes on") == 1
    shutil.rmtree(path.parent)
    logger.info("five")
    path.parent.mkdir()
    logger.info("six")
    assert path.read_text().endswith(" six\n")


class ClosedPipe:
    """A stream whose reader has gone."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError


def test_output_that_nobody_reads_is_given_up_and_the_log_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with lasting_output():
        print("lost before there is a log")
        logger = log_to(tmp_path / "log.txt", Console())
        logger.info("one")
        print("lost")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("stdout can't be written any more (Broken pipe)") == 1
    assert " one\n" in log


def test_lines_without_a_terminal_have_the_time_of_day(tmp_path, capsys):
    log_to(tmp_path / "log.txt", Console()).info("[red]x" + " long" * 60)
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[red\]x( long){60}\n", capsys.readouterr().out)


def test_a_disk_without_room_for_two_checkpoints_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 31, 31 * 10**6))
    with pytest.raises(FileError, match=r"31 MB are free there; checkpoints of this model need 32 MB at least"):
        room.check_room(tmp_path / "no" / "id0", 10**6, resuming=False)
    room.check_room(tmp_path / "no" / "id0", 10**6, resuming=True)
    assert not (tmp_path / "no").exists()


def test_a_run_that_is_refused_for_want_of_room_leaves_nothing(tiny_spec, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    spec = load(tiny_spec)
    with pytest.raises(FileError, match="make room, or put runs elsewhere"):
        train_run(spec)
    assert not os.path.exists(spec.run.root)


@pytest.mark.pictures
def test_training_that_is_done_is_not_failed_by_files_and_pages_about_it(tiny_spec, monkeypatch):
    """The files are lost; the scores are returned, and printed."""

    def full(self, name, content):
        raise FileError(f"{name}: can't be written: No space left on device")

    def no_report(path, spec, say):
        raise ValueError("a page that can't be drawn")

    monkeypatch.setattr(RunDirectory, "write_text", full)
    monkeypatch.setattr(RunDirectory, "write_json", full)
    monkeypatch.setattr(page, "write_report", no_report)
    result, folder = train_run(load(tiny_spec, ["schedule.epochs=1", "schedule.warmup_epochs=0"]))
    assert result["epochs"] == 1
    log = (folder / "log.txt").read_text()
    for name in ("spec.yaml", "trained.txt", "detections.json", "result.json"):
        assert log.count(f"{name} can't be written") == 1
    assert "training is done and saved" in log
    assert (folder / "checkpoints" / "best").exists()


@pytest.fixture(autouse=True)
def close_log():
    yield
    logger = logging.getLogger("adatad")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
