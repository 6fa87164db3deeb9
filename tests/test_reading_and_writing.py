"""The door for files: bounds on what is read, and files that appear only when whole."""

import errno
import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adatad import files
from adatad.files import FileError, check_output, check_output_folder, read_json, read_text, shown, write_text


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def link_to_itself(folder: Path) -> Path:
    (folder / "link").symlink_to("link")
    return folder / "link"


def holding(content: bytes):
    def write(folder: Path) -> Path:
        (folder / "file").write_bytes(content)
        return folder / "file"

    return write


BAD = {
    "missing": (lambda folder: folder / "nothing", "No such file"),
    "a folder": (lambda folder: folder, "is no regular file, but a folder"),
    "a pipe": (pipe, "is no regular file, but a pipe"),
    "a device": (lambda folder: Path("/dev/zero"), "is no regular file, but a device"),
    "a link to itself": (link_to_itself, "can't be read: Too many levels"),
    "NUL in the name": (lambda folder: "a\0b", "can't be read: embedded null byte"),
    "a long name": (lambda folder: folder / ("a" * 300), "can't be read: File name too long"),
    "empty": (holding(b""), "it is empty"),
    "binary": (holding(bytes(range(256))), "is no text in UTF-8"),
    "nested": (holding(b"[" * 100_000), "nested too deeply"),
    "cut": (holding(b'{"a": 1'), "is not readable as JSON"),
    "a number of 5,000 digits": (holding(b"1" * 5000), "is not readable as JSON"),
    "a key twice": (holding(b'{"a": {"k0": 1, "k0": 2}}'), "'k0' stands twice"),
    "half of a character": (holding(rb'["\ud800"]'), r"line 1: \ud800 is half of a character"),
    "a web page": (holding(b"<!DOCTYPE html><html>"), "is an HTML page"),
    "a pointer": (holding(b"version https://git-lfs.github.com/spec/v1\nsize 1200000\n"), "would be 1.2 MB"),
    "damaged gzip": (holding(b"\x1f\x8b\x08" + b"x" * 50), "can't be unpacked"),
    "cut gzip": (holding(gzip.compress(b'{"a": 1}' * 100)[:-9]), "can't be unpacked: it is cut off"),
}


@pytest.mark.parametrize(("make", "expected"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_in_one_line_that_names_it(make, expected, tmp_path):
    path = make(tmp_path)
    with pytest.raises(FileError) as refused:
        read_json(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message


def test_what_unpacks_to_more_than_the_bound_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "bomb").write_bytes(gzip.compress(b" " * 1_000_000))
    with pytest.raises(FileError, match="unpacks to more than 2,000 bytes"):
        read_text(tmp_path / "bomb", limit_bytes=2000)
    (tmp_path / "large").write_bytes(b" " * 1001)
    with pytest.raises(FileError, match="has 1,001 bytes; at most 1,000"):
        read_text(tmp_path / "large", limit_bytes=1000)


ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters())


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), ENCODINGS)
def test_text_comes_back_from_every_encoding_and_from_gzip(tmp_path_factory, text, encoding):
    assume(not text.startswith("\ufeff"))
    path = tmp_path_factory.mktemp("text") / "file"
    for content in (text.encode(encoding), gzip.compress(text.encode(encoding))):
        path.write_bytes(content)
        assert read_text(path) == text


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
@example("\\ud800")
@example("\ud83d\ude00")
@example("\ude00\ud83d")
def test_json_is_read_as_json_reads_it_unless_a_character_is_halved(value):
    text = json.dumps(value)
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(FileError, match="half of a character"):
            files.parse_json(text, "x")
    else:
        assert files.parse_json(text, "x") == json.loads(text)


def test_an_output_is_checked_and_its_folder_made(tmp_path):
    assert check_output(tmp_path / "new/folder/d.json").parent.is_dir()
    assert not list((tmp_path / "new/folder").iterdir())
    (tmp_path / "file").touch()
    for bad in (
        "",
        tmp_path,
        tmp_path / "file/x.json",
        tmp_path / ("a" * 300) / "x",
        "/dev/null",
        pipe(tmp_path),
        link_to_itself(tmp_path),
    ):
        with pytest.raises(FileError):
            check_output(bad)
    for bad in ("", tmp_path / "file", tmp_path / "file/x", tmp_path / "link"):
        with pytest.raises(FileError):
            check_output_folder(bad)


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "d.json"
    write_text(path, "old")

    def full(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match="No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed_when_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/d.json")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/d.json").read_text() == "new"


def test_names_are_shown_without_what_steers_a_terminal():
    assert shown("Müller\x1b[31m\n\ud800 日本") == "Müller\\x1b[31m\\n\\ud800 日本"
