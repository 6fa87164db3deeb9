"""A web server on this machine alone, whose page shows runs and follows them while they train."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from adatad.errors import UserError
from adatad.files import reason
from adatad.report.page import page
from adatad.report.run_data import RunReader
from adatad.spec import Spec

HOST = "127.0.0.1"
ALLOWED_HOSTS = (HOST, "localhost")
"""Names under which the page may be asked for: a web site whose name leads to this machine would have its own."""
LEAST_SECONDS = 1.0
"""Time between two looks at the files."""
PATIENCE_SECONDS = 2.0
"""Time for reading frames of videos in one look; the page fills up with the next ones."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class LiveRuns:
    """The data of runs as their files are now, and the pictures in it."""

    def __init__(self, runs: Sequence[tuple[Path, Spec]]) -> None:
        self.pictures: dict[str, bytes] = {}
        """JPEG files by the address at which the page asks for them."""
        self._readers = [RunReader(run, spec, self._keep, PATIENCE_SECONDS) for run, spec in runs]
        self._lock = threading.Lock()
        self._read_at = -LEAST_SECONDS
        self._data: list[dict[str, Any]] = []

    def data(self) -> list[dict[str, Any]]:
        """Return the data, read anew if it isn't of this second."""
        # Who comes while another one reads gets what was read before: scores of large sets take half a minute.
        if self._lock.acquire(blocking=not self._data):
            try:
                if time.monotonic() - self._read_at >= LEAST_SECONDS:
                    self._data = [reader.read() for reader in self._readers]
                    self._read_at = time.monotonic()
            finally:
                self._lock.release()
        return self._data

    def _keep(self, content: bytes) -> str:
        """Keep a picture; return its address."""
        address = f"picture-{hashlib.sha256(content).hexdigest()[:20]}.jpg"
        self.pictures[address] = content
        return address


class Server(ThreadingHTTPServer):
    """The server of a page of runs; `address` is where it answers."""

    daemon_threads = True

    def __init__(self, runs: Sequence[tuple[Path, Spec]], port: int = 0) -> None:
        """Listen at a port, 0 for a free one. Raises UserError if it can't be taken."""
        self.runs = LiveRuns(runs)
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"can't be taken: {reason(error)}"
            raise UserError(f"--port {port}: {what}; give another one, or none for a free one") from error

    def server_bind(self) -> None:
        """Take the port. The library's own way asks for this machine's full name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say an error in one line; a browser that has gone is none."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"adatad report: a request failed: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """Answers GET for the page, its data and its pictures: nothing of the disk has an address."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer one request."""
        host = self.headers.get("Host", "").rpartition("@")[2].partition(":")[0].lower()
        if host not in ALLOWED_HOSTS:
            self._answer(HTTPStatus.FORBIDDEN, b"this page is for http://127.0.0.1 alone\n", "text/plain")
            return
        name = self.path.partition("?")[0].removeprefix("/")
        if name in ("", "index.html"):
            self._answer(HTTPStatus.OK, page(self.server.runs.data(), live=True).encode(), "text/html; charset=utf-8")
        elif name == "data.json":
            self._answer_data()
        elif (picture := self.server.runs.pictures.get(name)) is not None:
            self._answer(HTTPStatus.OK, picture, "image/jpeg")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is nothing here\n", "text/plain")

    def _answer_data(self) -> None:
        """Answer with the data, or that it is what the page has already."""
        runs = self.server.runs.data()
        # Without the time of reading, which changes always.
        known = [{**run, "progress": {**run["progress"], "read": None}} for run in runs]
        tag = f'"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:20]}"'
        if self.headers.get("If-None-Match") == tag:
            self._answer(HTTPStatus.NOT_MODIFIED, b"", "application/json", tag)
            return
        body = json.dumps({"runs": runs, "live": True}, allow_nan=False).encode()
        self._answer(HTTPStatus.OK, body, "application/json", tag)

    def _answer(self, status: HTTPStatus, body: bytes, kind: str, tag: str | None = None) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        """Print nothing: a page asks every two seconds."""


def serve(runs: Sequence[tuple[Path, Spec]], port: int = 0) -> None:
    """Print the page's address, and answer until the process is interrupted. Raises UserError; see `Server`."""
    with Server(runs, port) as server:
        print(server.address, flush=True)
        tunnel = f"ssh -L {server.server_port}:{HOST}:{server.server_port} this-machine"
        print(f"Ctrl-C ends it; to see it from elsewhere: {tunnel}", file=sys.stderr)
        server.serve_forever()
