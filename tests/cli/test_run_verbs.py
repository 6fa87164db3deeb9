"""report.py, compare.py, status.py, model_zoo.py: what isn't a run, and where nothing can be written, is said first."""

import os

import pytest

COMMANDS = {
    "explain": ["explain", "RUN"],
    "replay": ["replay", "RUN"],
    "report": ["report", "RUN"],
    "status": ["status", "RUN"],
    "compare": ["compare", "RUN", "--output", "c.png"],
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder with all that isn't a run, or no place for a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name, content in (("binary", b"\xff\x00\x80"), ("empty", b""), ("nested", b"[" * 9999)):
        run = tmp_path / name
        run.mkdir()
        for file in ("spec.yaml", "result.json", "metrics.jsonl"):
            (run / file).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("run", ["", "file", "folder", "loop", "pipe", "absent", "x" * 300, "\udcff", "file/id0"])
def test_what_is_no_run_is_refused_in_a_line(places, run_command, command, run):
    before = sorted(path.name for path in places.iterdir())
    done = run_command(*(run if word == "RUN" else word for word in COMMANDS[command]))
    assert done.returncode == 2
    # Before it, for an empty path, stands how the command is used.
    assert len([line for line in done.stderr.splitlines() if not line.startswith(("usage", " "))]) == 1
    assert done.stdout == ""
    assert sorted(path.name for path in places.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "run"),
    [("report", "binary"), ("report", "empty"), ("compare", "binary"), ("compare", "empty"), ("compare", "nested")],
)
def test_runs_whose_files_cannot_be_read_are_refused_and_the_file_is_named(places, run_command, command, run):
    done = run_command(*(run if word == "RUN" else word for word in COMMANDS[command]))
    assert done.returncode == 2
    assert f"{run}/" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (places / "c.png").exists()


@pytest.mark.parametrize("command", [["compare", "folder"], ["dev model-zoo"]])
@pytest.mark.parametrize("output", ["", ".", "folder", "loop", "pipe", "file/x", "x" * 300])
def test_outputs_are_checked_before_the_work(places, run_command, monkeypatch, command, output):
    monkeypatch.setattr("adatad.report.compare.read_result", lambda path: pytest.fail("the work began"))
    monkeypatch.setattr("adatad.dev.model_zoo.model_zoo", lambda: pytest.fail("the work began"))
    before = sorted(path.name for path in places.iterdir())
    done = run_command(*command, "--output", output)
    assert done.returncode == 2
    # Before it, for an empty path, stands how the command is used.
    assert len([line for line in done.stderr.splitlines() if not line.startswith(("usage", " "))]) == 1
    assert any(text in done.stderr for text in ("name a", "expected the name of a file", "expected a path"))
    assert sorted(path.name for path in places.iterdir()) == before
