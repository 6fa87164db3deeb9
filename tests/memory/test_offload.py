"""What waits in host memory comes back as it was, however late copies run, and nothing is allocated in later steps."""

import itertools
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_backbones import batch, build, error, gradients, under

from adatad.memory import offload
from adatad.memory.inputs import HostFrames, tile_frames
from adatad.memory.offload import (
    CopiesAtOnce,
    CopiesOnStreams,
    HostMemory,
    HostMemoryError,
    HostStore,
    pieces,
    pinned_rows,
)
from adatad.memory.tiles import cut_tiles
from adatad.parallel.adamw import HostStateAdamW
from adatad.training.ema import Ema

CPU = torch.device("cpu")
PLACES = ("saved_inputs", "halos", "frames", "frozen_weights")


class SlowCopies:
    """Runs a copy at the last moment that `Copies` allows: when somebody waits for it, or for one that comes after it.

    Whoever changes what a copy reads, or reads what it writes, without having waited, computes something else.
    """

    def __init__(self) -> None:
        self.started, self.run = 0, 0

    def start(self, to, source, after=None):
        self.started += 1
        to.fill_(255 if to.dtype == torch.uint8 else float("nan"))
        return {"to": to, "source": source, "after": after}

    def wait(self, ticket) -> None:
        if ticket:
            to, source, after = (ticket.pop(key) for key in ("to", "source", "after"))
            self.wait(after)
            to.copy_(source)
            self.run += 1


@pytest.fixture
def slow(monkeypatch) -> list[SlowCopies]:
    """All copies are slow; the list has those that were made."""
    made = []

    def copies_for(device):
        made.append(SlowCopies())
        return made[-1]

    monkeypatch.setattr(offload, "copies_for", copies_for)
    monkeypatch.setattr("adatad.memory.weights.copies_for", copies_for)
    return made


def placed(names) -> dict[str, str]:
    return {name: "stream" if name == "frozen_weights" else "host" for name in names}


def on_host(frames: torch.Tensor, places) -> torch.Tensor | HostFrames:
    return HostFrames(frames, CPU) if "frames" in places else frames


@pytest.mark.parametrize(("order", "recompute"), [("auto", "once"), ("blocks", "twice")])
@pytest.mark.parametrize(
    "places", [names for size in (1, 2, 4) for names in itertools.combinations(PLACES, size)], ids="+".join
)
def test_gradients_of_several_steps_are_those_of_no_offload_with_slow_copies(slow, places, order, recompute):
    backbone = build("adapter", adapter={"blocks": (1, 3)})
    waved = under(
        backbone, clips=5, policy="tile", tile_clips=2, segment_blocks=2, order=order, recompute=recompute,
        **placed(places),
    )  # fmt: skip
    for step in range(3):
        frames, keys = batch(windows=2, clips=5)
        frames = frames.roll(step, 2)
        assert error(gradients(waved, on_host(frames, places), keys), gradients(backbone, frames, keys)) < 1e-10
    assert sum(copies.run for copies in slow) == sum(copies.started for copies in slow) > 0


class FakeStream:
    """Notes what is queued on it; events are the lengths of queues."""

    current: ClassVar[list] = []

    def __init__(self) -> None:
        self.queue = []

    def wait_stream(self, other) -> None:
        self.queue.append(("waits for", other, len(other.queue)))

    def wait_event(self, event) -> None:
        self.queue.append(("waits for", *event))

    def record_event(self) -> tuple:
        return self, len(self.queue)

    def __enter__(self) -> None:
        self.current.append(self)

    def __exit__(self, *_) -> None:
        self.current.pop()


def test_copies_on_streams_come_after_what_they_read_and_before_what_waits(monkeypatch):
    computing = FakeStream()
    monkeypatch.setattr(FakeStream, "current", [computing])
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: FakeStream.current[-1])

    def tensor(is_cuda: bool) -> SimpleNamespace:
        def copy(source, non_blocking):
            FakeStream.current[-1].queue.append("copies" if non_blocking else "holds the host up")

        return SimpleNamespace(is_cuda=is_cuda, copy_=copy)

    copies = CopiesOnStreams()
    computing.queue.append("makes the source")
    leaving = copies.start(tensor(False), tensor(True))
    computing.queue.append("goes on")
    coming = copies.start(tensor(True), tensor(False), after=leaving)
    copies.wait(coming)
    out, into = leaving[0], coming[0]
    assert out.queue == [("waits for", computing, 1), "copies"]
    assert into.queue == [("waits for", computing, 2), ("waits for", out, 2), "copies"]
    assert computing.queue == ["makes the source", "goes on", ("waits for", into, 3)]


class SlowStreams(CopiesOnStreams):
    """The real ones, held up before each copy for longer than the work beside it takes."""

    def start(self, to, source, after=None):
        with torch.cuda.stream(self._streams["out" if source.is_cuda else "in"]):
            torch.cuda._sleep(2_000_000)
        return super().start(to, source, after)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("order", ["tiles", "blocks"])
