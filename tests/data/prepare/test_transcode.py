"""Copies: the same frames, smaller, with key frames where they were asked for; only what is missing is made."""

import os
import re
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.decode import VideoError, open_video
from adatad.data.prepare.transcode import check_copies, copy_size, find_videos, shown_at, speed_up, transcode_all
from adatad.data.video_index import Heartbeat, read_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three short videos of 30000/1001 frames a second, one key frame each, and a file that is none."""
    path = tmp_path_factory.mktemp("originals")
    for number in range(3):
        with av.open(str(path / f"v{number}.mkv"), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(30000, 1001), options={"g": "999"})
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            for shade in range(40):
                image = np.full((96, 128, 3), 40 + 4 * shade, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    (path / "v3.mkv").write_bytes(b"no video")
    return path


def test_copies_have_the_same_frames(folder, tmp_path):
    sources, seen = sorted(folder.iterdir()), []
    failed = transcode_all(sources, tmp_path, 48, 8, 1, lambda done, of: seen.append((done, of)))
    assert [source.name for source, _ in failed] == ["v3.mkv"]
    assert seen == [(done, 4) for done in range(5)]
    assert sorted(path.name for path in tmp_path.iterdir() if "v3" not in path.name) == ["v0.mp4", "v1.mp4", "v2.mp4"]
    for source in sources[:3]:
        copy = tmp_path / f"{source.stem}.mp4"
        index = read_index(copy, Heartbeat())
        assert (index.frame_count, index.height, index.width) == (40, 48, 64)
        assert len(index.key_pts) == 5
        assert index.timeline.duration_seconds == pytest.approx(40 * 1001 / 30000, abs=0.01)
        with open_video(source) as before, open_video(copy) as after:
            shades = [reader.frames(np.arange(40)).mean((1, 2, 3)) for reader in (before, after)]
        assert np.abs(shades[0] - shades[1]).max() < 2
    assert speed_up([(sources[0], tmp_path / "v0.mp4")]) > 0


def test_only_missing_copies_are_made(folder, tmp_path):
    sources = sorted(folder.iterdir())[:3]
    (tmp_path / "v1.mp4").write_bytes(b"made before")
    counts = []
    assert transcode_all(sources, tmp_path, 48, 8, 2, lambda done, of: counts.append(done)) == []
    assert counts == [1, 2, 3]
    assert (tmp_path / "v1.mp4").read_bytes() == b"made before"


def test_what_killed_runs_left_unfinished_is_removed_and_nothing_else(folder, tmp_path):
    mine, old, others, foreign = (
        tmp_path / name
        for name in (".v3.mp4.unfinished", ".gone.mp4.unfinished", ".other.mp4.unfinished", ".notes.unfinished")
    )
    for path in (mine, old, others, foreign):
        path.write_bytes(b"cut off")
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    assert len(transcode_all([folder / "v3.mkv"], tmp_path, 48, 8, 1, lambda *_: None)) == 1
    assert sorted(tmp_path.iterdir()) == sorted([others, foreign])


def test_videos_are_found_in_folders_and_once(tmp_path):
    for name in ("Archery/v_a.mp4", "Bowling/v_a.mp4", "Bowling/v_b.MP4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"same")
    (tmp_path / "Archery/._v_a.mp4").write_bytes(b"hidden by a system")
    videos = [tmp_path / "Archery/v_a.mp4", tmp_path / "Bowling/v_b.MP4"]
    repeated, others = tmp_path / "Bowling/v_a.mp4", tmp_path / "notes.txt"
    assert find_videos(tmp_path) == (videos, [repeated], [], [others])


@pytest.mark.parametrize("content", [b"other size", b"emas"])
def test_other_files_of_one_name_are_no_copies(tmp_path, content):
    for name, written in (("a/x.mp4", b"same"), ("b/x.mp4", content)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(written)
    assert find_videos(tmp_path).disputed == ["x"]


def test_videos_in_linked_folders_and_of_all_endings_are_found(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "v").mkdir()
    for name in ("elsewhere/a.MXF", "v/b.265", "v/c.divx"):
        (tmp_path / name).write_bytes(b"video")
    (tmp_path / "v/link").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in find_videos(tmp_path / "v").videos] == ["b.265", "c.divx", "a.MXF"]


def test_copies_of_another_rate_or_size_are_refused(folder, tmp_path, run_command):
    videos, copies = tmp_path / "v", tmp_path / "copies"
    videos.mkdir()
    for name in ("v0.mkv", "v1.mkv"):
        (videos / name).symlink_to(folder / name)
    (videos / "notes.txt").write_text("mine")

    def transcode(*options):
        return run_command("data transcode", videos, "--output", copies, "--workers", 1, "--short-side", 48, *options)

    first = transcode()
    assert first.returncode == 0, first.stderr
    assert "1 file left out, no videos, by their ending: notes.txt" in first.stdout
    assert transcode().returncode == 0
    for options, message in (
        (["--fps", 5], r"at another rate \(29\.9\d instead of 5 frames a second\); 2 of 2 copies in "),
        (["--short-side", 64], "with a short side of 48 pixels instead of 64"),
    ):
        done = transcode(*options)
        assert done.returncode == 2
        assert re.search(rf"v0\.mp4: already there, {message}", done.stderr)
        assert "name another folder, or delete them" in done.stderr
    (copies / "v0.mp4").write_bytes(b"cut off")
    assert "v0.mp4: already there, but can't be read; 1 of 2 copies" in transcode().stderr


def test_copies_at_a_rate_are_refused_where_none_is_asked_for(folder, tmp_path):
    sources = [folder / "v0.mkv"]
    transcode_all(sources, tmp_path, 48, 8, 1, lambda done, of: None, fps=5)
    check_copies(sources, tmp_path, 48, 5.0)
    with pytest.raises(VideoError, match=r"at another rate \(5 instead of 29\.9\d frames a second\)"):
        check_copies(sources, tmp_path, 48, None)


def test_copies_at_another_rate_show_the_same_at_the_same_time(folder, tmp_path):
    sources = sorted(folder.iterdir())[:1]
    transcode_all(sources, tmp_path, 48, 8, 1, lambda done, of: None, fps=12)
    index = read_index(tmp_path / "v0.mp4", Heartbeat())
    assert index.frame_count == 16
    assert index.timeline.duration_seconds == pytest.approx(16 / 12, abs=1e-3)
    with open_video(tmp_path / "v0.mp4") as copy:
        shades = copy.frames(np.arange(16)).mean((1, 2, 3))
    shown = np.ceil((np.arange(16) + 0.5) / 12 * 30000 / 1001) - 1
    assert np.abs(shades - (40 + 4 * shown)).max() < 3


@given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=50), st.floats(1, 120))
def test_frames_shown_at_any_rate_are_near_in_time(gaps, fps):
    seconds = np.cumsum([0.0, *gaps])
    numbers = shown_at(seconds, fps)
    assert len(numbers) == max(1, round(seconds[-1] * fps))
    assert (np.diff(numbers) >= 0).all()
    assert numbers[0] >= 0
    assert (seconds[numbers] < (np.arange(len(numbers)) + 0.5) / fps).all()
    assert (seconds[numbers + 1][:-1] >= (np.arange(len(numbers) - 1) + 0.5) / fps).all()


@given(st.integers(16, 2000), st.integers(16, 2000), st.integers(16, 512))
def test_sizes(height, width, short):
    rows, columns = copy_size(height, width, short)
    assert rows % 2 == columns % 2 == 0
    assert min(rows, columns) <= max(short + 1, 2)
    assert rows <= height + 1
    assert columns <= width + 1
    assert abs(rows / columns - height / width) <= 2 / min(rows, columns) * max(height / width, 1) * 1.5
