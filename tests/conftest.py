"""What many tests share: a few seconds of built-in videos, and a spec that trains on them in a moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pictures
import pytest
from hypothesis import settings
from tiny_spec import TINY_SPEC

from adatad.stop_signals import STOP_SIGNALS

# A busy machine is no failure. Without --full the examples are few and the same every time.
settings.register_profile("short", max_examples=25, derandomize=True, deadline=None)
settings.register_profile("full", max_examples=250, deadline=None)

# One thread a process, whatever the machine: results must not depend on it, and tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
Run = Callable[..., subprocess.CompletedProcess]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also what launch/test.sh leaves out for its time")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="runs with --full"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports of a test go from process to process as UTF-8, which what it logged of a file's name need not be."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a data set of six training and two validation videos."""
    from adatad.data.prepare.demo import make_demo

    folder = tmp_path_factory.mktemp("data") / "tiny"
    make_demo(folder, train_videos=6, validation_videos=2, seed=5)
    return folder


@pytest.fixture
def tiny_spec(tiny_data: Path, tmp_path: Path) -> Path:
    """A spec file of three epochs of three steps; its runs lie in tmp_path/runs/tiny/id<N>."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=tmp_path / "runs"))
    return path


@pytest.fixture(scope="session")
def shared_spec(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same for tests that leave nothing in its runs: ranks that train a few steps."""
    path = tmp_path_factory.mktemp("shared") / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=tiny_data, runs=path.parent / "runs"))
    return str(path)


@pytest.fixture(scope="session")
def browser() -> Generator[Any]:
    """A real Chromium; tests with it skip where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program)
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def unnamed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the name of a command that one test runs from the tests after it."""
    monkeypatch.setattr("adatad.printing._program", None)


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run_command("train", ...) runs `adatad train ...` in this process and in the current folder, and returns it as a
    finished process, its output as text: importing torch again would take longer than most commands do."""

    def run(verb: str, *arguments: object) -> subprocess.CompletedProcess:
        from adatad import printing
        from adatad.cli.main import main

        words = [*verb.split(), *map(str, arguments)]
        monkeypatch.setattr(printing, "_program", None)
        monkeypatch.setattr(sys, "argv", ["adatad", *words])
        capsys.readouterr()
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        environment = dict(os.environ)
        try:
            code = main(words)
        finally:
            # A process of its own would end with what it took over.
            signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.environ.clear()
            os.environ.update(environment)
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run


@pytest.fixture
def run_process() -> Run:
    """The same in a process of its own, in the checkout: for what only a process can show."""

    def run(verb: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "adatad", *verb.split(), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)

    return run


@pytest.fixture
def shared_folder() -> Path:
    """The folder that ADATAD_SHARED names: goldens of the reference."""
    folder = os.environ.get("ADATAD_SHARED")
    if folder is None:
        pytest.skip("ADATAD_SHARED, the folder of the reference's goldens, isn't set")
    return Path(folder)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("full" if config.getoption("--full") else "short")


@pytest.hookimpl(specname="pytest_collection_modifyitems")
def pytest_begin_with_slow_tests(items: list[pytest.Item]) -> None:
    # xdist deals out the list in order, so slow tests go to the first process, and worksteal gives the others a part of
    # what it has left when they are through. Jobs of a real Slurm come first: they wait more than they compute, and one
    # process starts one cluster for all of them.
    items.sort(key=lambda item: (item.path.parent.name != "slurm", item.get_closest_marker("slow") is None))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before the fixtures of a module, which may be runs as well.
    pictures.draw(item.get_closest_marker("pictures") is not None)
