"""How commands end: one line and an exit code, whatever happened."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import adatad
from adatad.cli import command
from adatad.cli.main import VERBS, main
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
    "a stop": (raising(SystemExit(75)), 75, ""),
}  # fmt: skip


@pytest.mark.parametrize(("main", "code", "expected"), ENDS.values(), ids=ENDS)
def test_a_command_ends_in_one_line_and_a_code(main, code, expected, capsys):
    assert command.exit_code(main) == code
    said = capsys.readouterr().err
    assert said.count("\n") == (1 if expected else 0)
    assert expected in said


def test_a_defect_of_the_program_keeps_its_traceback():
    for defect in (KeyError("x"), ImportError("No module named 'torch'")):
        with pytest.raises(type(defect)):
            command.exit_code(raising(defect))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "nan", "²", "9" * 30, "9" * 5000])
def test_numbers_out_of_range_are_no_numbers(text):
    with pytest.raises(Exception, match="expected a whole number from 1"):
        command.whole_number(1)(text)
    assert command.whole_number(1)("7") == 7


PRINTS = "from adatad.cli.command import run\nrun(lambda: print('x' * 100_000))"


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
    code = "from adatad.cli.command import run\nrun(lambda: print('Müller'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "M\\xfcller\n")


def test_an_interruption_while_modules_are_imported_is_one_line():
    code = "import os, signal\nfrom adatad.cli import command\ncommand.take_over_process()\n"
    code += "os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr == "-c: interrupted\n"


def test_a_verb_s_parser_is_built_without_torch_and_numpy():
    """So that help comes at once: of all verbs in one fresh process."""
    code = (
        "import sys\nfrom adatad.cli.main import VERBS, parser_of, usage\nusage()\n"
        "assert 'yaml' not in sys.modules and 'rich' not in sys.modules\n"
        "for verb in VERBS: assert parser_of(verb).format_help().startswith('usage: adatad')\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'av', 'tensorboard', 'timm', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_help_lists_every_verb_and_a_mistyped_one_proposes_the_nearest(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {verb} " in listed for verb in VERBS)
    for typed, meant in (("trian", "train"), ("evalute", "evaluate"), ("Train", "train")):
        assert main([typed]) == 2
        assert f"did you mean adatad {meant}?" in capsys.readouterr().err
    assert main(["train", "x", "--egine", "fsdp"]) == 2
    assert "did you mean --engine?" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adatad {adatad.__version__}\n"


def test_deepspeed_may_put_its_rank_before_the_verb(capsys, monkeypatch):
    monkeypatch.setattr("adatad.cli.train.before_imports", lambda: None)
    assert main(["--local_rank=0", "spec", "nowhere.yaml"]) == 2
    assert "--local_rank" in capsys.readouterr().err
    assert main(["--local_rank=0", "train", "nowhere.yaml"]) == 2
    assert "nowhere.yaml: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_commands_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    option = "-l force" if shell == "fish" else "--force"
    assert all(word in script for word in (*VERBS, "from-csv", option))
    if shell == "bash":
        typed = "COMP_WORDS=(adatad data check --wo); COMP_CWORD=3; _adatad; echo ${COMPREPLY[*]}"
        done = subprocess.run(["bash", "-c", f"{script}\n{typed}"], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("--workers\n", "")


def test_scripts_of_tools_and_modules_are_the_same_command():
    """Launchers start either a file or the module."""
    root = Path(__file__).parents[2]
    for words in (["tools/train.py"], ["-m", "adatad", "train"]):
        done = subprocess.run([sys.executable, *words, "gone.yaml"], cwd=root, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, "adatad train: gone.yaml: no such file in " + f"{root}\n")
