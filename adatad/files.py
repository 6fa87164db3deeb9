"""The door for files: all that is read or written whole goes through here, with bounds and with errors in a line.

Reading: only regular files, up to a size (of what a gzip'd file unpacks to, too), as text in UTF-8 or UTF-16, as JSON
without a key that stands twice and not nested without end. Writing: a file appears under its name only when it is whole
and on the disk; what can't be written is said before the work begins where `check_output` is called first.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from adatad.errors import UserError

MAX_BYTES = 1 << 30
"""Of a file that is read whole: ten times the largest detections file of a public data set."""
MAX_SPEC_BYTES = 4 << 20
"""Of a file that a person writes: a spec, a class list, a DeepSpeed file."""
GZIP_START = b"\x1f\x8b"
UTF16_STARTS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
"""Half of a character, written as an escape: a name that holds one can be neither printed nor saved."""
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
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise FileError(f"{path}: is no regular file, but {_kind(mode)}; name a file")
            yield file
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: can't be read: {reason(error)}") from error


def read_text(path: str | Path, limit_bytes: int = MAX_BYTES) -> str:
    """A text file, plain or gzip'd (told by its first bytes, whatever it is called), in UTF-8, with or without a byte
    order mark, or in UTF-16 with one. Raises FileError."""
    content = read_bytes(path, limit_bytes)
    if content.startswith(GZIP_START):
        content = _unpacked(path, content, limit_bytes)
    encoding = "utf-16" if content.startswith(UTF16_STARTS) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        what = what_it_is(content)
        raise FileError(
            f"{path}: " + (f"is {what}" if what else f"is no text in UTF-8 ({reason(error)}); save it as UTF-8")
        ) from error


def read_json(path: str | Path, limit_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file, plain or gzip'd. Raises FileError, also for a key that stands twice in an object."""
    return parse_json(read_text(path, limit_bytes), path)


def parse_json(text: str, where: str | Path) -> Any:
    """The value of a JSON text. `where` names it in errors. Raises FileError."""
    if not text.strip():
        raise FileError(f"{where}: is not readable as JSON: it is empty")
    if LONE_SURROGATE.search(text):
        found = LONE_SURROGATE.search(text)
        line = text.count("\n", 0, found.start()) + 1
        raise FileError(f"{where}: line {line}: {found[0]} is half of a character; write the name in plain UTF-8")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise FileError(f"{where}: is not readable as JSON: it is nested too deeply") from None
    except KeyStandsTwiceError as error:
        raise FileError(f"{where}: {error.args[0]!r} stands twice in one object; keep one of the two") from None
    except ValueError as error:
        what = what_it_is(text[:200].encode())
        raise FileError(f"{where}: " + (f"is {what}" if what else f"is not readable as JSON: {error}")) from error


class KeyStandsTwiceError(ValueError):
    """JSON in which one object has a key twice: which of the two was meant, nobody knows."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        raise KeyStandsTwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))
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
        if target.exists() and not target.is_file():
            raise FileError(f"{path}: is no regular file, but {_kind(target.stat().st_mode)}; name another")
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
        if folder.exists() and not folder.is_dir():
            raise FileError(f"{path}: is a file; expected a folder to write to")
        _check_folder(folder)
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: can't be written to: {reason(error)}; name a folder of yours") from error
    return folder


def _check_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Rights alone don't tell: root may write anywhere, but on no disk that is mounted read-only.
    probe = folder / f".adatad-{os.getpid()}.unfinished"
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
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
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file that appears only when whole. Raises FileError."""
    write_text(path, json.dumps(content, indent=indent))


def reason(error: BaseException) -> str:
    """What an error says, in one line and without the path, which its reader knows: "No space left on device"."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def shown(text: object) -> str:
    """A name as it can be printed anywhere: control characters, which a terminal would obey, and halves of characters
    are written as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in str(text)
    )


def _through_links(path: Path) -> Path:
    """The file that a link points to, also through several; `path` itself if it is none."""
    return path.resolve() if path.is_symlink() else path


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
