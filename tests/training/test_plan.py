"""`memory.policy: auto` in training, and what happens when memory runs out."""

import json

import pytest
import torch
import yaml

import adatad.training.loop as loop
import adatad.training.plan as plan_module
from adatad.memory.offload import GIB
from adatad.memory.planner import Machine
from adatad.memory.scopes import memory_scope, scope_path_of
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training.out_of_memory import OutOfMemoryError, explain, is_out_of_memory
from adatad.training.plan import PlanError, check_fits, choose, planner_for
from adatad.training.run import train
from adatad.training.run_directory import RunDirectory, run_directory

CPU = Processes(0, 1, torch.device("cpu"))
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def device_of(monkeypatch):
    """device_of(gib): what the planner finds."""

    def set_to(gib: float, **machine) -> None:
        monkeypatch.setattr(plan_module, "this_rank", lambda *_, **__: Machine(gib * GIB, **machine))

    return set_to


def fail_in_step(monkeypatch, steps: set[int]) -> list[str]:
    """Let memory run out, once in each of these steps; returns the policies that steps began with."""
    real, seen = loop.train_step, []

    def step(parts, batches, number):
        seen.append(parts.spec.memory.policy)
        if number in steps:
            steps.discard(number)
            with memory_scope("backward"), memory_scope("blocks 0 to 1"):
                raise torch.OutOfMemoryError(FULL)
        return real(parts, batches, number)

    monkeypatch.setattr(loop, "train_step", step)
    return seen


def test_labels_tell_where_an_error_came_from():
    with pytest.raises(ValueError, match="x") as caught, memory_scope("backward"), memory_scope("tile"):
        raise ValueError("x")
    assert scope_path_of(caught.value) == "backward > tile"
    assert scope_path_of(ValueError()) == ""


def test_both_allocators_are_known():
    assert is_out_of_memory(torch.OutOfMemoryError(FULL))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shapes don't fit"))


def test_auto_is_resolved_before_anything_is_built_and_logged(tiny_spec, device_of):
    device_of(64.0, shared=True)
    spec = load(tiny_spec, ["memory.policy=auto", "schedule.epochs=1"])
    train(spec)
    run = run_directory(spec)
    assert yaml.safe_load((run.path / "spec.yaml").read_text())["memory"]["policy"] == "none"
    assert "memory.policy auto: none: " in (run.path / "log.txt").read_text()


def test_auto_takes_what_fits_the_smallest_rank(tiny_spec, device_of):
    """A window for which the little device of the other rank has no room under none."""

    class TwoRanks(Processes):
        def gather(self, value):
            return [value, (1.3 * GIB, value[1])]

    spec = load(tiny_spec, ["memory.policy=auto", "data.size_pixels=256",
                            "data.window.size_grid=128", "model.backbone.width=128"])  # fmt: skip
    device_of(64.0, shared=True)
    assert plan_module.least_rank(TwoRanks(0, 2, torch.device("cpu"))).memory_bytes == 1.3 * GIB
    taken = choose(spec, TwoRanks(0, 2, torch.device("cpu")), 20)
    assert taken.spec.memory.policy == "tile"
    assert "none would need" in taken.lines[0]


def test_what_fits_nothing_is_refused_with_the_reason(tiny_spec, device_of):
    device_of(1.0, shared=True)
    with pytest.raises(PlanError, match=r"nothing fits: the smallest plan \(.*\) takes 0\.\d+ GiB"):
        choose(load(tiny_spec, ["memory.policy=auto"]), CPU, 20)


def test_the_next_smaller_plan_is_taken_once_before_the_first_step(tiny_spec, device_of, monkeypatch):
    device_of(64.0, shared=True)
    seen = fail_in_step(monkeypatch, {0})
    spec = load(tiny_spec, ["memory.policy=auto", "schedule.epochs=1", "data.size_pixels=64"])
    train(spec)
    assert seen[0] == "none"
    assert set(seen[1:]) == {seen[1]} != {"none"}
    log = (run_directory(spec).path / "log.txt").read_text()
    assert "out of memory in the first step" in log
    assert "taking the next smaller plan, once" in log
    assert yaml.safe_load((run_directory(spec).path / "spec.yaml").read_text())["memory"]["policy"] == seen[1]


@pytest.mark.parametrize("policy", ["auto", "none"])
def test_later_nothing_is_changed_but_advice_is_given(tiny_spec, device_of, monkeypatch, policy):
    device_of(64.0, shared=True)
    seen = fail_in_step(monkeypatch, {1})
    spec = load(tiny_spec, [f"memory.policy={policy}"])
    with pytest.raises(OutOfMemoryError) as caught:
        train(spec)
    assert seen == ["none", "none"]
    message = str(caught.value)
    assert "out of memory: CUDA out of memory" in message
    assert "in: backward > blocks 0 to 1" in message
    assert "GiB at its fullest moment" in message
    settings = message.partition("--set ")[2].splitlines()[0].split()
    assert load(tiny_spec, settings).memory.policy != "none"
    details = json.loads((run_directory(spec).path / "out_of_memory_rank0.json").read_text())
    assert details["place"] == "backward > blocks 0 to 1"
    assert details["planned_bytes"]["trained weights"] > 0


def test_the_smallest_has_no_smaller_one(tiny_spec, device_of, monkeypatch):
    device_of(64.0, shared=True)
    fail_in_step(monkeypatch, {0, 1, 2})
    spec = load(tiny_spec, ["memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=1",
                            "memory.saved_inputs=host", "memory.halos=host", "memory.frames=host",
                            "memory.moving_average=host",
                            "memory.optimizer_state=host", "memory.frozen_weights=stream"])  # fmt: skip
    with pytest.raises(OutOfMemoryError, match="no smaller plan is known"):
        train(spec)


def test_host_memory_that_the_run_itself_has_is_there_for_a_smaller_plan(tiny_spec, monkeypatch, tmp_path):
    spec = load(tiny_spec, ["memory.policy=tile", "memory.saved_inputs=host", "memory.halos=host"])
    roomy = planner_for(spec, CPU, Machine(64 * GIB), 20)
    own = roomy.own()
    wanted = roomy.smaller(roomy.plans(coarse=True), own).host_bytes
    left = Machine(64 * GIB, host_bytes=wanted - own.host_bytes)
    monkeypatch.setattr("adatad.training.out_of_memory.this_rank", lambda *_, **__: left)
    assert "--set memory.policy=" in explain(torch.OutOfMemoryError(FULL), spec, CPU, 20, RunDirectory(tmp_path))


def test_a_spec_that_is_submitted_is_held_against_the_gpu():
    spec = load("configs/thumos/s_768x160_adapter.yaml", check_files=False)
    check_fits(spec, gpu_memory_gib=80, ranks=2, num_classes=20)
    with pytest.raises(PlanError, match=r"none takes .* usable of 4; .* --set '?memory\.policy="):
        check_fits(spec, gpu_memory_gib=4, ranks=2, num_classes=20)
    with pytest.raises(PlanError, match="nothing fits: the smallest plan"):
        check_fits(spec, gpu_memory_gib=1.2, ranks=2, num_classes=20)
    auto = load("configs/thumos/s_768x160_adapter.yaml", ["memory.policy=auto"], check_files=False)
    check_fits(auto, gpu_memory_gib=4, ranks=2, num_classes=20)
