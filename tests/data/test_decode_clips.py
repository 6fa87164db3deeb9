"""Real files of many kinds, and broken ones, against the manifest of the shared folder."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest

from adatad.data import decode
from adatad.data.decode import VideoError, open_video

SHARED = os.environ.get("ADATAD_SHARED")
CLIPS = Path(SHARED or ".") / "data" / "clips"
MANIFEST = json.loads((CLIPS / "manifest.json").read_text()) if SHARED else {"clips": [], "broken": []}
ENTRIES = {entry["file"]: entry for entry in MANIFEST["clips"]}
BROKEN = {Path(entry["file"]).name for entry in MANIFEST["broken"]}

pytestmark = pytest.mark.skipif(not SHARED, reason="ADATAD_SHARED, the folder of real clips, isn't set")


def libraries() -> list:
    """The default library and PyAV, which stands in for all others; torchcodec with --full."""
    missing = {name: decode.missing_library(name) for name in ("decord", "pyav", "torchcodec")}
    skips = {name: [pytest.mark.skipif(bool(why), reason=f"{name}: {why}")] for name, why in missing.items()}
    skips["torchcodec"].append(pytest.mark.full)
    return [pytest.param(name, marks=marks) for name, marks in skips.items()]


DECODERS = libraries()

IN_ORDER = {
    "bed.flv", "bed_mpeg2.mpg", "bed_wmv2.wmv", "coffee_vp8.webm", "face_mp3.avi", "hmdb_cartwheel.avi",
    "hmdb_wave_school.avi", "pool_start12s.ts",
}  # fmt: skip
"""Whose packets don't tell which frames there are."""
NOT_FOR_LIBRARIES = {
    "basket_cut_edit_list.mp4", "testsrc_h264_10bit.mp4", "testsrc_hevc_10bit.mp4", "pancake_vp9_171x127.webm",
}  # fmt: skip
"""What decord and torchcodec show otherwise than PyAV."""
NOT_FOR_DECORD = {
    "basket_open_gop.mp4", "juggle_av1.mp4", "testsrc_av1.mkv", "nasa_multi_stream.mp4",
    "people_1080p_vfr.mp4", "scene_cuts_yuv444.mp4", "street_5_frames.mp4",
}  # fmt: skip
"""Wrong there, or, the last three, too large to be read well."""


def way_of(name: str, decoder: str) -> str:
    if name in IN_ORDER:
        return "pyav_sequential"
    if decoder != "pyav" and name in NOT_FOR_LIBRARIES:
        return "pyav"
    return "pyav" if decoder == "decord" and name in NOT_FOR_DECORD else decoder


@functools.cache
def corrected_entry(name: str) -> dict:
    """A clip's entry in the manifest.

    nasa_multi_stream.mp4 is listed by its first video stream, 320x180. The best one, which readers are to take, is
    480x270: its probes are made here in the way the manifest's were, by decoding it in order.
    """
    entry = ENTRIES[name]
    if entry["first_video_stream"] == entry["best_video_stream"]:
        return entry
    with av.open(str(CLIPS / name)) as container:
        stream = container.streams[entry["best_video_stream"]]
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    places = np.linspace(0, len(images) - 1, 10).astype(int).tolist()
    probes = [
        {"index": i, "grid8_rgb": grid(images[i]), "md5_rgb24": hashlib.md5(images[i].tobytes()).hexdigest()}
        for i in places
    ]
    return entry | {"frames": len(images), "coded_size": [images[0].shape[1], images[0].shape[0]], "probes": probes}


def grid(image: np.ndarray) -> np.ndarray:
    """Mean colours of 8 x 8 cells: uint8 [height, width, 3] -> [8, 8, 3]."""
    rows, columns = (np.round(np.linspace(0, side, 9)).astype(int)[:-1] for side in image.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.int64), rows, 0), columns, 1)
    heights, widths = np.diff([*rows, image.shape[0]]), np.diff([*columns, image.shape[1]])
    return sums / (heights[:, None] * widths)[..., None]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ENTRIES)
