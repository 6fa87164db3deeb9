"""The pretended GPU finds mistakes that are planted, nothing in their correct twins, and leaves torch as it was."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adatad.data.augment import ColorJitter, jitter_colors
from adatad.dev.pretended.cuda import GPU, pretended_gpu
from adatad.dev.pretended.operators import DeviceMismatchError, OnGpu
from adatad.memory.arithmetic import autocast
from adatad.memory.offload import CopiesOnStreams, HostMemory, HostStore


def made(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device=GPU)


def pinned(*shape: int) -> torch.Tensor:
    return torch.empty(shape, pin_memory=True)


def offloaded(waits: bool) -> None:
    x, to, side = made(8), pinned(8), torch.cuda.Stream()
    if waits:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        to.copy_(x, non_blocking=True)
    torch.cuda.current_stream().wait_stream(side)


def read_by_the_host(waits: bool) -> None:
    to = pinned(8)
    to.copy_(made(8), non_blocking=True)
    if waits:
        torch.cuda.current_stream().synchronize()
    to.sum()


def written_by_the_host(waits: bool) -> None:
    source, x = pinned(8), made(8)
    x.copy_(source, non_blocking=True)
    if waits:
        event = torch.cuda.current_stream().record_event()
        event.synchronize()
    source.fill_(2.0)


def fetched(waits: bool) -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = pinned(8).to(GPU, non_blocking=True)
        done = side.record_event()
    if waits:
        done.wait()
    x.sum()
    side.wait_stream(torch.cuda.current_stream())


def two_parts(overlap: bool) -> None:
    x, side = made(8), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x[:4].add_(1)
    (x[3:] if overlap else x[4:]).add_(1)
    torch.cuda.current_stream().wait_stream(side)


def freed(how: str) -> None:
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    x = made(8)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        x.sum()
    if how == "recorded":
        x.record_stream(side)
    if how == "waited":
        main.wait_stream(side)
    del x
    if how != "never used again":
        made(8)


def item(x: torch.Tensor) -> float:
    return float(x.sum())


MISTAKES: dict[str, tuple[str, Callable, Callable]] = {
    "a value is read": ("waits", lambda: made(3).sum().item(), lambda: made(3).sum()),
    "a float is made of a tensor": ("waits", lambda: item(made(3)), lambda: made(3).sum().detach()),
    "a condition hangs on a tensor": ("waits", lambda: bool(made(3).sum() > 0), lambda: made(3).sum() > 0),
    "a list is made of a tensor": ("waits", lambda: made(3).tolist(), lambda: made(3).unbind()),
    "a number is made into a tensor": ("waits", lambda: made(3) + torch.as_tensor(2, device=GPU), lambda: made(3) + 2),
    "a list is made into a tensor": (
        "waits", lambda: torch.tensor([1.0, 2.0], device=GPU), lambda: torch.arange(2, device=GPU),
    ),
    "a copy blocks": ("waits", lambda: pinned(3).to(GPU), lambda: pinned(3).to(GPU, non_blocking=True)),
    "a copy to pageable memory": (
        "waits", lambda: torch.empty(3).copy_(made(3), non_blocking=True),
        lambda: pinned(3).copy_(made(3), non_blocking=True),
    ),
    "a mask as an index": (
        "waits", lambda: made(3)[made(3) > 0], lambda: torch.where(made(3) > 0, made(3), 0.0),
    ),
    "a mask as an index of what is written": (
        "waits", lambda: made(3).index_put_((made(3) > 0,), made(1)), lambda: made(3).masked_fill_(made(3) > 0, 1.0),
    ),
    "an index on the host": (
        "waits", lambda: made(3)[torch.tensor([0, 1])], lambda: made(3)[torch.arange(2, device=GPU)],
    ),
    "a size that is content": ("waits", lambda: made(3).nonzero(), lambda: made(3).argsort()),
    "the device is waited for": ("waits", lambda: torch.cuda.synchronize(), lambda: None),
    "a copy from pageable memory": (
        "unpinned", lambda: torch.empty(3).to(GPU, non_blocking=True), lambda: pinned(3).to(GPU, non_blocking=True),
    ),
    "memory is pinned": ("pinnings", lambda: torch.empty(3).pin_memory(), lambda: torch.empty(3)),
    "a copy out doesn't wait for its source": ("races", lambda: offloaded(False), lambda: offloaded(True)),
    "the host reads before the copy is done": (
        "races", lambda: read_by_the_host(False), lambda: read_by_the_host(True),
    ),
    "the host writes what is still copied": (
        "races", lambda: written_by_the_host(False), lambda: written_by_the_host(True),
    ),
    "what is fetched is used too early": ("races", lambda: fetched(False), lambda: fetched(True)),
    "two streams write the same bytes": ("races", lambda: two_parts(True), lambda: two_parts(False)),
    "freed under another stream": ("freed", lambda: freed("used again"), lambda: freed("waited")),
    "freed without being recorded": ("freed", lambda: freed("used again"), lambda: freed("recorded")),
    "freed and handed out": ("freed", lambda: freed("used again"), lambda: freed("never used again")),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found_and_its_correct_twin_is_clean(mistake):
    counter, wrong, right = MISTAKES[mistake]
    found = []
    for run in (wrong, right):
        with pretended_gpu() as gpu:
            run()
            found.append(getattr(gpu.counts, counter))
    assert found[0].total() > 0
    assert not found[1], found[1]


def test_tensors_of_both_devices_are_refused_but_numbers_of_the_host_are_not():
    with pretended_gpu() as gpu:
        x = made(3)
        with pytest.raises(DeviceMismatchError, match=r"add of tensors on .*cuda:0.*cpu.*test_pretended_gpu"):
            x + torch.ones(3)
        with pytest.raises(DeviceMismatchError, match="add_"):
            torch.tensor(1.0).add_(x[0])
        assert (x + torch.tensor(1.0)).device == GPU
        assert not gpu.counts.waits


def no_wait_for_the_source(self, to, source, after=None):
    with torch.cuda.stream(self._streams["out" if source.is_cuda else "in"]) as stream:
        to.copy_(source, non_blocking=True)
        return stream.record_event()


START = CopiesOnStreams.start
OFFLOAD_MISTAKES = {
    "none": {},
    "copies don't wait for what computes their source": {"start": no_wait_for_the_source},
    "a copy in doesn't wait for the copy out": {"start": lambda self, to, source, after=None: START(self, to, source)},
    "nobody waits for copies": {"wait": lambda self, ticket: None},
}


@pytest.mark.parametrize("mistake", OFFLOAD_MISTAKES)
def test_mistakes_in_the_copies_of_saved_inputs_are_found(monkeypatch, mistake):
    for name, function in OFFLOAD_MISTAKES[mistake].items():
        monkeypatch.setattr(CopiesOnStreams, name, function)
    with pretended_gpu() as gpu:
        store = HostStore("saved inputs", HostMemory(GPU), 256)
        for step in range(2):
            for key in range(4):
                store.save(key, made(64).mul_(step))
            for key in range(4):
                store.prefetch(key + 1)
                store.pop(key).add_(1)
        assert bool(gpu.counts.races) == (mistake != "none"), gpu.counts.races
        assert not gpu.counts.waits


def test_a_module_trains_and_its_parameters_stay_the_same_objects():
    with pretended_gpu() as gpu:
        module = nn.Linear(4, 2)
        before = list(module.parameters())
        optimizer = torch.optim.AdamW(module.parameters(), fused=True)
        module.to(GPU)
        assert all(a is b and a.is_cuda for a, b in zip(before, module.parameters(), strict=True))
        gpu.counts.clear()
        module(made(3, 4)).sum().backward()
        assert module.weight.grad.shape == (2, 4)
        optimizer.step()
        assert gpu.counts.launches["_fused_adamw_"] == 1
        assert not gpu.counts.waits


def test_autocast_computes_products_in_its_dtype_and_counts_casts():
    with pretended_gpu() as gpu:
        weight = made(2, 4).requires_grad_()
        with autocast(GPU, torch.bfloat16):
            y = F.linear(made(3, 4), weight)
        assert (y.dtype, y.device) == (torch.bfloat16, GPU)
        y.sum().backward()
        assert weight.grad.dtype == torch.float32
        assert gpu.counts.launches["_to_copy"] == 3


def test_views_and_empty_memory_are_no_launches():
    with pretended_gpu() as gpu:
        x = torch.empty(4, 6, device=GPU)
        x.view(2, 12).transpose(0, 1)[1:].detach().expand(11, 2)
        assert not gpu.counts.launches
        x.view(24).add_(1)
        assert gpu.counts.launches == {"add_": 1}
        assert x.to(GPU) is x
        assert x.to(GPU, copy=True) is not x
        assert not gpu.counts.waits


def state_of_torch() -> SimpleNamespace:
    return SimpleNamespace(
        cuda=dict(vars(torch.cuda)), accelerator=dict(vars(torch.accelerator)), functions=dict(vars(F)),
        autocast=torch.autocast, pin=torch.Tensor.pin_memory, is_pinned=torch.Tensor.is_pinned,
        number=torch.Tensor.__float__, resize=torch.UntypedStorage.resize_,
        lift=torch._C._only_lift_cpu_tensors(), swap=torch.__future__.get_swap_module_params_on_conversion(),
    )  # fmt: skip


def test_torch_is_left_as_it_was_also_after_an_error():
    before = state_of_torch()
    with pytest.raises(DeviceMismatchError), pretended_gpu():
        made(3).add_(torch.ones(3))
    assert state_of_torch() == before
    with pretended_gpu():
        assert torch.cuda.is_available()
        assert state_of_torch() != before
    assert state_of_torch() == before


def test_tables_that_functions_remember_do_not_outlive_it():
    jitter, waits = ColorJitter(1.1, 1.1, 1.1, 0.1, (0, 1, 2, 3)), []
    for _ in range(2):
        with pretended_gpu() as gpu:
            jitter_colors(torch.empty(3, 1, 4, 4, dtype=torch.uint8, device=GPU), jitter)
            waits.append(gpu.counts.waits.total())
    assert waits[0] == waits[1] > 0


def test_one_inside_of_another_is_refused_and_leaves_the_outer_one():
    with pretended_gpu() as gpu:
        with pytest.raises(RuntimeError, match="only one at a time"), pretended_gpu():
            pass
        made(3)
        assert gpu.counts.launches.total() == 1


def test_a_tensor_that_outlives_its_gpu_says_so():
    with pretended_gpu():
        x = made(3)
    with pytest.raises(RuntimeError, match="outlived"):
        x + 1
    assert isinstance(x, OnGpu)
