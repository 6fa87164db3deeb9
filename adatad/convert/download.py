"""Download of one file over HTTP: resumed where it was interrupted, verified, and renamed when it is complete."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

from adatad.errors import UserError
from adatad.files import FileError, check_output, parse_json, read_start, reason, what_it_is, write_json
from adatad.progress_bar import progress

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0
TRIES = 4
RETRIED = {408, 429, 500, 502, 503, 504}
"""HTTP status codes that may pass."""
REFUSALS = {
    401: "it asks for a login",
    403: "access is refused (a login, accepted terms, or too many downloads today)",
    404: "there is no such file any more",
    410: "there is no such file any more",
    429: "too many downloads for now; try again later",
}
"""What a status code that doesn't pass means."""


class DownloadError(UserError):
    """Raised for a download that failed; the message says why, and what is kept."""


class ExpectedFile(NamedTuple):
    """Size and hash of a file, as far as they are known. sha256: all digits or the first ones; None: not known."""

    size_bytes: int | None = None
    sha256: str | None = None


def part_of(output: Path) -> Path:
    """Return the name that an unfinished download of `output` has."""
    return output.with_name(output.name + ".part")


def download(address: str, output: Path, expected: ExpectedFile, wait_seconds: float = 2.0) -> str:
    """Download a file to `output`, which appears when it is complete and right; return its SHA-256.

    What an earlier call left in `part_of(output)` is continued, unless the server's file has changed since.
    wait_seconds: before the second try; doubled for each later one. Raises DownloadError, and FileError for `output`.
    """

    def receive(part: Path) -> None:
        for tried in range(1, TRIES + 1):
            try:
                return _receive(address, part)
            except _PassingError as error:
                if tried == TRIES:
                    raise DownloadError(f"{address}: {error}, {TRIES} times; {kept(part)}") from error
                time.sleep(wait_seconds * 2 ** (tried - 1))

    return obtain(output, expected, receive)


def obtain(output: Path, expected: ExpectedFile, receive: Callable[[Path], None]) -> str:
    """Let `receive` fill the unfinished file, verify it, and give it its name; return its SHA-256.

    Nobody else fetches the same file meanwhile. Raises DownloadError, and FileError for `output`.
    """
    check_output(output)
    part = part_of(output)
    with _alone(part):
        if expected.size_bytes is not None:
            check_room(part, expected.size_bytes - part.stat().st_size)
        receive(part)
        digest = _verified(part, output, expected)
        try:
            part.replace(output)
        except OSError as error:
            raise FileError(f"{output}: can't be written: {reason(error)}; the download is kept as {part}") from error
        _note_of(part).unlink(missing_ok=True)
    return digest


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Hold the lock of an unfinished file, which is made, and removed again if it stays empty. Raises DownloadError if
    another process has it."""
    while True:
        try:
            held = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise FileError(f"{part}: can't be written: {reason(error)}") from error
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(held)
            raise DownloadError(
                f"{part}: another fetch of this file is running; wait for it, then try again"
            ) from error
        except OSError:
            # A file system without locks: then nobody is kept out.
            break
        # The other fetch may have ended, and renamed what was opened here, before this one had the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), os.stat(part)):
                break
        os.close(held)
    try:
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(held), os.stat(part)) and not part.stat().st_size:
                part.unlink()
                _note_of(part).unlink(missing_ok=True)
        os.close(held)


def check_room(part: Path, more_bytes: int) -> None:
    """Raise DownloadError if so many bytes more find no room on the disk of `part`."""
    free = shutil.disk_usage(part.parent).free
    if more_bytes > free:
        raise DownloadError(
            f"{part}: {more_bytes:,} bytes are still to come, but its disk has {free:,} free; make room, or name "
            f"another folder with --output; {kept(part)}"
        )


class _PassingError(Exception):
    """An error after which another try may succeed."""


def _note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def kept(part: Path) -> str:
    """Return what is left of an unfinished download, in words."""
    begun = part.is_file() and part.stat().st_size
    return f"{part} is kept, and the next fetch continues it" if begun else "nothing was written"


def _receive(address: str, part: Path) -> None:
    """Append what is missing to `part`. Raises _PassingError where another try may help."""
    start = part.stat().st_size if part.is_file() else 0
    note = _read_note(part)
    # Without a mark of the server's version, two versions of a file could be joined in one.
    if not note.get("mark") or note.get("address") != address:
        start = 0
    headers = {"User-Agent": "adatad", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": note["mark"]}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, headers=headers), timeout=TIMEOUT_SECONDS
        ) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise DownloadError(
                    f"{address}: answered with a web page in place of the file: a proxy's, or one that asks for "
                    f"a login or a confirmation; {kept(part)}"
                )
            start = _start_of(answer, part, start, note.get("size_bytes"))
            _write(answer, part, start, address)
    except urllib.error.HTTPError as error:
        _refused(error, address, part, start)
    except urllib.error.URLError as error:
        raise _PassingError(f"can't be reached: {reason_of(error)}") from error
    except (HTTPException, TimeoutError, ConnectionError) as error:
        raise _PassingError(f"the connection broke off: {reason(error)}") from error


def reason_of(error: urllib.error.URLError) -> str:
    """Return why an address couldn't be opened."""
    return reason(error.reason) if isinstance(error.reason, BaseException) else str(error.reason)


