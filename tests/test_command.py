"""How commands end: one line and an exit code, whatever happened."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from adatad import command
from adatad.errors import UserError


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


def nested() -> int:
    return nested()


ENDS = {
    "done": (lambda: 0, 0, ""),
    "a command without a code": (lambda: None, 0, ""),
    "bad input": (raising(UserError("a.json: expected a list")), 2, "a.json: expected a list\n"),
    "escape sequences": (raising(UserError("video 'a\x1b[2J\r'")), 2, "video 'a\\x1b[2J\\r'\n"),
    "a full disk": (raising(OSError(errno.ENOSPC, "No space left on device", "x.json")), 2, "x.json: No space left"),
    "no memory": (raising(MemoryError()), 2, "memory ran out"),
    "no memory to map a library": (
        raising(ImportError("libx.so: failed to map segment from shared object")), 2, "memory ran out"),
    "an endless nesting": (nested, 2, "nested too deeply"),
    "an interruption": (raising(KeyboardInterrupt()), 130, "interrupted\n"),
}  # fmt: skip


@pytest.mark.parametrize(("main", "code", "expected"), ENDS.values(), ids=ENDS)
def test_a_command_ends_in_one_line_and_a_code(main, code, expected, capsys):
    with pytest.raises(SystemExit) as left:
        command.run(main)
    assert left.value.code == code
    said = capsys.readouterr().err
    assert said.count("\n") == (1 if expected else 0)
    assert expected in said


def test_a_defect_of_the_program_keeps_its_traceback():
    for defect in (KeyError("x"), ImportError("No module named 'torch'")):
        with pytest.raises(type(defect)):
            command.run(raising(defect))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "nan", "²", "9" * 30, "9" * 5000])
def test_numbers_out_of_range_are_no_numbers(text):
    with pytest.raises(Exception, match="expected a whole number from 1"):
        command.whole_number(1)(text)
    assert command.whole_number(1)("7") == 7


PRINTS = "from adatad.command import run\nrun(lambda: print('x' * 100_000))"


def test_a_reader_that_goes_away_ends_a_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", PRINTS], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_behind_the_output_is_said():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", PRINTS], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_a_name_that_the_terminal_cannot_show_is_printed_as_an_escape():
    code = "from adatad.command import run\nrun(lambda: print('Müller'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "M\\xfcller\n")


def test_an_interruption_while_modules_are_imported_is_one_line():
    code = "import os, signal, adatad.command\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr == "-c: interrupted\n"
