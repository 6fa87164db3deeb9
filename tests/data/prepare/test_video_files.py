"""Which file a table's name means."""

import pytest

from adatad.data.prepare.video_files import Folder, names_in_annotations
from adatad.labels.text_table import TableError


@pytest.fixture
def folder(tmp_path):
    """folder("a.mp4", "sub/b.mov") makes these files and reads the folder."""

    def make(*names: str) -> Folder:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return Folder(tmp_path)

    return make


@pytest.mark.parametrize(
    ("name", "files", "meant"),
    [
        ("k0", ["k0.mp4", "k1.mp4"], "k0.mp4"), ("k0.mp4", ["k0.mp4"], "k0.mp4"),
        ("k0", ["k0.mp4", "k0.srt"], "k0.mp4"),
        ("k0", ["k0.MOV", "k0.json", ".k0.mp4", "._k0.mp4"], "k0.MOV"), ("k0.v2", ["k0.v2.mp4", "k0.mp4"], "k0.v2.mp4"),
        ("k0", ["train/k0.mp4"], "train/k0.mp4"), ("train/k0", ["train/k0.mp4", "test/k0.mp4"], "train/k0.mp4"),
        ("train/k0.mp4", ["k0.mp4"], "k0.mp4"), ("/home/me/videos/k0.mp4", ["k0.mp4"], "k0.mp4"),
        ("C:\\videos\\day1\\k0.mp4", ["day1/k0.mp4", "day2/k0.mp4"], "day1/k0.mp4"),
        ("./k0.mp4", ["k0.mp4", "sub/k0.mp4"], "k0.mp4"), ("https://example.org/k0.mp4", ["k0.mp4"], "k0.mp4"),
        ("K0.MP4", ["k0.mp4"], "k0.mp4"), ("k0", ["k0.mp4", "K0.mp4"], "k0.mp4"),
        ("k0.mp4", ["k0.mp4", "k0.mp4.mp4"], "k0.mp4"),
        ("ku\u0308che", ["k\u00fcche.mp4"], "k\u00fcche.mp4"), ("k0.dav", ["k0.dav", "k1.mp4"], "k0.dav"),
        ("k0", ["k0.mp4", "__MACOSX/k0.mp4", "@eaDir/k0.mp4", ".trash/k0.mp4"], "k0.mp4"),
    ],
)  # fmt: skip
def test_names_and_the_files_that_they_mean(folder, name, files, meant):
    assert folder(*files).find(name).relative == meant


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("k0", ["k0.mp4", "k0.mov"], r"2 files of that name: \./k0\.mov, \./k0\.mp4"),
        ("k0", ["a/k0.mp4", "b/k0.mp4"], r"2 files of that name: a/k0\.mp4, b/k0\.mp4; write which of them is meant"),
        ("k0.mp4", ["k0.mp4", "b/k0.mp4"], r"2 files of that name: b/k0\.mp4, \./k0\.mp4"),
        ("b/k0.mp4", ["a/k0.mp4"], r"'b/k0\.mp4': no file of that name in .*; there is a/k0\.mp4"),
        ("k0.avi", ["k0.mp4"], r"no file of that name in .*; there is k0\.mp4"),
        ("k9", ["k0.mp4"], r"no file of that name in .*, which holds k0\.mp4"),
        ("K0", ["k0.mp4", "k0.MP4"], r"2 files of that name"),
        ("/", ["k0.mp4"], "no file of that name"),
    ],
)  # fmt: skip
def test_names_that_mean_no_file_or_several(folder, name, files, message):
    with pytest.raises(TableError, match=message):
        folder(*files).find(name)


def test_folders_without_videos(folder, tmp_path):
    with pytest.raises(TableError, match="holds no videos, it is empty"):
        folder()
    with pytest.raises(TableError, match="is no folder"):
        Folder(tmp_path / "gone")
    with pytest.raises(TableError, match=r"holds no videos, only notes\.txt"):
        folder("notes.txt")
    with pytest.raises(TableError, match="is a file; expected the folder of videos"):
        Folder(tmp_path / "notes.txt")


def test_a_link_in_a_circle_is_followed_once(folder, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/up").symlink_to(tmp_path)
    assert [file.relative for file in folder("sub/k0.mp4").videos] == ["sub/k0.mp4"]


def test_names_have_their_ending_where_there_are_several(folder):
    names, pattern = names_in_annotations(folder("k0.mp4", "sub/k1.mp4").videos)
    assert (sorted(names.values()), pattern) == (["k0", "sub/k1"], "{name}.mp4")
    names, pattern = names_in_annotations(folder("k2.MP4").videos)
    assert (sorted(names.values()), pattern) == (["k0.mp4", "k2.MP4", "sub/k1.mp4"], "{name}")
    # An ending with braces would be taken for a pattern.
    files = folder("k3.m{p}4").files
    assert names_in_annotations([files[-2]])[1] in ("{name}.mp4", "{name}")
