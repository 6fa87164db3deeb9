"""The door for files: all that is read or written whole goes through here, with bounds and with errors in a line.

Reading: only regular files, up to a size (of what a gzip'd file unpacks to, too), as text in UTF-8 or UTF-16, as JSON
without a key that stands twice and not nested without end. Writing: a file appears under its name only when it is whole
and on the disk; what can't be written is said before the work begins where `check_output` is called first.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from adatad.errors import UserError

MAX_BYTES = 1 << 30
"""Of a file that is read whole: ten times the largest detections file of a public data set."""
MAX_SPEC_BYTES = 4 << 20
"""Of a file that a person writes: a spec, a class list, a DeepSpeed file."""
GZIP_START = b"\x1f\x8b"
UTF16_STARTS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
WHOLE = r"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
HALF = r"u[dD][89a-fA-F][0-9a-fA-F]{2}"
ESCAPE = re.compile(rf"\\(?:{WHOLE}|(?P<half>{HALF})|.)", re.DOTALL)
"""An escape of JSON, found one after the other, so that an escaped backslash doesn't begin another. half: a surrogate
without the other one; a name that holds it can be neither printed nor saved."""
POINTER_START = b"version https://git-lfs"
PAGE_STARTS = (b"<!doctype html", b"<html")


class FileError(UserError):
    """A file that can't be read or written; the message names it, says why, and what to do."""