def _read_note(part: Path) -> dict[str, Any]:
    with suppress(OSError, UserError, UnicodeDecodeError):
        note = parse_json(_note_of(part).read_text(encoding="utf-8"), _note_of(part))
        return note if isinstance(note, dict) else {}
    return {}


def _refused(error: urllib.error.HTTPError, address: str, part: Path, start: int) -> None:
    if error.code == 416:
        # Complete already, or longer than the server's file: only a new start tells.
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if total and int(total[1]) == start:
            return
        _restart(part)
        raise _PassingError("the unfinished file is no part of the server's file") from error
    if error.code in RETRIED:
        raise _PassingError(REFUSALS.get(error.code, f"the server failed (HTTP {error.code})")) from error
    why = REFUSALS.get(error.code, str(error.reason))
    raise DownloadError(f"{address}: {why} (HTTP {error.code}); {kept(part)}") from error


def _restart(part: Path) -> None:
    """Forget what was received. The file stays: its lock is held."""
    with suppress(OSError):
        os.truncate(part, 0)


def _start_of(answer: HTTPResponse, part: Path, asked: int, size_bytes: int | None) -> int:
    """Return the byte at which the answer begins: 0 where the server sends the whole file. size_bytes: of the server's
    file as it was, None if that isn't known."""
    if answer.status != 206:
        return 0
    begins = re.match(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if begins is None or int(begins[1]) != asked:
        raise _PassingError("the server sent another part of the file than it was asked for")
    if size_bytes is not None and begins[2] not in ("*", str(size_bytes)):
        _restart(part)
        raise _PassingError("the server's file has another size than before")
    return asked


def _write(answer: HTTPResponse, part: Path, start: int, address: str) -> None:
    """Write the answer to `part` from byte `start` on."""
    left = int(length) if (length := answer.headers.get("Content-Length", "")).isdigit() else None
    total = None if left is None else start + left
    done = start
    if left is not None:
        check_room(part, left if start else left - part.stat().st_size)
    try:
        if not start:
            write_json(_note_of(part), {"address": address, "mark": _mark(answer.headers), "size_bytes": left})
        with open(part, "ab" if start else "wb") as file, progress("bytes downloaded", total) as task:
            task.update(done)
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                task.update(done)
    except (TimeoutError, ConnectionError):
        raise
    except OSError as error:
        full = "; make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise DownloadError(f"{part}: can't be written: {reason(error)}{full}; {kept(part)}") from error
    if total is not None and done < total:
        raise _PassingError(f"the connection broke off after {done:,} of {total:,} bytes")


def _mark(headers: Mapping[str, str]) -> str:
    """Return the server's mark of a file's version for If-Range; weak ones aren't allowed there."""
    mark = headers.get("ETag", "")
    return mark if mark and not mark.startswith("W/") else headers.get("Last-Modified", "")


def _verified(part: Path, output: Path, expected: ExpectedFile) -> str:
    """Return the file's SHA-256. Raises DownloadError for another file than expected, which is set aside."""
    problem, digest = problem_of(part, expected)
    if problem is None:
        return digest
    aside = output.with_name(output.name + ".wrong")
    with suppress(OSError):
        part.replace(aside)
        _note_of(part).unlink(missing_ok=True)
    raise DownloadError(f"{output}: the download {problem}; it is kept as {aside} to look at, and {output} wasn't made")


def problem_of(path: Path, expected: ExpectedFile) -> tuple[str | None, str]:
    """Return what is wrong with a file, or None, and its SHA-256. Raises FileError if it can't be read."""
    if what := what_it_is(read_start(path)):
        return f"is {what}", ""
    size = path.stat().st_size
    if not size:
        return "is empty", ""
    if expected.size_bytes is not None and size != expected.size_bytes:
        return f"has {size:,} bytes, expected {expected.size_bytes:,}", ""
    try:
        with path.open("rb") as file:
            # Seconds for gigabytes, against hours of training from wrong weights.
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path}: can't be read: {reason(error)}") from error
    if expected.sha256 and not digest.startswith(expected.sha256):
        shown = digest[: len(expected.sha256)]
        return f"has a SHA-256 that begins with {shown}, expected {expected.sha256}", digest
    return None, digest
