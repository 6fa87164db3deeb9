"""Videos that are there twice are found by their bytes and by their pictures; other recordings of one scene aren't."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from adatad.data.prepare.cells import SIDE
from adatad.data.prepare.check import check_data_set
from adatad.data.prepare.duplicates import DUPLICATE, LEAK, LOOKS, Seen, duplicates, look_text, same_pictures
from adatad.spec import load

TRAIN, VALIDATION = ("training",), ("validation",)


def seen(name, cells, seconds=30.0, roles=TRAIN, path="nowhere"):
    return Seen(name, Path(path), seconds, look_text(np.asarray(cells, np.float32)), roles)


def recording(seed, moves=40.0):
    """Cells of one fixed scene in which something bright is in another cell at each time."""
    scene = np.random.default_rng(0).uniform(40, 200, SIDE * SIDE)
    cells = np.repeat(scene[None], LOOKS, 0)
    places = np.random.default_rng(seed).integers(0, SIDE * SIDE, (LOOKS, 3))
    cells[np.arange(LOOKS)[:, None], places] += moves
    return cells


def pairs(*videos):
    return [(first.name, copy.name) for first, copy, _ in same_pictures(videos)]


def test_a_copy_in_another_coding_is_found_and_another_recording_of_the_scene_is_not():
    coded = recording(1) + np.random.default_rng(9).normal(0, 0.4, (LOOKS, SIDE * SIDE))
    videos = [seen("b", recording(1)), seen("a", coded, 30.1), seen("c", recording(2), 30.0)]
    # The first is the one that stands first in the annotation file, whichever is longer.
    assert pairs(*videos) == [("b", "a")]
    assert pairs(videos[1], videos[0]) == [("a", "b")]


def test_videos_of_other_lengths_and_those_that_stand_still_are_not_compared():
    assert pairs(seen("a", recording(1), 30.0), seen("b", recording(1), 33.0)) == []
    assert pairs(seen("a", recording(1, moves=0)), seen("b", recording(1, moves=0))) == []
    assert pairs(seen("a", recording(1)[:3]), seen("b", recording(1)[:3])) == []
    assert pairs() == []
    # A journal that somebody has edited.
    damaged = [
        seen(name, recording(1))._replace(look=look) for name, look in (("a", "AA=="), ("b", "\u00fc"), ("c", 7))
    ]
    assert pairs(*damaged) == []


def test_equal_bytes_are_found_and_said_once(tmp_path):
    for name, content in {"a": b"one", "b": b"two", "c": b"one", "d": b"one", "e": b"", "f": b""}.items():
        (tmp_path / name).write_bytes(content)
    videos = [seen(name, recording(1), path=tmp_path / name) for name in "abcdefg"]
    # Pictures of all are the same here: a pair that has equal bytes isn't said twice.
    found = duplicates(v._replace(look=v.look if v.name in "ac" else "") for v in videos)
    assert found == {"c": [[DUPLICATE, "the same bytes as a"]], "d": [[DUPLICATE, "the same bytes as a"]]}


def test_a_copy_in_the_other_subset_and_a_video_in_both_are_said_to_spoil_the_score(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"one")
    (tmp_path / "c").write_bytes(b"other")
    roles = {"a": TRAIN, "b": VALIDATION, "c": TRAIN + VALIDATION}
    found = duplicates(seen(n, recording(1)[:1], roles=r, path=tmp_path / n) for n, r in roles.items())
    assert found["b"] == [[LEAK, "the same bytes as a, which is for training; this one is for validation"]]
    assert [kind for kind, _ in found["c"]] == [LEAK]
    assert "a" not in found


def test_files_that_cannot_be_read_are_like_no_other(tmp_path):
    # Folders of one size, which no user can read as files.
    for name in "ab":
        (tmp_path / name).mkdir()
    assert duplicates(seen(n, recording(1)[:1], path=tmp_path / n) for n in "ab") == {}


def encode_again(source, target):
    """The same frames, smaller and more coarsely coded."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream("libx264", rate=8, options={"crf": "32"})
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 8)
        for number, frame in enumerate(before.decode(video=0)):
            smaller = frame.reformat(48, 48, "yuv420p")
            smaller.pts, smaller.time_base = number, Fraction(1, 8)
            after.mux(stream.encode(smaller))
        after.mux(stream.encode())


def test_the_check_names_copies_and_videos_of_both_subsets(tiny_data, tiny_spec, tmp_path, run_command):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_data, folder)
    content = json.loads((folder / "annotations.json").read_text())
    database, videos = content["database"], folder / "videos"
    training = [name for name, entry in database.items() if entry["subset"] == "training"]
    coded, same = "coded \u00fc", "same 'one'"
    database[coded] = {**database[training[0]], "subset": "validation"}
    database[same] = database[training[1]]
    encode_again(videos / f"{training[0]}.mp4", videos / f"{coded}.mp4")
    shutil.copy(videos / f"{training[1]}.mp4", videos / f"{same}.mp4")
    (folder / "annotations.json").write_text(json.dumps(content))
    settings = [f"data.annotations={folder / 'annotations.json'}", f"data.videos={videos}"]
    spec = load(tiny_spec, settings)
    first, again = (check_data_set(spec, tmp_path / "check", 1, False, lambda done, of: None) for _ in range(2))
    assert {found.video: found.problems for found in first if found.problems} == {
        coded: [[LEAK, f"the same pictures as {training[0]}, which is for training; this one is for validation"]],
        same: [[DUPLICATE, f"the same bytes as {training[1]}"]],
    }
    # Not in the journal, so that they aren't said twice.
    assert again == first
    assert not any(found.is_blocked for found in first)
    done = run_command("data check", tiny_spec, "--output", tmp_path / "both", "--borders", "--workers", 1, "--set",
                       *settings, "data.train_subset=[training, validation]")  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count(f"{LEAK}: is trained on and scored") == 3
    assert "suspicious" not in done.stdout
    assert LEAK in (tmp_path / "both" / "summary.html").read_text()
