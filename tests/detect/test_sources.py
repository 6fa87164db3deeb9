"""Tests of what SOURCE arguments mean, which name each video's results get, and how a list is shared."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.detect.shares import ListShare, slurm_share, split, take_own_gpu
from adatad.detect.sources import MAX_NAME_BYTES, find_videos, natural_key, output_names
from adatad.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with files of many names; what they hold is never looked at."""
    for name in ("v10.mp4", "v2.mp4", "sub/v1.MKV", "sub/.hidden.mp4", ".trash/x.mp4", "notes.txt", "sub/pic.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0" + name[1:].encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(*sources: str, stdin: bytes = b"") -> list[str]:
    return [video.file for video in find_videos(sources, lambda: stdin).videos]


def test_a_folder_stands_for_its_videos_and_those_of_its_subfolders_in_natural_order(folder):
    assert files(".") == ["sub/v1.MKV", "v2.mp4", "v10.mp4"]
    assert files(str(folder / "sub")) == [f"{folder}/sub/v1.MKV"]
    assert [video.size_bytes for video in find_videos(["v2.mp4"]).videos] == [6]


def test_a_glob_that_no_shell_expanded_matches_videos_and_folders(folder):
    assert files("v*.mp4") == ["v2.mp4", "v10.mp4"]
    assert files("**/*") == ["sub/v1.MKV", "v2.mp4", "v10.mp4"]
    assert files("s*b") == ["sub/v1.MKV"]
    (folder / "v[2].mp4").touch()
    assert files("v[2].mp4") == ["v[2].mp4"], "a file of that very name comes first"
    with pytest.raises(UserError, match=r"^x\*\.mp4: no video matches it; endings of videos are .*\.mp4"):
        files("x*.mp4")


def test_a_list_holds_a_path_a_line_relative_to_itself(folder):
    (folder / "sub" / "list.txt").write_bytes(
        b"\xef\xbb\xbf# comment\r\n\r\nv1.MKV\r\n  ../v2.mp4 \r\n../v1*.mp4\r\n../missing.mp4\r\n"
    )
    assert files("sub/list.txt") == ["sub/../missing.mp4", "sub/v1.MKV", "sub/../v2.mp4", "sub/../v10.mp4"]
    (folder / "wide.lst").write_bytes("v2.mp4\nsub\n".encode("utf-16"))
    assert files("wide.lst") == ["sub/v1.MKV", "v2.mp4"]


def test_a_dash_is_a_list_on_the_standard_input_whose_paths_nul_bytes_may_end(folder):
    (folder / "two\nlines.mp4").touch()
    (folder / "#1.mp4").touch()
    assert files("-", stdin=b"v2.mp4\nsub/v1.MKV") == ["sub/v1.MKV", "v2.mp4"]
    assert files("-", stdin=b"./two\nlines.mp4\0#1.mp4\0") == ["#1.mp4", "two\nlines.mp4"]


@pytest.mark.parametrize(
    "name", ['it\'s "here".mp4', "- dash.mp4", "a b  c.mp4", "視頻 ö.mp4", "x:y.mp4", "\udcff.mp4"]
)
def test_names_of_any_kind_are_taken_as_they_are(folder, name):
    (folder / name).touch()
    assert files(name) == [name]
    (folder / "list.txt").write_bytes(os.fsencode(name) + b"\n")
    assert files("list.txt") == [name]


@pytest.mark.parametrize(
    ("sources", "stdin", "message"),
    [
        (["gone.mp4"], b"", "gone.mp4: isn't there"),
        ([""], b"", "SOURCE: expected a video"),
        (["https://a/b.mp4"], b"", "is an address; download"),
        ([".trash"], b"", None),
        (["empty"], b"", "empty: holds no videos, it is empty.*\\.mp4"),
        (["-"], b"# nothing\n", "the standard input: holds no paths"),
        (["-"], b"a.mp4\nb.mp4\n", "none of its 2 paths is there, such as a.mp4; they are relative to /"),
        (["notes.txt"], b"", "none of its 1 paths"),
        (["n" * 300 + ".mp4"], b"", "File name too long"),
    ],
)
def test_a_source_without_videos_is_named(folder, sources, stdin, message):
    (folder / "empty").mkdir()
    if message is None:
        assert files(*sources) == [".trash/x.mp4"], "a hidden folder that is named outright"
        return
    with pytest.raises(UserError, match=message):
        files(*sources, stdin=stdin)


def test_a_file_without_a_video_s_ending_is_a_video_unless_it_is_a_list(folder):
    (folder / "stream").write_bytes(b"\x1a\x45\xdf\xa3\0")
    (folder / "paths").write_text("v2.mp4\n")
    (folder / "v2.json").write_text("v2.mp4\n")
    # As a shell's * gives what lies beside the videos: it is reported when it can't be read.
    assert files("stream", "paths", "v2.json") == ["stream", "v2.json", "v2.mp4"]


def test_each_file_is_taken_once_whatever_its_names_and_their_order(folder):
    (folder / "link.mp4").symlink_to("v2.mp4")
    for sources in (["v2.mp4", "link.mp4", "./v2.mp4"], ["./v2.mp4", ".", "link.mp4"]):
        found = find_videos(sources)
        assert [video.file for video in found.videos if video.name in ("v2", "link")] == ["link.mp4"]
        assert found.notes == ("v2.mp4: is the same file as link.mp4, and isn't done again",)


def test_videos_of_one_stem_get_names_that_tell_them_apart():
    names = output_names(["/d/cam1/a.mp4", "/d/cam2/a.mp4", "/d/b.mp4", "/d/b.mkv", "/d/c.mp4"])
    assert list(names.values()) == ["cam1_a", "cam2_a", "b.mp4", "b.mkv", "c"]
    names = output_names(["/x/1/s/A.mp4", "/x/2/s/a.mp4", "/x/A.mp4"])
    assert list(names.values()) == ["1_s_A", "2_s_a", "x_A"]
    assert output_names(["/d/n.via.mp4"])["/d/n.via.mp4"].startswith("n.via-")


LETTERS = st.sampled_from(["a", "A", "b", "_", "a_a", "ä", "a\u0308", "via", "." + "x" * 120, "é" * 100])
PATHS = st.builds(lambda parts, ending: "/" + "/".join(parts) + ending, st.lists(LETTERS, min_size=1, max_size=4),
                  st.sampled_from([".mp4", ".mkv", ".MP4", ""]))  # fmt: skip


@given(st.lists(PATHS, unique=True, min_size=1, max_size=12), st.randoms())
def test_names_are_distinct_short_and_independent_of_order(paths, random):
    names = output_names(paths)
    assert len({name.casefold() for name in names.values()}) == len(paths)
    assert all(0 < len(name.encode()) <= MAX_NAME_BYTES + 9 and "/" not in name for name in names.values())
    shuffled = random.sample(paths, len(paths))
    assert output_names(shuffled) == names


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_names_can_be_sorted(texts):
    assert sorted(sorted(texts, key=natural_key, reverse=True), key=natural_key) == sorted(texts, key=natural_key)


@given(st.lists(st.integers(0, 10**12), max_size=40), st.integers(1, 9))
def test_a_list_is_divided_completely_and_evenly(sizes, count):
    shares = split(sizes, count)
    assert sorted(number for share in shares for number in share) == list(range(len(sizes)))
    loads = [sum(sizes[number] + 1 for number in share) for share in shares]
    # Who has most was given its last thing when it had least.
    assert max(loads) - min(loads) <= max(sizes, default=0) + 1


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({}, (0, 1)),
        ({"ARRAY_TASK_ID": "3", "ARRAY_TASK_COUNT": "8"}, (3, 8)),
        ({"ARRAY_TASK_ID": "5", "ARRAY_TASK_COUNT": "3", "ARRAY_TASK_MIN": "1", "ARRAY_TASK_MAX": "5",
          "ARRAY_TASK_STEP": "2"}, (2, 3)),
        ({"PROCID": "1", "NTASKS": "4"}, (0, 1)),
        ({"PROCID": "1", "NTASKS": "4", "STEP_NUM_TASKS": "4"}, (1, 4)),
        ({"PROCID": "1", "STEP_NUM_TASKS": "2", "ARRAY_TASK_ID": "1", "ARRAY_TASK_COUNT": "3"}, (3, 6)),
    ],
)  # fmt: skip
def test_tasks_of_slurm_know_their_part(variables, share):
    assert slurm_share({f"SLURM_{name}": value for name, value in variables.items()}) == ListShare(*share)


def test_ranks_of_torchrun_share_the_part_of_their_task():
    variables = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "2", "RANK": "1"}
    assert slurm_share(variables) == ListShare(0, 1)


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2"}, "2"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2", "CUDA_VISIBLE_DEVICES": "5"}, "0"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "2"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, "1"),
    ],
)
def test_a_task_of_srun_takes_a_gpu_of_its_own(variables, rank):
    take_own_gpu(variables)
    assert variables.get("LOCAL_RANK") == rank


@pytest.mark.parametrize("task", ["3", "5", "9"])
def test_every_task_of_an_uneven_array_refuses(task):
    uneven = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "9"}
    with pytest.raises(UserError, match="--array=0-2"):
        slurm_share({**uneven, "SLURM_ARRAY_TASK_ID": task})


def test_variables_that_are_no_numbers_are_named():
    with pytest.raises(UserError, match="SLURM_ARRAY_TASK_ID is 'x'"):
        slurm_share({"SLURM_ARRAY_TASK_ID": "x"})
