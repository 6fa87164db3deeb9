"""`adatad plan`: what it prints to paste, and its exit codes."""

import gc

import pytest
import torch

SPEC = "configs/thumos/s_768x160_adapter.yaml"
SMALL = [
    "data.window.size_grid=64", "model.detector.max_length=64", "data.size_pixels=64", "model.backbone.depth=3",
    "model.detector.width=64", "model.detector.stem_blocks=0", "model.detector.branch_blocks=1",
    "model.detector.regression_ranges=[[0, 4], [4, 10000]]",
]  # fmt: skip


@pytest.fixture
def plan(monkeypatch, run_command):
    """plan(arguments) runs the command: (exit code, what it printed)."""

    def run(*arguments: object) -> tuple[int, str]:
        # The objects of other tests must not stay.
        monkeypatch.setattr(gc, "freeze", lambda: None)
        done = run_command("plan", SPEC, *arguments)
        return done.returncode, done.stdout + done.stderr

    return run


def lines_of(printed: str) -> list[str]:
    """Without the signs of life on stderr."""
    return [line for line in printed.splitlines() if not line.startswith("planning: ")]


def test_five_lines_say_the_plan_its_memory_its_time_and_what_to_paste(plan):
    # Where launches take longer than arithmetic does, another policy may be the fastest.
    large = [setting for setting in SMALL if "pixels" not in setting]
    code, printed = plan("--gpu", "rtx4090", "--set", *large, "memory.policy=block")
    assert code == 0, printed
    lines = lines_of(printed)
    assert [line.split()[0] for line in lines] == ["plan", "device", "host", "time", "--set"]
    assert max(map(len, lines)) <= 80, lines
    assert "GiB (counted) of 20.6 GiB usable of RTX 4090" in lines[1]
    assert "at 0.6 of 165 TFLOP/s" in lines[3]
    assert lines[4] == "--set memory.policy=none"


def test_the_table_shows_other_plans_and_the_spec_s_own(plan):
    code, printed = plan("--gpu-memory", 24, "--gpus", 2, "--all", "--set", *SMALL, "memory.policy=block")
    assert code == 0, printed
    assert "tile, " in printed
    assert "+*" in printed
    assert "assumed (--gpu)" in printed
    assert max(map(len, lines_of(printed))) <= 80


def test_more_gpus_than_windows_are_planned_where_they_share_them(plan):
    asked = ["parallel.clip=4", "memory.policy=block"]
    code, printed = plan("--gpu-memory", 24, "--gpus", 8, "--set", *SMALL, *asked)
    assert code == 0, printed
    code, printed = plan("--gpu-memory", 24, "--gpus", 2, "--set", *SMALL, *asked)
    assert code == 2
    assert "parallel.clip 4 doesn't divide 2 GPUs (--gpus)" in printed


def test_nothing_fits_is_exit_code_1_with_by_how_much(plan):
    code, printed = plan("--gpu-memory", 1.12, "--host-memory", 8, "--set", *SMALL, "train.global_batch=1")
    assert code == 1, printed
    assert "nothing fits: the smallest plan (tile, " in printed


def test_a_batch_that_the_gpus_can_t_share_is_refused(plan):
    code, printed = plan("--gpu-memory", 24, "--gpus", 3)
    assert code == 2
    assert "train.global_batch 2 can't be divided by 3 GPUs" in printed


def test_without_a_gpu_a_card_or_a_size_has_to_be_given(plan, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, printed = plan("--set", *SMALL)
    assert code == 2
    assert "--gpu" in printed


@pytest.mark.parametrize(
    "silly",
    [
        ("--gpu-memory", 0), ("--gpu-memory", "24XB"), ("--host-memory", "nan"), ("--gpus", 0), ("--gpus", "9e29"),
        ("--tflops", -1), ("--tflops", 0), ("--pcie", "nan"), ("--pcie", "1e300"), ("--classes", "9e29"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(plan, silly):
    code, printed = plan("--gpu-memory", "24GB", *silly)
    assert code == 2
    assert f"argument {silly[0]}: expected a " in printed
    assert f"got '{silly[1]}'" in printed
