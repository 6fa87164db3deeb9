"""Downloads from a local server: resumed, verified, and never a wrong or half a file under the name that was asked."""

import errno
import hashlib
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adatad.cli.main import main
from adatad.convert.download import DownloadError, ExpectedFile, download, part_of
from adatad.convert.hub import download_from_hub
from adatad.spec.published import published

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """A server of one file; its attributes say how it behaves."""

    content, mark, ranges, kind = CONTENT, '"1"', True, "application/octet-stream"

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.cut_after, self.status, self.tokens, self.hub_status = [], [], [], 200

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/a"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.server.tokens.append(self.headers.get("Authorization"))
        self.send_response(self.server.hub_status)
        if self.server.hub_status != 200:
            self.send_header("X-Error-Code", {403: "GatedRepo", 404: "EntryNotFound"}[self.server.hub_status])
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", self.server.mark)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

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
        self.send_header("Content-Type", server.kind)
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


def test_a_web_page_in_place_of_the_file_is_refused_and_what_was_there_kept(server, tmp_path):
    server.cut_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "w.pth")
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match=r"a web page in place of the file.*part is kept"):
        fetch(server, tmp_path / "w.pth")
    assert part_of(tmp_path / "w.pth").stat().st_size == 1000


def test_a_file_of_another_size_under_the_same_mark_starts_anew(server, tmp_path):
    server.cut_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "w.pth")
    server.content = CONTENT[::-1][:5000]
    fetch(server, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == server.content


def test_two_fetches_of_one_file_never_write_together(server, tmp_path, monkeypatch):
    messages = []

    def meanwhile(*_):
        with pytest.raises(DownloadError, match="another fetch of this file is running") as refused:
            fetch(server, tmp_path / "w.pth")
        messages.append(str(refused.value))

    monkeypatch.setattr("time.sleep", meanwhile)
    server.status = [503]
    assert fetch(server, tmp_path / "w.pth") == SHA256
    assert len(messages) == 1
    assert only(tmp_path) == ["w.pth"]


def test_a_disk_without_room_is_noticed_before_and_while_writing(server, tmp_path, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 0, 10))
        for expected in ({}, {"size_bytes": len(CONTENT)}):
            with pytest.raises(DownloadError, match=r"10,240 bytes are still to come, .* 10 free.*nothing was written"):
                fetch(server, tmp_path / "w.pth", **expected)
    assert only(tmp_path) == []

    class Full:
        def update(self, done):
            if done:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("adatad.convert.download.progress", lambda *_: Full())
    with pytest.raises(DownloadError, match=r"No space left on device; make room; .*part is kept"):
        fetch(server, tmp_path / "w.pth")
    assert sorted(only(tmp_path)) == ["w.pth.part", "w.pth.part.json"]


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The server in the place of huggingface.co."""
    from huggingface_hub import constants

    address = server.address.removesuffix("/a")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    return server


HUB_NAME = "vit_b_k710_dl_from_giant.pth"


def test_files_of_the_hub_come_through_its_library_with_its_login(hub, tmp_path, capsys):
    assert main(["weights", "fetch", HUB_NAME, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / HUB_NAME).read_bytes() == CONTENT
    assert only(tmp_path / "out") == [HUB_NAME]
    assert set(hub.tokens) == {"Bearer hf_mine"}
    assert SHA256 in capsys.readouterr().out


@pytest.mark.parametrize(("status", "words"), [(403, "accept its terms in a browser"), (404, "has no file b.pth")])
def test_what_the_hub_refuses_is_said_in_a_line(hub, tmp_path, status, words):
    hub.hub_status = status
    with pytest.raises(DownloadError, match=f"huggingface.co/me/a: .*{words}"):
        download_from_hub("me/a", "b.pth", tmp_path / "w.pth", ExpectedFile())
    assert only(tmp_path) == []


def test_a_wrong_file_of_the_hub_is_set_aside(hub, tmp_path):
    with pytest.raises(DownloadError, match="expected 00000000"):
        download_from_hub("me/a", "b.pth", tmp_path / "w.pth", ExpectedFile(sha256="00000000"))
    assert only(tmp_path) == ["w.pth.wrong"]


@pytest.mark.parametrize("options", [["--plain"], []])
def test_plain_downloads_take_the_place_of_the_library(server, tmp_path, monkeypatch, options, capsys):
    monkeypatch.setattr("adatad.convert.hub.has_library", lambda: bool(options))
    monkeypatch.setattr("adatad.spec.published.PublishedFile.download", lambda _: server.address)
    assert main(["weights", "fetch", HUB_NAME, "--output", str(tmp_path), *options]) == 0
    assert server.tokens == []
    assert (tmp_path / published()[HUB_NAME].path.split("/")[-1]).read_bytes() == CONTENT


def test_an_interrupt_keeps_the_unfinished_file_and_says_so(server, tmp_path, monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("adatad.spec.published.PublishedFile.download", lambda _: server.address)
    monkeypatch.setattr("time.sleep", interrupt)
    server.cut_after = [1000]
    code = main(["weights", "fetch", HUB_NAME, "--output", str(tmp_path), "--plain"])
    assert code == 130
    assert f"{HUB_NAME}.part is kept, and the next fetch continues it" in capsys.readouterr().err
    assert part_of(tmp_path / HUB_NAME).stat().st_size == 1000
    assert json.loads((tmp_path / f"{HUB_NAME}.part.json").read_text())["size_bytes"] == len(CONTENT)