def read_bytes(path: str | Path, limit_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `limit_bytes`. Raises FileError."""
    with _regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit_bytes:
            raise FileError(f"{path}: has {size:,} bytes; at most {limit_bytes:,} are read here: is it another file?")
        # One byte more: a file may grow while it is read.
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise FileError(f"{path}: grows while it is read; at most {limit_bytes:,} bytes are read here")
    return content


def read_start(path: str | Path, count: int = 512) -> bytes:
    """The first bytes of a regular file of any size, which tell what it is. Raises FileError."""
    with _regular_file(path) as file:
        return file.read(count)


@contextmanager
def _regular_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file that is open for reading; raises FileError for what is none, and for what goes wrong while it is open."""
    try:
        # Without waiting: opening a FIFO would until somebody writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise FileError(f"{path}: is no regular file, but {_kind(facts.st_mode)}; name a file")
        with open(descriptor, "rb") as file:
            yield file
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: can't be read: {reason(error)}") from error


def read_text(path: str | Path, limit_bytes: int = MAX_BYTES) -> str:
    """A text file, plain or gzip'd (told by its first bytes, whatever it is called), in UTF-8, with or without a byte
    order mark, or in UTF-16 with one. Raises FileError."""
    content = read_bytes(path, limit_bytes)
    if content.startswith(GZIP_START):
        content = _unpacked(path, content, limit_bytes)
    what = what_it_is(content)
    if what:
        raise FileError(f"{path}: is {what}")
    encoding = "utf-16" if content.startswith(UTF16_STARTS) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FileError(f"{path}: line {line} is no text in UTF-8 ({reason(error)}); save it as UTF-8") from error


def read_json(path: str | Path, limit_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file, plain or gzip'd. Raises FileError, also for a key that stands twice in an object."""
    return parse_json(read_text(path, limit_bytes), path)


def parse_json(text: str, where: str | Path) -> Any:
    """The value of a JSON text. `where` names it in errors. Raises FileError."""
    if not text.strip():
        raise FileError(f"{where}: is not readable as JSON: it is empty")
    half = _half_of_a_character(text)
    if half:
        line = text.count("\n", 0, half.start()) + 1
        raise FileError(f"{where}: line {line}: {half[0]} is half of a character; write the name in plain UTF-8")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise FileError(f"{where}: is not readable as JSON: it is nested too deeply") from None
    except KeyStandsTwiceError as error:
        raise StandsTwiceError(where, *error.args) from None
    except ValueError as error:
        raise FileError(f"{where}: is not readable as JSON: {error}") from error


def _half_of_a_character(text: str) -> re.Match[str] | None:
    if "\\ud" not in text and "\\uD" not in text:
        return None
    return next((found for found in ESCAPE.finditer(text) if found["half"]), None)


class StandsTwiceError(FileError):
    """A file in which an object has a key twice: which of the two was meant, nobody knows. value: the second one's."""

    def __init__(self, where: str | Path, key: str, value: Any):
        super().__init__(f"{where}: {shown(repr(key))} stands twice in one object; keep one of the two")
        self.key, self.value = key, value


class KeyStandsTwiceError(ValueError):
    """The same while it is read; (key, the second value)."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        raise KeyStandsTwiceError(*next(pair for pair in pairs if pair[0] in seen or seen.add(pair[0])))
    return content


def what_it_is(content: bytes) -> str | None:
    """What stands in the place of a file that was never fetched, and what to do; None if it is none of these."""
    start = content[:200].lstrip().lower()
    if start.startswith(POINTER_START):
        size = re.search(rb"size (\d+)", content[:400])
        would_be = f" (its size would be {int(size[1]) / 1e6:.1f} MB)" if size and len(size[1]) < 20 else ""
        return f"a pointer of Git LFS, not the file itself{would_be}: fetch it with git lfs pull, or download it"
    if start.startswith(PAGE_STARTS):
        return "an HTML page, not the file itself: the download asked for a login or a confirmation; fetch it again"
    return None


def _unpacked(path: str | Path, content: bytes, limit_bytes: int) -> bytes:
    """All members of a gzip'd file. Raises FileError for what is damaged or unpacks to more than `limit_bytes`."""
    parts, left, size = [], content, 0
    while left.startswith(GZIP_START):
        inflate = zlib.decompressobj(wbits=31)
        try:
            part = inflate.decompress(left, limit_bytes - size + 1)
        except zlib.error as error:
            raise FileError(f"{path}: can't be unpacked: {error}; fetch it again") from error
        size += len(part)
        if size > limit_bytes:
            raise FileError(f"{path}: unpacks to more than {limit_bytes:,} bytes; at most that many are read here")
        if not inflate.eof:
            raise FileError(f"{path}: can't be unpacked: it is cut off; fetch it again")
        parts.append(part)
        left = inflate.unused_data
    return b"".join(parts)


def check_output(path: str | Path) -> Path:
    """Make sure, before the work begins, that a file can be written to `path`: its folder is made if it isn't there,
    and what is there is a file. Raises FileError."""
    target = Path(path)
    try:
        if not str(path) or not target.name or "\0" in str(path):
            raise FileError(f"{str(path)!r}: expected the name of a file to write")
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            raise FileError(f"{path}: is no regular file, but {_kind(mode)}; name another")
        _check_folder(_through_links(target).parent)
    except (OSError, ValueError, RuntimeError) as error:
        # Of a link to itself Python 3.11 makes a RuntimeError.
        raise FileError(f"{path}: can't be written: {reason(error)}; name a file in a folder of yours") from error
    return target


def check_output_folder(path: str | Path) -> Path:
    """The same of a folder that files will be written into: it is made if it isn't there."""
    folder = Path(path)
    try:
        if not str(path):
            raise FileError("'': expected the name of a folder to write to")
        mode = _mode(folder)
        if mode is not None and not stat.S_ISDIR(mode):
            raise FileError(f"{path}: is no folder; expected one to write to")
        _check_folder(folder)
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: can't be written to: {reason(error)}; name a folder of yours") from error
    return folder


def _mode(path: Path) -> int | None:
    """What is there, behind links; None for nothing, also where a link leads to nothing. Raises OSError for a link that
    leads back to itself."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


@contextmanager
def files_to_write(outputs: Sequence[Path], inputs: Sequence[Path] = ()) -> Iterator[None]:
    """A block that works on `inputs` and then writes `outputs`: before it begins all of them are checked, also that
    none is an input. If the block fails, folders that were made for them are removed again. Raises FileError."""
    made = [folder for path in outputs for folder in path.parents if not folder.exists()]
    try:
        for path in outputs:
            check_output(path)
            if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
                raise FileError(f"{path}: is read here, and would be written over; name another place to write to")
        yield
    except BaseException:
        for folder in sorted(set(made), key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        raise


def _check_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Rights alone don't tell: root may write anywhere, but on no disk that is mounted read-only.
    probe = folder / f".adatad-{os.getpid()}.unfinished"
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A name to write to beside `path`, which becomes `path` when the block is left and the file is on the disk. If
    anything goes wrong nothing is left behind, and what was at `path` stays as it was. Raises FileError for what the
    disk doesn't take; other errors pass.

    A link is followed: the file that it points to is replaced.
    """
    target = _through_links(check_output(path))
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished{target.suffix}")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        raise FileError(
            f"{path}: can't be written: {reason(error)}; what was there is as it was. Make room, or name another file"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 that appears only when whole. Raises FileError."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file that appears only when whole. Raises FileError."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file that appears only when whole. Raises FileError."""
    write_text(path, json.dumps(content, indent=indent))


def reason(error: BaseException) -> str:
    """What an error says, in one line and without the path, which its reader knows: "No space left on device"."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def shown(text: object, most: int | None = None) -> str:
    """A name as it can be printed anywhere: control characters, which a terminal would obey, and halves of characters
    are written as escapes. most: characters, after which it is cut."""
    safe = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in str(text)
    )
    return safe if most is None or len(safe) <= most else safe[:most] + "..."


def listed(names: Sequence[object], most: int = 5, between: str = ", ") -> str:
    """Return the first `most` names, as they can be printed, and how many more there are: "a, b and 3 more"."""
    more = f"{' ' if between == ', ' else between}and {len(names) - most} more" if len(names) > most else ""
    return between.join(map(shown, names[:most])) + more


def _through_links(path: Path) -> Path:
    """The file that a link points to, also through several; `path` itself if it is none. Raises OSError for a loop."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
