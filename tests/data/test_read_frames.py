"""Frames made small a chunk at a time."""

import av
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.dataset import CHUNK_FRAMES, fit_frames, read_frames
from adatad.data.decode import VideoReader, open_video
from adatad.spec.data_sections import DataSpec


class Numbered:
    """A reader whose frames hold their numbers."""

    chunks, frames, frame_count, path, _fps = VideoReader.chunks, VideoReader.frames, 250, "numbered", None

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        return numbers.astype(np.uint8)[:, None, None, None] * np.ones((1, 6, 8, 3), np.uint8)


@given(st.lists(st.integers(0, 249), min_size=1, max_size=70))
def test_chunks_follow_one_another(indices):
    sizes = []

    def transform(images: np.ndarray) -> torch.Tensor:
        sizes.append(len(images))
        return fit_frames(images, 4)

    frames = read_frames(Numbered(), np.array(indices), transform)
    assert frames.shape == (3, len(indices), 4, 4)
    assert frames[0, :, 0, 0].tolist() == indices
    assert max(sizes) <= CHUNK_FRAMES
    assert sum(sizes) == len(indices)
    assert Numbered().frames(np.array(indices))[:, 0, 0, 0].tolist() == indices


def test_a_window_in_chunks_is_the_window_at_once(tmp_path):
    path, noise = tmp_path / "noise.mp4", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for image in noise.integers(0, 256, (50, 64, 96, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    indices = np.array([*range(0, 50, 2), *[48] * 20])
    with open_video(path) as reader:
        at_once = fit_frames(reader.frames(indices), 32)
        in_chunks = read_frames(reader, indices, lambda images: fit_frames(images, 32))
    assert torch.equal(at_once, in_chunks)


def test_pyav_is_the_default():
    assert DataSpec(annotations="a.json", videos="v").decoder == "pyav"
