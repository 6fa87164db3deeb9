"""The end of every command: an exit code, and one line instead of a traceback for what went wrong.

    0    done
    1    done, and what was asked for isn't so (a bar not met, a video that can't be read)
    2    bad input: the line names the file, key or video, and what to do
    75   asked to stop, and saved: the same command with --resume auto goes on
    130  interrupted by Ctrl-C
    141  what reads the output has gone (`| head`)

Imports nothing heavy, so that an interruption while the rest is imported ends in a line too.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from adatad.errors import UserError
from adatad.printing import program

BAD_INPUT, INTERRUPTED, OUTPUT_CLOSED = 2, 130, 141
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_interrupted = False
"""True from Ctrl-C on: a library that was being imported may have turned it into an error of its own."""
MAX_SHOWN = 40
"""Characters of a value that an error repeats; longer ones are cut."""
NO_MEMORY = "memory ran out: give the process more (ulimit -v, the container's or job's limit), or take fewer workers"

NO_PACKAGE = "bash launch/setup.sh makes an environment with all packages, source .venv/bin/activate enters it"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as this process's command and leave with its exit code."""
    take_over_process()
    code = exit_code(main)
    # What is still in the buffer may fail, too: the reader has gone, or the disk is full.
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        # Python would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def exit_code(main: Callable[[], int | None]) -> int:
    """Return the exit code that a command's `main` leaves with. A UserError, an error of the system, endless nesting or
    an interruption is said in one line on stderr; only a defect of the program raises."""
    try:
        code = main() or 0
        # Here, not when Python leaves: what can't be printed is known now.
        sys.stdout.flush()
        return code
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else BAD_INPUT if left.code else 0
    except UserError as error:
        say(str(error))
    except KeyboardInterrupt:
        return _interruption()
    # Before OSError, which it is.
    except BrokenPipeError:
        return OUTPUT_CLOSED
    except MemoryError:
        say(NO_MEMORY)
    except RecursionError:
        say("the input is nested too deeply, or refers to itself")
    except RuntimeError as error:
        # What pathlib says of a link to itself.
        if not str(error).startswith("Symlink loop"):
            raise
        say(f"{str(error).partition(' from ')[2]}: is a link that leads back to itself; name a file")
    except OSError as error:
        if error.errno == errno.ENOMEM:
            say(NO_MEMORY)
        else:
            reason = error.strerror or str(error) or type(error).__name__
            where = "" if error.filename is None else f"{error.filename}: "
            say(f"{where}{reason}; free some room, or give a place that can be read and written")
    except ImportError as error:
        # A library that can't be mapped for want of address space is no missing package.
        if _interrupted:
            return _interruption()
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("adatad"):
            say(f"{error} in {sys.executable}: {NO_PACKAGE}")
        elif "allocate memory" not in str(error) and "map segment" not in str(error):
            raise
        else:
            say(NO_MEMORY)
    return BAD_INPUT


def say(text: str) -> None:
    """Print an error on stderr, under the command's name. What could steer a terminal is written as an escape."""
    if sys.stderr is None:
        return
    safe = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    # Names of files may hold bytes that are no text.
    safe = safe.encode("utf-8", "backslashreplace").decode("utf-8")
    # Perhaps nobody is there to be told.
    with suppress(OSError):
        print(f"{program()}: {safe}", file=sys.stderr, flush=True)


def path_arg(text: str) -> Path:
    """Read an argparse value: a path. An empty one, as of a shell's unset variable, isn't taken for this folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: a whole number from `least` to `most`, or to the largest of 64 bits."""
    highest = 2**63 - 1 if most is None else most

    def read(text: str) -> int:
        """Read the number. Raises ArgumentTypeError, whose text argparse prints."""
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= highest:
            upper = f" to {most}" if most is not None else ""
            got = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}{upper}, got {got!r}")
        return value

    return read


def take_over_process() -> None:
    """Prepare this process for a command: what is printed never raises for its encoding, closed standard streams are
    opened, and Ctrl-C ends in one line from here on."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _say_interrupted
    # A handler of somebody else's, as a caller of the library may have, stays.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note_interruption)


def _open_what_is_closed() -> None:
    """Open standard streams that were closed at the start (`>&-`): the next file that is opened would take their
    numbers, and what libraries print would end in it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115, for good


def _interruption() -> int:
    say("interrupted")
    return INTERRUPTED


def _note_interruption(number: int, frame: FrameType | None) -> NoReturn:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _say_interrupted(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say one line at Ctrl-C while modules are imported, some of which make another error of it."""
    if not issubclass(kind, KeyboardInterrupt) and not (_interrupted and issubclass(kind, ImportError)):
        sys.__excepthook__(kind, error, traceback)
        return
    say("interrupted")
    # At once, past libraries that are half imported; a second Ctrl-C meanwhile would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os._exit(INTERRUPTED)
