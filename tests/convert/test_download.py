"""Downloads from a local server: resumed, verified, and never a wrong or half a file under the name that was asked."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adatad.convert.download import DownloadError, ExpectedFile, download, part_of

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """A server of one file; its attributes say how it behaves."""

    content, mark, ranges = CONTENT, '"1"', True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.cut_after, self.status = [], []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/a"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_response(server.status.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a")
            self.end_headers()
            return
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == server.mark:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        size = len(server.content)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("ETag", server.mark)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        body = server.content[start:]
        self.wfile.write(body[: server.cut_after.pop(0)] if server.cut_after else body)


@pytest.fixture
def server():
    server = Server()
    # The default poll makes each shutdown wait for half a second.
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(server, output, **expected):
    return download(server.address, output, ExpectedFile(**expected), wait_seconds=0.0)


def only(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_is_downloaded_into_a_new_folder_and_its_digest_returned(server, tmp_path):
    output = tmp_path / "née a b" / "w.pth"
    assert fetch(server, output, size_bytes=len(CONTENT), sha256=SHA256) == SHA256
    assert output.read_bytes() == CONTENT
    assert only(output.parent) == ["w.pth"]


def test_a_broken_connection_is_continued_where_it_broke(server, tmp_path):
    server.cut_after = [1000, 500]
    assert fetch(server, tmp_path / "w.pth") == SHA256
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_what_an_earlier_call_left_is_continued(server, tmp_path):
    server.cut_after = [1000, 100, 100, 100]
    with pytest.raises(DownloadError, match=r"4 times; .*w\.pth\.part is kept, and the next fetch continues it"):
        fetch(server, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
    assert fetch(server, tmp_path / "w.pth") == SHA256
    assert server.asked[-1] == "bytes=1300-"


def test_a_complete_part_is_taken_without_another_download(server, tmp_path):
    server.cut_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "w.pth")
    part_of(tmp_path / "w.pth").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "w.pth") == SHA256


@pytest.mark.parametrize("change", ["no ranges", "another file"])
def test_a_server_that_can_not_continue_sends_all_of_its_present_file(server, tmp_path, change):
    server.cut_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "w.pth")
    if change == "no ranges":
        server.ranges = False
    else:
        server.content, server.mark = CONTENT[::-1], '"2"'
    fetch(server, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == server.content


def test_parts_of_a_server_that_marks_no_versions_are_never_joined(server, tmp_path):
    server.mark = 'W/"1"'
    server.cut_after = [1000]
    assert fetch(server, tmp_path / "w.pth") == SHA256
    assert server.asked == [None, None]


@pytest.mark.parametrize(
    ("content", "expected", "words"),
    [
        (CONTENT, {"sha256": "0" * 64}, "has a SHA-256 that begins with"),
        (CONTENT, {"sha256": "00000000"}, "expected 00000000"),
        (CONTENT, {"size_bytes": 10}, "has 10,240 bytes, expected 10"),
        (b"<!DOCTYPE html><p>too large to scan", {}, "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", {}, "a pointer of Git LFS"),
    ],
)
def test_another_file_than_expected_is_set_aside(server, tmp_path, content, expected, words):
    server.content = content
    output = tmp_path / "w.pth"
    with pytest.raises(DownloadError, match=f"{words}.* kept as .*w.pth.wrong"):
        fetch(server, output, **expected)
    assert only(tmp_path) == ["w.pth.wrong"]


def test_redirects_are_followed(server, tmp_path):
    address = server.address.replace("/a", "/moved")
    assert download(address, tmp_path / "w.pth", ExpectedFile(), wait_seconds=0.0) == SHA256


@pytest.mark.parametrize(("status", "words"), [(404, "no such file"), (403, "access is refused"), (401, "login")])
def test_refusals_are_said_at_once(server, tmp_path, status, words):
    server.status = [status] * 9
    with pytest.raises(DownloadError, match=rf"{words}.*\(HTTP {status}\); nothing was written"):
        fetch(server, tmp_path / "w.pth")
    assert len(server.asked) == 1
    assert only(tmp_path) == []


def test_what_may_pass_is_tried_again_but_not_for_ever(server, tmp_path):
    server.status = [503, 429]
    assert fetch(server, tmp_path / "w.pth") == SHA256
    server.status = [429] * 9
    with pytest.raises(DownloadError, match=r"too many downloads for now.* 4 times"):
        fetch(server, tmp_path / "v.pth")


def test_no_network_is_an_error_of_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="can't be reached: Connection refused, 4 times; nothing was written"):
        fetch(server, tmp_path / "w.pth")
