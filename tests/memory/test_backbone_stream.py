"""The backbone as a stream: the features of one window as long as the whole video, from groups of clips of any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_backbones import CLIP, batch, build, under

from adatad.errors import UserError
from adatad.memory.stream import drawn_within, feature_stream

MODES = ("adapter", "plain", "side", "frozen", "full")


def groups_of(frames: torch.Tensor, sizes: list[int]):
    """Groups of so many clips of a window's frames, the sizes repeated to its end."""
    clips = frames[0].unflatten(1, (-1, CLIP)).transpose(0, 1)
    start, turn = 0, 0
    while start < len(clips):
        yield clips[start : start + sizes[turn % len(sizes)]]
        start, turn = start + sizes[turn % len(sizes)], turn + 1


def streamed(backbone, frames: torch.Tensor, sizes: list[int], dtype=torch.float64) -> torch.Tensor:
    stream = feature_stream(backbone, dtype)
    rows = torch.cat(list(stream.rows(groups_of(frames, sizes))))
    return stream.features(rows[None])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory", [{"policy": "none"}, {"policy": "tile", "tile_clips": 2}])
@given(clips=st.integers(1, 5), sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_groups_of_any_size_give_the_features_of_one_long_window(mode, memory, clips, sizes):
    backbone = under(BACKBONES[mode], clips=clips, **memory)
    frames, _ = batch(clips=clips)
    with torch.no_grad():
        whole = backbone.timeline(frames)
    torch.testing.assert_close(streamed(backbone, frames, sizes), whole, rtol=1e-10, atol=1e-10)


BACKBONES = {mode: build(mode) for mode in MODES}


@pytest.mark.parametrize("adapter", [{"kernel": 5}, {"kernel": 3, "dilation": 3}, {"blocks": (1, 3)}, {"kernel": 1}])
@pytest.mark.parametrize("mode", ["adapter", "side"])
def test_adapters_of_any_reach_see_their_neighbours(mode, adapter):
    backbone = under(build(mode, adapter=adapter), policy="tile", tile_clips=1)
    frames, _ = batch(clips=4)
    with torch.no_grad():
        whole = backbone.timeline(frames)
    torch.testing.assert_close(streamed(backbone, frames, [1]), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", [{"frozen_weights": "stream"}, {"order": "blocks"}, {"frozen_dtype": "int8"}])
def test_weights_that_come_block_by_block_come_for_every_group(memory):
    backbone = under(build("adapter"), policy="tile", **memory)
    frames, _ = batch(clips=3)
    with torch.no_grad():
        whole = backbone.timeline(frames)
    torch.testing.assert_close(streamed(backbone, frames, [2]), whole, rtol=1e-10, atol=1e-10)


def test_policies_of_several_ranges_are_one_stream():
    ranges = [{"first": 0, "last": 1, "policy": "block"}, {"first": 2, "last": 3, "policy": "tile"}]
    backbone = under(build("adapter"), policy=ranges)
    frames, _ = batch(clips=3)
    with torch.no_grad():
        whole = backbone.timeline(frames)
    torch.testing.assert_close(streamed(backbone, frames, [1]), whole, rtol=1e-10, atol=1e-10)


def test_adapters_that_reach_beyond_a_clip_are_refused():
    with pytest.raises(UserError, match="reach 9 tubelets to each side, further than one clip of 8"):
        feature_stream(build("adapter", adapter={"kernel": 3, "dilation": 9}), torch.float64)


def test_groups_are_drawn_when_they_are_needed_and_no_earlier():
    drawn = []

    def watched():
        for group in groups_of(batch(clips=9)[0], [1]):
            drawn.append(len(group))
            yield group

    # Four adapters, each one group late.
    rows = feature_stream(build("adapter"), torch.float64).rows(watched())
    next(rows)
    assert len(drawn) == 5
    next(rows)
    assert len(drawn) == 6
    frozen = feature_stream(build("frozen"), torch.float64).rows(watched())
    drawn.clear()
    next(frozen)
    assert len(drawn) == 1


def test_gradients_are_off_while_a_group_is_computed_and_on_between_groups():
    during = []

    def watched():
        for group in groups_of(batch(clips=2)[0], [1]):
            during.append(torch.is_grad_enabled())
            yield group

    for row in feature_stream(build("full"), torch.float64).rows(watched()):
        assert torch.is_grad_enabled()
        assert not row.requires_grad
    assert during == [False, False]


def test_what_draws_from_a_stream_and_stops_closes_what_it_draws_from():
    closed = []

    def items():
        try:
            yield from range(3)
        finally:
            closed.append(True)

    stream = drawn_within(torch.no_grad, items())
    assert next(stream) == 0
    stream.close()
    assert closed
