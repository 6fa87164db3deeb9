"""Reading and writing of whole files, within bounds, with errors of one line.

Reading: regular files up to a size (also of what a gzip'd file unpacks to), as text in UTF-8 or UTF-16, as JSON without
duplicate keys. Writing: a file appears under its name only when it is complete and on the disk; `check_output`, called
before long work, finds what can't be written.
"""

from __future__ import annotations

import codecs
import errno
import gc
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
"""Limit of a file that is read whole: ten times the largest detections file of a public data set."""
MAX_SPEC_BYTES = 4 << 20
"""Limit of a file that a person writes: a spec, a class list, a DeepSpeed file."""
GZIP_START = b"\x1f\x8b"
UTF16_STARTS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
WHOLE = r"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
HALF = r"u[dD][89a-fA-F][0-9a-fA-F]{2}"
# Pairs of surrogates first, then halves: in this order a pair isn't taken for two halves.
ESCAPE = re.compile(rf"\\(?:{WHOLE}|(?P<half>{HALF})|.)", re.DOTALL)
"""An escape of JSON. `.` takes an escaped backslash, so that it doesn't begin another escape. half: a lone surrogate; a
name that holds one can be neither printed nor saved."""
POINTER_START = b"version https://git-lfs"
PAGE_STARTS = (b"<!doctype html", b"<html")


class FileError(UserError):
    """A file that can't be read or written; the message names it, says why, and what to do."""


def read_bytes(path: str | Path, limit_bytes: int = MAX_BYTES, start: int = 0) -> bytes:
    """Read a regular file from byte `start` on, at most `limit_bytes`. Raises FileError."""
    with _regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size - start
        if size > limit_bytes:
            raise FileError(f"{path}: has {size:,} bytes; at most {limit_bytes:,} are read here: is it another file?")
        file.seek(start)
        # One byte more: a file may grow while it is read. Not the limit at once: Python makes room for all it asks for.
        content = file.read(max(size, 0) + 1)
        if len(content) > size:
            content += file.read(limit_bytes + 1 - len(content))
    if len(content) > limit_bytes:
        raise FileError(f"{path}: grows while it is read; at most {limit_bytes:,} bytes are read here")
    return content


def read_start(path: str | Path, count: int = 512) -> bytes:
    """Read the first bytes of a regular file of any size. Raises FileError."""
    with _regular_file(path) as file:
        return file.read(count)


@contextmanager
def _regular_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Raises FileError for anything else, and for errors while it is open."""
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer.
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
    """Read a text file, plain or gzip'd (by its first bytes, not its name), in UTF-8 with or without a byte order mark,
    or in UTF-16 with one. Raises FileError."""
    content = read_bytes(path, limit_bytes)
    if content.startswith(GZIP_START):
        content = _unpacked(path, content, limit_bytes)
    what = what_it_is(content)
    if what:
        raise FileError(f"{path}: is {what}")
    # "utf-8-sig" takes a byte order mark off, which editors on Windows write.
    encoding = "utf-16" if content.startswith(UTF16_STARTS) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FileError(f"{path}: line {line} is no text in UTF-8 ({reason(error)}); save it as UTF-8") from error


def read_json(path: str | Path, limit_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file, plain or gzip'd. Raises FileError, also for a duplicate key in an object."""
    return parse_json(read_text(path, limit_bytes), path)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Keep the garbage collector from running inside of the context, in which large files become objects.

    It would look at all of them again and again and find nothing, since they hold no cycles: a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_json(text: str, where: str | Path) -> Any:
    """Return the value of a JSON text. `where` names it in errors. Raises FileError."""
    if not text.strip():
        raise FileError(f"{where}: is not readable as JSON: it is empty")
    # The plain search first: finding all escapes of a large detections file would take seconds.
    escapes = ESCAPE.finditer(text) if "\\ud" in text or "\\uD" in text else ()
    half = next((found for found in escapes if found["half"]), None)
    if half:
        line = text.count("\n", 0, half.start()) + 1
        raise FileError(f"{where}: line {line}: {half[0]} is half of a character; write the name in plain UTF-8")
    try:
        with collection_paused():
            return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise FileError(f"{where}: is not readable as JSON: it is nested too deeply") from None
    except KeyStandsTwiceError as error:
        raise StandsTwiceError(where, *error.args) from None
    except ValueError as error:
        raise FileError(f"{where}: is not readable as JSON: {error}") from error


class StandsTwiceError(FileError):
    """A file in which an object has a duplicate key, so that the meaning is ambiguous. value: the second one's."""

    def __init__(self, where: str | Path, key: str, value: Any):
        super().__init__(f"{where}: {shown(repr(key))} stands twice in one object; keep one of the two")
        self.key, self.value = key, value


