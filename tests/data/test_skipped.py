"""Videos that can't be read: `on_error: skip` goes on without them, up to a limit."""

import pytest
import torch

from adatad.data.annotations import read_annotations
from adatad.data.dataset import Skipped, SkippedVideos, TrainingWindows, ValidationWindows, check_videos, video_path
from adatad.data.decode import VideoError
from adatad.data.loader import Loader
from adatad.data.windows import sliding_windows
from adatad.spec.data_sections import DataSpec, WindowSpec

SEED = 3


@pytest.fixture
def broken_spec(tiny_data, tmp_path) -> DataSpec:
    """Six training and two validation videos, of which train 1 and 2 and the first validation video are broken."""
    spec = DataSpec(
        annotations=f"{tiny_data}/annotations.json", videos=f"{tiny_data}/videos", size_pixels=32, on_error="skip",
        window=WindowSpec(size_grid=32, stride_frames=2),
    )  # fmt: skip
    here = spec.model_copy(update={"videos": str(tmp_path)})
    annotations = read_annotations(spec)
    broken = {annotations.train[1].name, annotations.train[2].name, annotations.validation[0].name}
    for video in annotations.train + annotations.validation:
        if video.name in broken:
            video_path(here, video.name).write_bytes(b"no video")
        else:
            video_path(here, video.name).symlink_to(video_path(spec, video.name))
    return here


@pytest.fixture
def training_windows(broken_spec) -> TrainingWindows:
    return TrainingWindows(read_annotations(broken_spec).train, broken_spec, SEED)


@pytest.mark.parametrize("number", [1, 2])
def test_the_next_good_video_takes_the_place_of_a_broken_one(training_windows, number):
    sample = training_windows[0, number]
    expected = training_windows[0, 3]
    assert torch.equal(sample.frames, expected.frames)
    assert sample.key == expected.key
    names = [video.name for video in training_windows.videos]
    assert [item.video for item in sample.skipped] == names[number:3]
    assert all(f"{item.video}.mp4" in item.reason for item in sample.skipped)
    assert not expected.skipped


def test_the_first_video_follows_the_last(training_windows, tmp_path):
    last = training_windows.videos[-1]
    video_path(training_windows.spec, last.name).unlink()
    assert torch.equal(training_windows[0, 5].frames, training_windows[0, 0].frames)


def test_a_broken_file_is_tried_once(training_windows, monkeypatch):
    first = training_windows[0, 1]
    opened = []
    read = training_windows.sample

    def sample(epoch, number):
        opened.append(number)
        return read(epoch, number)

    monkeypatch.setattr(training_windows, "sample", sample)
    assert training_windows[4, 1].skipped == first.skipped
    assert opened == [3]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_say_what_they_do_without(training_windows, workers):
    batches = list(Loader(training_windows, [[(0, 0), (0, 1)], [(0, 4)]], workers))
    assert [len(batch.skipped) for batch in batches] == [2, 0]


def test_no_good_video_at_all_is_an_error(training_windows):
    for video in training_windows.videos:
        video_path(training_windows.spec, video.name).unlink()
    with pytest.raises(VideoError, match="none of 6 training videos"):
        training_windows[0, 0]


def test_a_broken_validation_video_gives_windows_without_a_valid_position(broken_spec):
    videos = read_annotations(broken_spec).validation
    places = [place for video in videos for place in sliding_windows(video, broken_spec.window)]
    dataset = ValidationWindows(places, broken_spec)
    for number, place in enumerate(places):
        sample = dataset[number]
        is_broken = place.video.name == videos[0].name
        assert bool(sample.skipped) == is_broken
        assert bool(sample.mask.any()) != is_broken
        assert sample.frames.shape == (3, 32, 32, 32)


def test_missing_files_are_left_to_be_skipped(broken_spec):
    annotations = read_annotations(broken_spec)
    video_path(broken_spec, annotations.train[0].name).unlink()
    check_videos(broken_spec, annotations.train)
    with pytest.raises(VideoError, match="1 of 6 videos"):
        check_videos(broken_spec.model_copy(update={"on_error": "raise"}), annotations.train)


def test_each_video_is_said_once_and_the_limit_ends_it():
    lines = []
    skipped = SkippedVideos(2, lines.append)
    skipped.add([Skipped("a", "a.mp4: broken"), Skipped("a", "a.mp4: broken"), Skipped("b", "b.mp4: gone")])
    skipped.add([Skipped("a", "a.mp4: broken")])
    assert lines == [
        "left out, video 1 of at most 2: a.mp4: broken",
        "left out, video 2 of at most 2: b.mp4: gone",
    ]
    with pytest.raises(VideoError, match=r"3 videos .* data.skip_limit 2: a, b, c;"):
        skipped.add([Skipped("c", "c.mp4: empty")])