def test_gradients_on_a_gpu_are_those_of_no_offload_with_slow_streams(monkeypatch, order):
    for module in ("offload", "weights"):
        monkeypatch.setattr(f"adatad.memory.{module}.copies_for", lambda device: SlowStreams())
    gpu, backbone = torch.device("cuda"), build("adapter", adapter={"blocks": (1, 3)})
    places = PLACES if order == "blocks" else PLACES[:3]
    waved = under(
        backbone, clips=9, policy="tile", tile_clips=2, segment_blocks=2, order=order, **placed(places)
    ).to(gpu)  # fmt: skip
    backbone.to(gpu)
    for step in range(3):
        frames, keys = batch(windows=2, clips=9)
        frames, keys = frames.roll(step, 2), keys.to(gpu)
        ours = gradients(waved, HostFrames(frames.pin_memory(), gpu), keys)
        assert error(ours, gradients(backbone, frames.to(gpu), keys)) < 1e-10


@given(data=st.data())
def test_any_placement_is_exact_for_any_shape(data):
    draw = data.draw
    mode = draw(st.sampled_from(["adapter", "plain", "side", "full"]), "mode")
    places = draw(st.sets(st.sampled_from(PLACES)), "on the host")
    places -= {"frozen_weights"} if mode == "full" else {"saved_inputs", "halos"} if mode == "side" else set()
    clips, windows = draw(st.integers(1, 5), "clips"), draw(st.integers(1, 2), "windows")
    backbone, (frames, keys) = build(mode), batch(windows, clips)
    memory = {
        "tile_clips": draw(st.integers(1, 3), "tile"),
        "segment_blocks": draw(st.integers(1, 4), "k"),
        "recompute": draw(st.sampled_from(["once", "twice"]), "recompute"),
        "order": draw(st.sampled_from(["auto", "blocks"]), "order"),
    }
    waved = under(backbone, clips=clips, policy="tile", **memory, **placed(places))
    assert error(gradients(waved, on_host(frames, places), keys), gradients(backbone, frames, keys)) < 1e-10


def test_buffers_are_made_in_the_first_step_and_come_back_after_every_one():
    backbone, (frames, keys) = build("adapter"), batch(windows=2, clips=5)
    waved = under(backbone, clips=5, policy="tile", tile_clips=2, segment_blocks=1, **placed(["saved_inputs", "halos"]))
    (wave_pass,) = waved.executor.passes
    counts = []
    for _ in range(3):
        gradients(waved, frames, keys)
        memory = wave_pass.host(CPU)
        counts.append((memory.bytes, sum(buffer.size_bytes for buffers in memory._free.values() for buffer in buffers)))
    assert counts[0][0] == counts[0][1] > 0
    assert counts == counts[:1] * 3


def test_a_pass_without_its_backward_gives_its_buffers_back():
    backbone, (frames, keys) = build("adapter"), batch(clips=4)
    waved = under(backbone, clips=4, policy="tile", tile_clips=1, segment_blocks=2, **placed(["saved_inputs", "halos"]))
    (wave_pass,) = waved.executor.passes
    for _ in range(4):
        waved(frames, 32, keys)
    memory = wave_pass.host(CPU)
    assert memory.bytes == sum(buffer.size_bytes for buffers in memory._free.values() for buffer in buffers)
    gradients(waved, frames, keys)


def test_two_passes_may_be_open_at_once():
    backbone, (frames, keys) = build("adapter"), batch(clips=4)
    waved = under(backbone, clips=4, policy="tile", tile_clips=1, segment_blocks=2, **placed(["saved_inputs", "halos"]))
    expected = gradients(backbone, frames, keys)
    other = waved(frames.flip(2), 32, keys)
    assert error(gradients(waved, frames, keys), expected) < 1e-10
    other.sum().backward()


def test_frozen_blocks_are_on_the_device_only_while_they_are_wanted():
    backbone = build("adapter")
    there = {name: p.clone() for name, p in backbone.named_parameters() if not p.requires_grad and "blocks" in name}
    waved = under(backbone, policy="tile", tile_clips=1, segment_blocks=2, frozen_weights="stream")
    (wave_pass,) = waved.executor.passes
    parameters = dict(waved.named_parameters())
    with wave_pass.provider.materialized(range(1, 3), range(3, 4)):
        assert all(torch.equal(parameters[n], p) for n, p in there.items() if n.startswith(("blocks.1.", "blocks.2.")))
        assert all(parameters[n].numel() == 0 for n in there if n.startswith(("blocks.0.", "blocks.3.")))
    assert all(parameters[name].numel() == 0 for name in there)


