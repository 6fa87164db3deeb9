"""Signals: what is noted, what leaves at once, and that a second Ctrl-C ends a process that can't answer."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from adatad.stop_signals import STOP_SIGNALS
from adatad.training.signals import StopRequest


@pytest.fixture
def stop(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    request = StopRequest()
    yield request
    request.restore()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_signal_that_asks_is_noted_in_training_and_more_change_nothing(stop, number):
    stop.install().training_begins()
    signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)
    assert stop.signal_name == number.name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_before_training_a_process_alone_leaves_with_a_line(stop, number, code, capfd):
    stop.install()
    with pytest.raises(SystemExit) as left:
        signal.raise_signal(number)
    assert left.value.code == code
    assert capfd.readouterr().err.count("nothing was to be saved") == 1


@pytest.mark.parametrize("variable", ["RANK", "ADATAD_ATTEMPT"])
def test_a_rank_and_a_batch_job_only_note_it(variable, monkeypatch):
    monkeypatch.setenv(variable, "0")
    stop = StopRequest().install()
    signal.raise_signal(signal.SIGTERM)
    stop.restore()
    assert stop.signal_name == "SIGTERM"


def test_what_nohup_ignores_stays_ignored(stop):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop.install().training_begins()
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal_name is None
    finally:
        stop.restore()
        signal.signal(signal.SIGHUP, before)


def test_signals_go_back_to_whoever_had_them(stop):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop.install()
    assert all(signal.getsignal(number) != handler for number, handler in before.items())
    stop.restore()
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_once_all_is_saved_no_signal_changes_the_exit_code(stop):
    stop.install().training_begins()
    stop.ignore_signals()
    # Python gives signals that it handles back to the system before its end, but not those that are ignored.
    assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}


def test_a_second_ctrl_c_ends_a_process_that_hangs_and_an_echo_of_the_first_does_not():
    """A rank hangs so in an exchange with one that hangs: handlers of Python don't run then."""
    program = """
        import ctypes, os, signal, sys, threading, time
        import adatad.training.signals as signals
        signals.ECHO_SECONDS = float(sys.argv[1])
        signals.StopRequest().install().training_begins()
        def press():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)
            os._exit(7)
        threading.Thread(target=press).start()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    """
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    for echo_seconds, code in (("0.1", 130), ("60", 7)):
        command = [sys.executable, "-c", textwrap.dedent(program), echo_seconds]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == code, done.stderr
        assert ("stopped at once; nothing was saved" in done.stderr) == (code == 130)
        assert "Ctrl-C again stops at once" in done.stderr