def test_frames_are_those_of_the_manifest(name, decoder, caplog, monkeypatch, pytestconfig):
    monkeypatch.setattr(decode, "_logged", set())
    entry = corrected_entry(name)
    # What is read with PyAV all the same is read whole once, where PyAV is asked for.
    probes = entry["probes"] if way_of(name, decoder) == decoder or decoder == "pyav" else entry["probes"][:2]
    # The first, the last and a few between.
    probes = probes if pytestconfig.getoption("--full") else probes[::3]
    numbers = [probe["index"] for probe in probes]
    later = numbers[::-2]
    with open_video(CLIPS / name, decoder, fps=None) as reader:
        assert reader.frame_count == entry["frames"]
        images = reader.frames(np.array(numbers))
        again = reader.frames(np.array(later))
        assert reader.backend == way_of(name, decoder)
    assert len(caplog.records) == (reader.backend != decoder)
    np.testing.assert_array_equal(again, images[[numbers.index(number) for number in later]])
    stored = np.rot90(images, -(entry["rotation_degrees"] // 90) % 4, axes=(1, 2))
    assert stored.shape[1:3] == tuple(entry["coded_size"][::-1])
    rough = any(side % 2 for side in entry["coded_size"]) or "10" in entry["pix_fmt"]
    for image, probe in zip(stored, probes, strict=True):
        np.testing.assert_allclose(grid(image), probe["grid8_rgb"], atol=6 if rough else 2)
    # Bits depend on the version of FFmpeg; decord rounds MPEG-4 otherwise once in a while.
    if av.library_versions["libavcodec"] == made_with("libavcodec") and not rough:
        equal = [
            hashlib.md5(image.tobytes()).hexdigest() == probe["md5_rgb24"]
            for image, probe in zip(stored, probes, strict=True)
        ]
        assert sum(equal) >= len(equal) - (reader.backend == "decord" and entry["codec"] == "mpeg4")


def made_with(library: str) -> tuple[int, ...]:
    return tuple(map(int, MANIFEST["made_with"]["ffmpeg_libraries"][library].split(".")))


ERRORS = {
    "empty.mp4": r"is empty \(0 bytes\)",
    "three_bytes.mp4": "can't be opened as a video .*cut off before its index",
    "text.mp4": "can't be opened as a video .*something else",
    "truncated_no_moov.mp4": "can't be opened as a video .*cut off before its index",
    "truncated_faststart.mp4": "is cut off: it lists 118 frames and holds about 68",
    "truncated.mkv": r"is cut off: it should last 10\.4 s, and holds 18 frames up to 0\.6 s",
    "corrupt_nal.mp4": "only 28 of 50 frames could be decoded",
    "audio_only.mp4": "holds no video stream, only: audio",
    "header_only.mp4": "holds no video stream, only: nothing",
    "picture.mp4": "it is a picture",
}
WHOLE = {"bit_errors.mp4": 120, "one_frame.mp4": 1}
"""Frames of those that every library decodes, the first of them with damaged pictures."""


def test_every_broken_clip_is_tried():
    assert ERRORS.keys() | WHOLE.keys() == BROKEN


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ERRORS)
def test_broken_clips_are_named(name, decoder):
    with (
        pytest.raises(VideoError, match=ERRORS[name]) as caught,
        open_video(CLIPS / "broken" / name, decoder, fps=None) as reader,
    ):
        reader.frames(np.arange(reader.frame_count))
    assert str(caught.value).startswith(f"{CLIPS / 'broken' / name}: ")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", WHOLE)
def test_clips_that_decode_all_the_same(name, decoder):
    with open_video(CLIPS / "broken" / name, decoder, fps=None) as reader:
        assert reader.frame_count == WHOLE[name]
        assert len(reader.frames(np.arange(WHOLE[name]))) == WHOLE[name]
        assert reader.backend == decoder


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_before_the_damage_can_be_read(decoder):
    with open_video(CLIPS / "broken" / "corrupt_nal.mp4", decoder) as reader:
        assert len(reader.frames(np.arange(0, 28, 9))) == 4
        with pytest.raises(VideoError, match="only 28 of 50"):
            reader.frames(np.array([28]))