@given(st.integers(1, 2000), st.integers(1, 9_000_000))
def test_pinned_rows_take_little_more_than_they_are(count, size):
    """torch's allocator of pinned memory rounds every request up to a power of two."""
    requests = []

    def pinned(shape, dtype, device, what):
        requests.append(shape.numel())
        return torch.empty(1, dtype=torch.uint8).expand(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload, "pinned", pinned)
        rows = list(pinned_rows(count, size, CPU, "x"))
    assert [row.shape for row in rows] == [(size,)] * count
    taken = sum(2 ** (request - 1).bit_length() for request in requests)
    # Every request leaves less than a row over, and the rest is halved each time.
    assert taken <= (count + 2 + count.bit_length()) * size


def test_streamed_blocks_are_the_same_when_they_have_been_pinned(monkeypatch):
    """Many blocks lie in one piece of memory then."""
    waved = under(build("adapter"), policy="tile", tile_clips=1, segment_blocks=2, frozen_weights="stream")
    (wave_pass,) = waved.executor.passes
    packed = list(wave_pass.provider._packed.values())
    before = [block.memory.clone() for block in packed]
    on_gpu = type("Gpu", (), {"type": "cuda"})()
    monkeypatch.setattr(offload, "pinned", lambda shape, dtype, device, what: torch.empty(shape, dtype=dtype))
    wave_pass.provider._pin(on_gpu)
    assert all(torch.equal(block.memory, there) for block, there in zip(packed, before, strict=True))
    assert len({block.memory.untyped_storage().data_ptr() for block in packed}) < len(packed)


def test_a_bound_on_host_memory_names_what_is_too_large():
    memory = HostMemory(CPU, limit_bytes=1000)
    memory.reserve(3, 300, "halos")
    with pytest.raises(HostMemoryError, match=r"saved inputs on the host .* memory\.host_limit_gib"):
        memory.reserve(1, 200, "saved inputs")
    assert memory.bytes == 900


def test_memory_that_cannot_be_pinned_is_said_plainly(monkeypatch):
    def refuse(*shape, **options):
        raise RuntimeError("cudaHostAlloc failed")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(
        HostMemoryError, match=r"pinned host memory for saved inputs can't be had .*memory\.saved_inputs"
    ):
        HostMemory(CPU, copies=CopiesAtOnce()).reserve(1, 8, "saved inputs")


def test_a_store_keeps_what_was_saved_whatever_happens_to_it_later():
    store = HostStore("x", HostMemory(CPU, copies=SlowCopies()), buffer_bytes=64)
    tensors = [torch.full((size,), float(size)) for size in (4, 16, 7)]
    for number, tensor in enumerate(tensors):
        store.save_copy(number, tensor)
        tensor.zero_()
    store.prefetch(2)
    assert [store.pop(number).tolist() for number in (0, 2, 1)] == [[4.0] * 4, [7.0] * 7, [16.0] * 16]


@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 4))
def test_frames_of_tiles_are_those_of_their_clips(windows, clips, tile_clips):
    frames, _ = batch(windows, clips)
    tiles = [tile for window in cut_tiles(windows, clips, tile_clips) for tile in window]
    seen = {}
    for tile, found in tile_frames(HostFrames(frames, CPU), tiles, 16, SlowCopies()):
        seen[tile] = found.clone()
    (whole,) = ([x for _, x in tile_frames(frames, tiles, 16, SlowCopies())],)
    assert all(torch.equal(a, b) for a, b in zip(seen.values(), whole, strict=True))
    assert torch.equal(torch.cat([x[0] for x in whole], 1).unflatten(1, (windows, -1)).transpose(0, 1), frames)


# Optimizer and averages


def test_moments_on_the_host_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(offload, "PIECE_BYTES", 100)
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(size)) for size in (3, 20, 50, 7)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    made = [kind([{"params": p[:2], "lr": 0.1}, {"params": p[2:], "lr": 0.01}]) for kind, p in
            ((HostStateAdamW, ours), (torch.optim.AdamW, theirs))]  # fmt: skip
    for step in range(4):
        for parameters, optimizer in zip((ours, theirs), made, strict=True):
            torch.manual_seed(step)
            for parameter in parameters[step % 2 :]:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(made[0].state[a][key], made[1].state[b][key]) for key in ("step", "exp_avg"))


def test_averages_on_the_host_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(offload, "PIECE_BYTES", 100)
    masters = {str(size): torch.randn(size) for size in (3, 20, 50, 7)}
    ours, theirs = Ema(masters, 0.9, on_host=True), Ema(masters, 0.9)
    for _ in range(3):
        for master in masters.values():
            master.add_(torch.randn_like(master))
        ours.update(masters)
        theirs.update(masters)
    assert all(torch.equal(ours.averages[name], theirs.averages[name]) for name in masters)


@given(st.lists(st.integers(1, 40), max_size=10))
def test_pieces_are_the_tensors_in_order_none_too_large(sizes):
    tensors = [torch.empty(size * 2**18) for size in sizes]
    found = list(pieces(tensors))
    assert [id(t) for piece in found for t in piece] == [id(t) for t in tensors]
    assert all(len(piece) == 1 or sum(t.nbytes for t in piece) <= offload.PIECE_BYTES for piece in found)
