"""Evaluation by streams: the same detections in training, in `adatad test` and from Python, on any number of ranks."""

import json
from pathlib import Path

import pytest

import adatad
from adatad.data.dataset import SkippedVideos
from adatad.errors import UserError
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training.resolve import SetupError, resolve_run
from adatad.training.run import train
from adatad.training.score import detect_and_score
from adatad.training.streamed_validation import check_stream, detect_streams

STREAM = "evaluate.stream=true"


class Rank(Processes):
    """One of several ranks, of which the others answer as it does."""

    def gather(self, value):
        return [value]


@pytest.mark.slow
def test_training_test_and_python_find_the_same(tiny_spec, tiny_data):
    settings = ["schedule.epochs=1", "schedule.warmup_epochs=0"]
    spec = load(tiny_spec, [STREAM, *settings])
    train(spec)
    run = Path(spec.run.root) / "tiny" / "id0"
    found = json.loads((run / "detections.json").read_text())["results"]
    assert detect_and_score(spec, run / "checkpoints" / "best").detections == found
    detector = adatad.load_detector(run)
    for name, items in found.items():
        *_, last = detector.parts(tiny_data / "videos" / f"{name}.mp4")
        assert last.whole == items
    # Windows overlap and share their features, so adapters have seen more than in windows by themselves.
    alone = detect_and_score(
        load(tiny_spec, ["schedule.epochs=1", "schedule.warmup_epochs=0"]), run / "checkpoints/best"
    )
    assert alone.detections.keys() == found.keys()
    assert alone.detections != found
    # Every rank has some of the videos.
    resolved = resolve_run(spec, Processes(0, 1, detector.device))
    shares, windows = [], []
    for rank in range(3):
        own = Rank(rank, 3, detector.device)
        skipped = SkippedVideos(0, print)
        shares.append(detect_streams(detector.module, resolved, own, skipped, lambda: windows.append(1)))
    assert sorted(name for share in shares for name in share) == sorted(found)
    assert {name: items for share in shares for name, items in share.items()} == found


def test_a_broken_video_is_left_out_and_nothing_is_found_in_it(tiny_spec, tiny_data, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in (tiny_data / "videos").iterdir():
        (videos / path.name).symlink_to(path)
    broken = sorted(videos.glob("demo_validation_*"))[0]
    broken.unlink()
    broken.write_bytes(b"no video")
    spec = load(tiny_spec, [STREAM, f"data.videos={videos}"])
    untrained = adatad.build_detector(spec, ("a",) * 6, "cpu")
    one = Processes(0, 1, untrained.device)
    with pytest.raises(UserError, match=broken.name):
        detect_streams(untrained.module, resolve_run(spec, one), one, SkippedVideos(1, print))
    run, lines = resolve_run(load(tiny_spec, [STREAM, f"data.videos={videos}", "data.on_error=skip"]), one), []
    found = detect_streams(untrained.module, run, one, SkippedVideos(1, lines.append))
    assert broken.stem not in found
    assert len(found) == 1
    assert broken.name in lines[0]


@pytest.mark.parametrize(
    ("setting", "learns", "message"),
    [
        ("parallel.engine=fsdp", True, "parallel.engine fsdp gathers weights .*; set evaluate.stream to false for"),
        ("parallel.clip=2", False, r"ranks that share a window \(parallel.clip 2\) can't share a stream"),
        (
            "model.backbone.adapter.dilation=9",
            False,
            "the adapters reach 9 tubelets to each side, further than .* of 8",
        ),
    ],
)
def test_what_can_t_be_streamed_is_refused(tiny_spec, setting, learns, message):
    spec = load(tiny_spec, [STREAM, setting])
    with pytest.raises(SetupError, match=message):
        check_stream(spec, learns)
    check_stream(load(tiny_spec, [setting]), learns)


def test_streams_of_whole_videos_and_shuffled_clips_are_refused(tiny_spec, tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.stream: is without effect where a window is a whole video"):
        load(tiny_spec, [STREAM, "data.window.kind=resize"])
    with pytest.raises(UserError, match="--shuffle-clips needs windows"):
        detect_and_score(load(tiny_spec, [STREAM]), tmp_path, shuffle_clips=True)
