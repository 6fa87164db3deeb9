"""adatad report: a page a run, one page of several, or a live one; contradictions are refused before the work."""

import json
import socket

import pytest

from adatad.cli.report import run_directories
from adatad.report.serve import Server


@pytest.fixture
def runs(tiny_spec, tmp_path, monkeypatch):
    """A folder runs with two runs that have just begun, one with a checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/id0", 'b x/\u00fc "1"'):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "spec.yaml").write_text(tiny_spec.read_text())
        (run / "owner.txt").write_text("x")
    checkpoint = tmp_path / "runs" / "a" / "id0" / "checkpoints" / "step-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "spec.yaml").write_text("")
    (checkpoint / "owner.txt").write_text("")
    return tmp_path / "runs"


def test_each_run_gets_its_own_report(runs, run_command):
    done = run_command("report", "runs/a/id0", 'runs/b x/\u00fc "1"')
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["runs/a/id0/report.html", 'runs/b x/\u00fc "1"/report.html']
    assert all((runs.parent / line).is_file() for line in done.stdout.splitlines())


def test_a_folder_stands_for_the_runs_below_it_on_one_page(runs, run_command):
    done = run_command("report", "runs", "runs/a/id0/../id0", "--output", "new/page.html")
    assert (done.returncode, done.stdout) == (0, "new/page.html\n")
    data = (runs.parent / "new" / "page.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    assert [run["run"] for run in json.loads(data)["runs"]] == ["id0", '\u00fc "1"']
    assert not list(runs.rglob("report.html"))


def test_only_the_newest_of_many_runs_are_taken(runs, monkeypatch, capsys):
    monkeypatch.setattr("adatad.cli.report.MAX_RUNS", 1)
    assert len(run_directories([runs], folders=True)) == 1
    assert "the newest 1 of 2 runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs"], "is no run directory"),
        (["runs/a", "--output", "runs/a/id0/spec.yaml/x.html"], "can't be written"),
        (["runs/a/id0", "--output", "runs/a/id0/spec.yaml"], "is a file of the run"),
        (["runs/a/id0", "--output", "runs"], "is no regular file, but a folder"),
        (["runs/a/id0", "--serve", "--output", "x.html"], "give one of the two"),
        (["runs/a/id0", "--port", "8000"], "give --serve too"),
        (["runs/a/id0", "--serve", "--port", "65536"], "expected a whole number from 0 to 65535"),
        (["runs/a/id0", "runs/gone", "--serve"], "runs/gone: is no run directory"),
        (["runs/a/id0/checkpoints/step-1", "--serve"], "step-1"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(runs, run_command, arguments, message):
    before = sorted(runs.parent.rglob("*"))
    done = run_command("report", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert sorted(runs.parent.rglob("*")) == before


def test_serving_prints_the_address_alone_and_ends_with_ctrl_c(runs, run_command, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    done = run_command("report", "runs", "--serve")
    assert done.returncode == 130
    assert done.stdout.startswith("http://127.0.0.1:")
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said(runs, run_command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command("report", "runs/a/id0", "--serve", "--port", port)
    assert done.returncode == 2
    assert f"--port {port}: is in use" in done.stderr
