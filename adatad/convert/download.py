"""Download of one file over HTTP: resumed where it was interrupted, verified, and renamed when it is complete."""

from __future__ import annotations

import hashlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple

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
    check_output(output)
    part = part_of(output)
    for tried in range(1, TRIES + 1):
        try:
            _receive(address, part)
            break
        except _PassingError as error:
            if tried == TRIES:
                raise DownloadError(f"{address}: {error}, {TRIES} times; {_kept(part)}") from error
            time.sleep(wait_seconds * 2 ** (tried - 1))
    digest = _verified(part, output, expected)
    try:
        part.replace(output)
    except OSError as error:
        raise FileError(f"{output}: can't be written: {reason(error)}; the download is kept as {part}") from error
    _note_of(part).unlink(missing_ok=True)
    return digest


class _PassingError(Exception):
    """An error after which another try may succeed."""


def _note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _kept(part: Path) -> str:
    return f"{part} is kept, and the next fetch continues it" if part.exists() else "nothing was written"


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
            start = _start_of(answer, start)
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


def _read_note(part: Path) -> dict[str, str]:
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
        part.unlink(missing_ok=True)
        raise _PassingError("the unfinished file is no part of the server's file") from error
    if error.code in RETRIED:
        raise _PassingError(REFUSALS.get(error.code, f"the server failed (HTTP {error.code})")) from error
    why = REFUSALS.get(error.code, str(error.reason))
    raise DownloadError(f"{address}: {why} (HTTP {error.code}); {_kept(part)}") from error


def _start_of(answer: HTTPResponse, asked: int) -> int:
    """Return the byte at which the answer begins: 0 where the server sends the whole file."""
    if answer.status != 206:
        return 0
    begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if begins is None or int(begins[1]) != asked:
        raise _PassingError("the server sent another part of the file than it was asked for")
    return asked


def _write(answer: HTTPResponse, part: Path, start: int, address: str) -> None:
    """Write the answer to `part` from byte `start` on."""
    left = int(length) if (length := answer.headers.get("Content-Length", "")).isdigit() else None
    total = None if left is None else start + left
    done = start
    try:
        if not start:
            write_json(_note_of(part), {"address": address, "mark": _mark(answer.headers)})
        with open(part, "ab" if start else "wb") as file, progress("bytes downloaded", total) as task:
            task.update(done)
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                task.update(done)
    except (TimeoutError, ConnectionError):
        raise
    except OSError as error:
        raise DownloadError(f"{part}: can't be written: {reason(error)}; make room: {_kept(part)}") from error
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
