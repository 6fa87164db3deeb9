"""Launches of a step of the largest model, by the planner's count."""

import pytest
import torch

from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Planner
from adatad.spec import load


@pytest.mark.parametrize(("config", "most"), [("g_1536x224_adapter", 250_000), ("g_768x160_adapter", 112_000)])
def test_a_tiled_step_of_g_launches_few_kernels(config, most):
    """At 5 us each they take less than the arithmetic of an H100 does: 2.7 and 0.86 s."""
    spec = load(f"configs/thumos/{config}.yaml", ["train.global_batch=1", "memory.policy=tile"], check_files=False)
    assert Planner(spec, Machine(1000 * GIB), torch.bfloat16).own().launches <= most
