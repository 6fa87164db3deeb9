"""The meter counts what is alive, says what it is, and agrees with the memory that a real step takes."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from small_backbones import batch, build, gradients, under
from torch.utils._python_dispatch import TorchDispatchMode

from adatad.memory.arithmetic import autocast
from adatad.memory.meta import MetaResults, gpu_like_meta
from adatad.memory.meter import Meter, flash_scratch_bytes
from adatad.memory.scopes import memory_scope

META = torch.device("meta")


def test_counts_storages_not_views_and_forgets_the_dead():
    with Meter("cpu") as meter:
        with memory_scope("rows"):
            rows = torch.zeros(1000, dtype=torch.float32)
        with memory_scope("work"), memory_scope("inner"):
            half = rows[:500]
            doubled = half * 2
        assert meter.current_bytes == 4000 + 2000
        del doubled
        assert meter.current_bytes == 4000
        del rows
        assert meter.current_bytes == 4000, "a view keeps its storage alive"
        del half
        assert meter.current_bytes == 0
    assert meter.peak.bytes == 6000
    assert meter.peak.by_label == {"rows": 4000, "inner": 2000}
    assert meter.peak.place == "work > inner"


def test_registered_tensors_count_under_their_label():
    weight = torch.zeros(250)
    with Meter("cpu") as meter:
        meter.register([weight], "weights")
        made = torch.zeros(10)
        meter.register([made], "state")
        meter.register([made], "moments")
    assert meter.current_bytes == 1040
    assert meter.by_label == {"weights": 1000, "other": 0, "state": 0, "moments": 40}


def test_remembered_results_are_those_of_the_operators():
    def everything(x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        x = x.detach().requires_grad_()
        hidden = torch.nn.functional.gelu(x @ weight.t()).transpose(0, 1)
        normed, cut = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:]), hidden[:, 1:].contiguous()
        (gradient,) = torch.autograd.grad(normed.sum() + cut.sum(), x)
        return [hidden, normed, cut, gradient, hidden.view(-1)[:3] if hidden.is_contiguous() else hidden.reshape(-1)]

    inputs = torch.zeros(4, 6, device="meta"), torch.zeros(5, 6, device="meta")
    plain = everything(*inputs)
    with Meter("meta") as meter:
        assert isinstance(meter._run, MetaResults)
        for _ in range(3):
            ours = everything(*inputs)
            assert [(t.shape, t.stride(), t.dtype) for t in ours] == [(t.shape, t.stride(), t.dtype) for t in plain]
            shared = [t.untyped_storage().nbytes() for t in ours]
            assert shared == [t.untyped_storage().nbytes() for t in plain]


def test_meta_tensors_take_a_gpu_s_attention_and_autocast():
    q = torch.zeros(1, 2, 512, 16, device="meta", requires_grad=True)
    with gpu_like_meta(), Meter("meta") as meter, autocast(META, torch.bfloat16):
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        out.sum().backward()
        assert out.dtype == torch.bfloat16
        normed = torch.nn.functional.layer_norm(out, (16,))
        assert normed.dtype == torch.float32
        assert out.sum()[None].tolist() == [1.0]
    assert meter.peak.bytes < 512 * 512 * 2, "the scores were built"


class LongestMlp(TorchDispatchMode):
    """Largest number of rows of any tensor as wide as an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.width:
                self.rows = max(self.rows, tensor.numel() // self.width)
        return result


def test_the_scratch_of_attention_s_backward_is_in_the_peak_and_gone_afterwards():
    meter = Meter("meta")
    with meter, gpu_like_meta():
        q, k, v = (torch.empty(2, 3, 200, 88, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in "qkv")
        out = F.scaled_dot_product_attention(q, k, v)
        gradient = torch.empty_like(out)
        before = meter.current_bytes
        meter.reset_peak()
        into = torch.autograd.grad(out, (q, k, v), gradient)
    scratch = 2 * 3 * 256 * 96 * 4
    assert flash_scratch_bytes(q) == scratch
    results = sum(x.nbytes for x in into)
    assert meter.peak.bytes - before == scratch + results
    assert meter.current_bytes - before <= results


@pytest.mark.parametrize("order", ["tiles", "blocks"])
def test_no_tensor_of_mlp_width_is_longer_than_a_tile(order):
    clips, tile, tokens, width = 6, 2, 8 * 4, 48
    frames, keys = batch(clips=clips)
    for memory, rows in (
        ({"policy": "block"}, clips * tokens),
        ({"policy": "tile", "tile_clips": tile, "segment_blocks": 3, "order": order}, tile * tokens),
    ):
        backbone = under(build("adapter"), clips=clips, **memory)
        with LongestMlp(width) as longest:
            gradients(backbone, frames, keys)
        assert longest.rows == rows


def test_the_tile_stream_keeps_no_full_length_tensor():
    """Without gradients, memory is that of the tiles in flight, however long the video."""
    peaks = []
    for clips in (8, 32):
        backbone, (frames, _) = under(build("adapter"), policy="tile", tile_clips=1), batch(clips=clips)
        with torch.no_grad(), Meter("cpu") as meter:
            meter.register([frames], "frames")
            features = backbone.timeline(frames)
            peaks.append(meter.peak.bytes - frames.nbytes - features.nbytes)
    assert peaks[1] == peaks[0]


STEP = """
import json, sys, torch
from adatad.dev.benchmarks.cpu_suite import peak_resident, resident_floor
from adatad.memory.meter import Meter
from adatad.models.detector import build_model
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training.step import train_step
from adatad.training.metered import make_optimizer_state, random_batch
from adatad.training.resolve import resolve_model
from adatad.training.setup import build_train_state
torch.set_num_threads(1)
cpu = torch.device("cpu")
spec = load("configs/thumos/s_768x160_adapter.yaml", sys.argv[1:], check_files=False)
processes = Processes(0, 1, cpu)
parts = build_train_state(resolve_model(spec, processes, 20), processes, build_model(spec.model, 20))
make_optimizer_state(parts)
train_step(parts, [random_batch(spec.model_copy(update={"data": spec.data.model_copy(update={"size_pixels": 32})}),
                                1, 20, cpu)], 0)
batch = random_batch(spec, 1, 20, cpu)
with Meter("cpu") as meter:
    moments = [t for state in parts.engine.moments().values() for t in state.values()]
    meter.register([*parts.model.parameters(), *parts.ema.averages.values(), *moments, batch.frames], "given")
    floor, given = resident_floor(), meter.current_bytes
    train_step(parts, [batch], 1)
    print(json.dumps({"resident": peak_resident() - floor, "counted": meter.peak.bytes - given}))
"""


# Whatever the policy, the meter counts the same kinds of tensors: under tile all of them.
@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [pytest.param("memory.policy=none", marks=pytest.mark.full), "memory.policy=tile memory.tile_clips=1"],
)
def test_the_count_agrees_with_resident_memory(policy, tmp_path):
    overrides = "data.window.size_grid=64 model.detector.max_length=64 train.precision=fp32 train.global_batch=1"
    done = subprocess.run(
        [sys.executable, "-c", STEP, *overrides.split(), *policy.split()],
        capture_output=True,
        text=True,
        env={"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert 0.8 < seen["counted"] / seen["resident"] < 1.2, seen