class KeyStandsTwiceError(ValueError):
    """A duplicate key, raised within the JSON parser; arguments: the key, its second value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        # json keeps the last of duplicates silently.
        seen: set[str] = set()
        raise KeyStandsTwiceError(*next(pair for pair in pairs if pair[0] in seen or seen.add(pair[0])))
    return content


def what_it_is(content: bytes) -> str | None:
    """Return what a download left in the place of a file, and what to do; None if it is none of the known cases."""
    start = content[:200].lstrip().lower()  # HTML may begin with blanks, and in either case
    if start.startswith(POINTER_START):
        size = re.search(rb"size (\d+)", content[:400])
        would_be = f" (its size would be {int(size[1]) / 1e6:.1f} MB)" if size and len(size[1]) < 20 else ""
        return f"a pointer of Git LFS, not the file itself{would_be}: fetch it with git lfs pull, or download it"
    if start.startswith(PAGE_STARTS):
        return "an HTML page, not the file itself: the download asked for a login or a confirmation; fetch it again"
    return None


def _unpacked(path: str | Path, content: bytes, limit_bytes: int) -> bytes:
    """Unpack all members of a gzip'd file. Raises FileError if it is damaged or unpacks to more than `limit_bytes`."""
    # zlib instead of gzip: it stops at a limit, so that a small file can't fill the memory.
    parts, left, size = [], content, 0
    while left.startswith(GZIP_START):
        # 31: gzip's header and checksum; one object for each member, as files that were joined have several.
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
    """Check, before work begins, that a file can be written to `path`; make its folder. Raises FileError."""
    target = Path(path)
    try:
        if not str(path) or not target.name or "\0" in str(path):
            raise FileError(f"{str(path)!r}: expected the name of a file to write")
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            raise FileError(f"{path}: is no regular file, but {_kind(mode)}; name another")
        # The folder of what a link points to: that is where the new file is written and renamed.
        _check_folder(_through_links(target).parent)
    except (OSError, ValueError, RuntimeError) as error:
        # For a link to itself Python 3.11 raises a RuntimeError.
        raise FileError(f"{path}: can't be written: {reason(error)}; name a file in a folder of yours") from error
    return target


def check_output_folder(path: str | Path) -> Path:
    """Check, before work begins, that files can be written into a folder; make it. Raises FileError."""
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
    """Return the mode of what is there, links followed; None for nothing and for a broken link. Raises OSError for a
    link to itself."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


@contextmanager
def files_to_write(outputs: Sequence[Path], inputs: Sequence[Path] = ()) -> Iterator[None]:
    """Check the outputs of a block before it begins, also that none is an input. If the block fails, remove the folders
    that were made for them. Raises FileError."""
    # Listed before any is made.
    made = [folder for path in outputs for folder in path.parents if not folder.exists()]
    try:
        for path in outputs:
            check_output(path)
            if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
                raise FileError(f"{path}: is read here, and would be written over; name another place to write to")
        yield
    except BaseException:
        # Deepest first; one that got other files meanwhile stays.
        for folder in sorted(set(made), key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        raise


def _check_folder(folder: Path) -> None:
    # Made now: whether it can be made is a part of the question.
    folder.mkdir(parents=True, exist_ok=True)
    # A test by writing: rights alone don't tell, since root has all, also on a disk mounted read-only.
    probe = folder / f".adatad-{os.getpid()}.unfinished"
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to, which is renamed to `path` when the block ends and the file is on the
    disk.

    If anything fails, nothing is left behind and `path` stays as it was. A link is followed: the file that it points to
    is replaced. Raises FileError for errors of the disk; other errors pass.
    """
    target = _through_links(check_output(path))
    # In the same folder: a rename across disks isn't atomic. The suffix stays, by which libraries choose a format.
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished{target.suffix}")
    try:
        yield unfinished
        # Before the rename: after a crash, some file systems would show the new name with an empty file.
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
    """Write a text file in UTF-8, atomically. Raises FileError."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically. Raises FileError."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file atomically. Raises FileError."""
    write_text(path, json.dumps(content, indent=indent))


def reason(error: BaseException) -> str:
    """Return the first line of an error, without the path, which messages name anyway: "No space left on device"."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def shown(text: object, most: int | None = None) -> str:
    """Return a name as it can be printed anywhere: control characters and lone surrogates as escapes.

    most: characters, after which it is cut.
    """
    safe = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in str(text)
    )
    return safe if most is None or len(safe) <= most else safe[:most] + "..."


def listed(names: Sequence[object], most: int = 5, between: str = ", ") -> str:
    """Return the first `most` names, as they can be printed, and how many more there are: "a, b and 3 more"."""
    more = f"{' ' if between == ', ' else between}and {len(names) - most} more" if len(names) > most else ""
    return between.join(map(shown, names[:most])) + more


def _through_links(path: Path) -> Path:
    """Return the file that a link points to, also through several; other paths as they are. Raises OSError for a
    loop."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
