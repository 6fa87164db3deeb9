"""Executors: copies of a model are whole, `print` says how it runs, and nothing of ours is replaced at run time."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from small_backbones import batch, build, error, gradients, under

import adatad
from adatad.models.backbone import PlainExecutor
from adatad.parallel.clip import FakeClipGroup, share_clips
from adatad.parallel.layout import Mesh
from adatad.spec.schema import PolicyRange

TILE = {"policy": "tile", "tile_clips": 1, "segment_blocks": 2}
MIXED = tuple(PolicyRange(first=i, last=i, policy=p) for i, p in enumerate(("none", "selective", "block", "tile")))
POLICIES = {
    "none": {},
    "selective": {"policy": "selective"},
    "block": {"policy": "block"},
    "tile": TILE,
    "mixed": {"policy": MIXED, "tile_clips": 2},
    "stream": {**TILE, "frozen_weights": "stream", "saved_inputs": "host"},
}


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize(
    ("mode", "policy"), [*(("adapter", policy) for policy in POLICIES), ("side", "block"), ("side", "tile")]
)
def test_a_copy_of_a_prepared_model_runs_its_own_weights(mode, policy, how):
    backbone, (frames, keys) = under(build(mode), **POLICIES[policy]), batch(windows=2)
    expected = gradients(backbone, frames, keys)
    copied = how(backbone)
    with torch.no_grad():
        for tensor in [*backbone.parameters(), *backbone.buffers()]:
            tensor.fill_(torch.nan)
    found = gradients(copied, frames, keys)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any(p.grad is not None for p in backbone.parameters())


def test_printing_an_executor_says_how_it_runs():
    assert "none" in str(build("adapter").executor)
    mixed = under(build("adapter"), **POLICIES["mixed"], saved_inputs="host")
    lines = str(mixed.executor).splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "blocks 0 to 0: none", "blocks 1 to 1: selective", "blocks 2 to 2: block", "blocks 3 to 3: tile",
    ]  # fmt: skip
    assert "2 clips" in lines[3]
    assert "host: saved inputs" in lines[3]
    share_clips(mixed, FakeClipGroup(Mesh(1, 3, 0, 1), clips=6))
    assert "clips 2 to 3 of 6" in str(mixed.executor)
    assert "StreamedBlocks" in str(under(build("adapter"), **POLICIES["stream"]).executor)


def test_executors_never_change():
    backbone = under(build("adapter"), **TILE)
    before = backbone.executor
    share_clips(backbone, FakeClipGroup(Mesh(1, 3, 0, 1), clips=6))
    assert before.halo_exchange.first_clip == before.passes[0].halo_exchange.first_clip == 0
    assert backbone.executor.passes[0].halo_exchange.first_clip == 2
    assert isinstance(build("adapter").executor, PlainExecutor)


def test_ranges_as_modules_and_by_waves_give_the_gradients_of_policy_none():
    backbone, (frames, keys) = build("adapter"), batch(windows=2)
    mixed = under(backbone, **POLICIES["mixed"])
    assert error(gradients(mixed, frames, keys), gradients(backbone, frames, keys)) < 1e-10


PATCHES = re.compile(r"\.(forward|timeline|pad_time|first_clip|visits|residency|provider|neighbours) = ")
THEIRS = {"parallel/zero.py"}
"""Replaces the forward pass that DeepSpeed will call."""


def test_no_method_of_our_own_is_replaced_at_run_time():
    package = Path(adatad.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if PATCHES.search(line) and not line.strip().startswith(("self.", "outer.", "self, self."))
    ]
    assert [line for line in found if line.split(":")[0] not in THEIRS] == []
