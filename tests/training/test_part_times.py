"""Times of parts: ranges share a step's time out among them, kernels belong to the range that launched them."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType

from adatad.training.part_times import BACKWARD_FUNCTION, NODE, PREFIX, Range, Ranges, covered, part_times


def op(name: str, start: float, end: float, **changes) -> SimpleNamespace:
    """An operator of the host as torch.profiler lists it."""
    facts = {
        "thread": 1, "fwd_thread": 0, "sequence_nr": -1, "scope": 0, "device_type": DeviceType.CPU, "is_async": False,
        "id": 0, "linked_correlation_id": 0, "is_user_annotation": False, "self_cpu_memory_usage": 0,
        "self_device_memory_usage": 0,
    }  # fmt: skip
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), **{**facts, **changes})


def part(name: str, start: float, end: float, **changes) -> SimpleNamespace:
    return op(PREFIX + name, start, end, **changes)


def kernel(name: str, start: float, end: float, launch: int, **changes) -> SimpleNamespace:
    return op(name, start, end, device_type=DeviceType.CUDA, linked_correlation_id=launch, **changes)


def milliseconds(events, on_device: bool = False, steps: int = 1) -> dict[str, float]:
    return {row.part: row.milliseconds for row in part_times(events, steps, on_device)}


@st.composite
def nested(draw, start: int = 0, end: int = 1000, depth: int = 4) -> list[Range]:
    """Ranges inside of one another, and beside one another."""
    name = draw(st.sampled_from(["step", "tile", "backward", "detector", "blocks 0 to 3", "recomputation"]))
    found = [Range("step" if depth == 4 else name, start, end)]
    cuts = sorted(draw(st.lists(st.integers(start, end), max_size=4))) if depth else []
    for left, right in zip(cuts[::2], cuts[1::2], strict=False):
        found += draw(nested(left, right, depth - 1)) if left < right else []
    return found


@given(nested(), st.randoms())
def test_all_parts_together_are_the_step(ranges, random):
    random.shuffle(ranges)
    found = Ranges(ranges)
    assert sum(one.own for one in found.all) == 1000
    assert all(one.own >= 0 for one in found.all)
    for one in found.all:
        middle = found.at((one.start + one.end) / 2)
        assert middle is one or one in iter_around(middle)


def iter_around(one: Range | None):
    while one is not None:
        yield one
        one = one.around


def test_a_part_has_the_time_that_no_part_inside_it_has():
    events = [
        part("step", 0, 10_000), part("wait for data", 0, 2_000), part("detector", 2_000, 8_000),
        part("backbone", 2_500, 6_000), part("features", 2_500, 5_900), part("tile", 3_000, 4_000),
        part("tile", 4_500, 5_500, self_cpu_memory_usage=0), op("aten::mm", 4_600, 4_700, self_cpu_memory_usage=64),
    ]  # fmt: skip
    rows = {row.part: row for row in part_times(events, 1, on_device=False)}
    assert {name: row.milliseconds for name, row in rows.items()} == pytest.approx(
        {"other": 2.0, "wait for data": 2.0, "detector": 2.5, "backbone": 1.5, "blocks": 2.0}
    )
    assert (rows["blocks"].calls, rows["blocks"].allocated_bytes) == (2, 64)


def test_steps_are_averaged_and_what_lies_between_them_is_left_out():
    events = [
        part("step", 0, 1_000), part("optimizer state", 0, 400), part("optimizer state", 1_200, 1_900),
        part("step", 2_000, 4_000), part("optimizer state", 2_000, 3_200),
    ]  # fmt: skip
    assert milliseconds(events, steps=2) == pytest.approx({"optimizer": 0.8, "other": 0.7})


def test_a_node_of_autograd_belongs_to_the_part_that_made_it():
    events = [
        part("step", 0, 10_000), part("detector", 0, 4_000), part("adapters", 1_000, 2_000),
        # An operator without a node shows the number of the next one that is made, here in another part.
        op("aten::no_node", 500, 600, sequence_nr=7), op("aten::mm", 1_100, 1_900, sequence_nr=7),
        op("aten::add", 3_000, 3_100, sequence_nr=8), op("aten::add", 3_000, 3_100, sequence_nr=7, thread=2),
        part("backward", 5_000, 10_000),
        op(f"{NODE}AddBackward0", 5_000, 6_000, sequence_nr=8, fwd_thread=1),
        op(f"{NODE}MmBackward0", 6_000, 9_000, sequence_nr=7, fwd_thread=1),
        op("MmBackward0", 6_100, 8_900, sequence_nr=7, fwd_thread=1, scope=BACKWARD_FUNCTION),
    ]  # fmt: skip
    assert milliseconds(events) == pytest.approx(
        {"detector": 3.0, "adapters": 1.0, "other": 1.0, "backward: detector": 1.0, "backward: adapters": 3.0,
         "backward: rest": 1.0}
    )  # fmt: skip


def test_what_backward_computes_again_is_a_part_of_its_own():
    events = [
        part("step", 0, 1_000), part("backward", 0, 1_000), part("blocks 4 to 7", 100, 900),
        part("recomputation", 100, 500), part("held graphs", 100, 300), part("adapters", 300, 500),
        part("tile", 500, 900), part("adapters", 600, 800),
    ]  # fmt: skip
    rows = part_times(events, 1, on_device=False)
    assert {row.part: row.calls for row in rows} == dict.fromkeys((row.part for row in rows), 1)
    assert milliseconds(events) == pytest.approx(
        {"backward: rest": 0.2, "backward: blocks, recomputed": 0.2, "backward: adapters, recomputed": 0.2,
         "backward: blocks": 0.2, "backward: adapters": 0.2}
    )  # fmt: skip


def test_kernels_belong_to_the_part_that_was_open_at_their_launch():
    events = [
        part("step", 0, 10_000), part("wait for data", 0, 3_000), part("detector", 3_000, 5_000),
        part("backward", 5_000, 6_000),
        op("aten::mm", 3_500, 3_600, id=11), op("aten::mm", 5_500, 5_600, id=12, thread=2),
        op("c10d::allreduce_", 5_700, 5_800, id=13, thread=2), op("aten::mm", 11_000, 11_100, id=14),
        kernel("sgemm", 4_000, 7_000, 11), kernel("sgemm_bwd", 7_000, 8_000, 12),
        # Beside the others, on a stream of its own.
        kernel("ncclDevKernel_AllReduce", 7_500, 9_000, 13),
        kernel("after the step", 11_000, 12_000, 14),
        # The profiler draws ranges on the GPU, too.
        kernel(f"{PREFIX}detector", 4_000, 8_000, 11, is_user_annotation=True),
    ]  # fmt: skip
    assert milliseconds(events, on_device=True) == pytest.approx(
        {"detector": 3.0, "backward: rest": 1.0, "communication": 1.5, "wait for data": 3.0, "device idle": 2.0}
    )


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted)))
def test_time_that_several_streams_share_is_covered_once(spans):
    assert covered(map(tuple, spans)) == len({moment for start, end in spans for moment in range(start, end)})


def test_a_profile_without_ranges_has_no_parts():
    assert part_times([op("aten::mm", 0, 1)], 1, on_device=False) == []
