"""Videos copied to a machine's own disk: once, whole, and only if they fit."""

import os
import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest

from adatad.data import staging
from adatad.data.dataset import check_videos, video_path
from adatad.data.staging import stage
from adatad.errors import UserError
from adatad.spec.data_sections import DataSpec


@pytest.fixture
def data(tmp_path) -> DataSpec:
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(name.encode() * 100)
    return DataSpec(annotations="", videos=str(tmp_path / "videos"), stage_to=str(tmp_path / "disk"))


def test_copies_are_read_once_they_are_there(data, tmp_path):
    assert video_path(data, "a") == tmp_path / "videos" / "a.mp4"
    said = []
    stage(data, ["a", "sub/b", "gone"], said.append)
    for name in ("a", "sub/b"):
        assert video_path(data, name) == tmp_path / "disk" / f"{name}.mp4"
        assert video_path(data, name).read_bytes() == name.encode() * 100
    assert said == [f"{tmp_path}/disk: 2 videos copied, 1 left as they are"]
    assert video_path(data, "gone") == tmp_path / "videos" / "gone.mp4"


def test_an_interrupted_copy_is_taken_up_and_changed_videos_come_again(data, tmp_path, monkeypatch):
    real = shutil.copy2

    def interrupted(source, copy):
        if "b" in source.name:
            copy.write_bytes(b"beginning")
            raise OSError("the disk is gone")
        return real(source, copy)

    with monkeypatch.context() as patched:
        patched.setattr(staging.shutil, "copy2", interrupted)
        with pytest.raises(UserError, match="the disk is gone"):
            stage(data, ["a", "sub/b"], print)
    assert video_path(data, "sub/b") == tmp_path / "videos" / "sub" / "b.mp4"
    os.utime(tmp_path / "videos" / "a.mp4", (1, 1))
    said = []
    for _ in range(2):
        stage(data, ["a", "sub/b"], said.append)
    assert [line.partition(": ")[2] for line in said] == [
        "2 videos copied, 0 left as they are",
        "0 videos copied, 2 left as they are",
    ]


def test_a_disk_without_room_is_refused_before_anything_is_copied(data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda folder: usage(0, 0, staging.RESERVE_BYTES + 599))
    with pytest.raises(UserError, match=r"don't fit into the 1\.0 GiB that are free"):
        stage(data, ["a", "sub/b"], print)
    assert not list((tmp_path / "disk").glob("*.mp4"))


def test_a_folder_that_cannot_be_made_is_named(data, tmp_path):
    (tmp_path / "disk").write_text("a file")
    with pytest.raises(UserError, match=r"data\.stage_to .*/disk: "):
        stage(data, ["a"], print)


def test_a_variable_is_filled_in_or_missed(data, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "own"))
    stage(data.model_copy(update={"stage_to": "$NODE_DISK/x"}), ["a"], print)
    assert (tmp_path / "own" / "x" / "a.mp4").is_file()
    with pytest.raises(UserError, match=r"data\.stage_to .*: on this machine, the variable \$NO_SUCH_DISK isn't set"):
        stage(data.model_copy(update={"stage_to": "$NO_SUCH_DISK/x"}), ["a"], print)


@pytest.mark.parametrize(
    "name", ["../../escaped/v", "/etc/v", "sub/../../v", "a\nb", "a\0b", "a\u2028b", "", "x" * 300]
)
def test_a_name_that_leaves_the_folder_or_is_no_file_name_is_refused_with_its_file(data, name):
    for stage_to in (None, data.stage_to):
        with pytest.raises(UserError, match=r"^annotations\.json: video '.*' (leaves the folder|has |holds )"):
            video_path(data.model_copy(update={"annotations": "annotations.json", "stage_to": stage_to}), name)


def test_names_with_braces_and_percent_signs_are_names(data, tmp_path):
    spec = data.model_copy(update={"pattern": "v_{name}.mp4"})
    for name in ("{name}", "{0}", "a}b", "%s", "$HOME", "~", "a b;c"):
        assert video_path(spec, name) == tmp_path / "videos" / f"v_{name}.mp4"


def test_a_bad_name_is_refused_before_training_also_where_videos_may_be_skipped(data):
    with pytest.raises(UserError, match=r"'\.\./v' leaves"):
        check_videos(data.model_copy(update={"on_error": "skip"}), [SimpleNamespace(name="../v")])
