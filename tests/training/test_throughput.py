"""Operations of a step: those that a hand counts, useful ones never more than executed ones, and rates from both."""

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from adatad.memory.cards import CARDS, card_of_driver_name
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.spec.sizes import clips_of_window
from adatad.training import throughput
from adatad.training.loop import Training
from adatad.training.monitor import ProgressBar
from adatad.training.resolve import resolve_model
from adatad.training.throughput import StepFlops, Throughput, peak_tflops, step_flops, throughput_of

SIZES = [
    "data.window.size_grid=96", "model.detector.max_length=96", "data.size_pixels=64", "model.detector.width=64",
    "model.backbone.width=96", "model.backbone.heads=3", "model.detector.stem_blocks=0",
    "model.detector.branch_blocks=1",
    "model.detector.regression_ranges=[[0, 4], [4, 10000]]", "model.backbone.mode=full", "optimizer.backbone.lr=1e-4",
    "model.backbone.drop_path=0", "train.global_batch=2",
]  # fmt: skip
WIDTH, MLP_WIDTH, CLIP_TOKENS = 96, 4 * 96, 8 * (64 // 16) ** 2
META = Processes(0, 1, torch.device("meta"))


def small_run(policy: str = "none", *overrides: str):
    settings = [*SIZES, f"memory.policy={policy}", *overrides]
    return resolve_model(load("configs/thumos/s_768x160_adapter.yaml", settings, check_files=False), META, 20)


def of_a_block(policy: str) -> tuple[int, int]:
    """Executed and useful operations that one block more adds to a step."""
    deep, shallow = (step_flops(small_run(policy, f"model.backbone.depth={depth}"), META) for depth in (5, 4))
    return deep.executed - shallow.executed, deep.useful - shallow.useful


# A fused attention computes its first product again in backward: 5 products for 2 in forward.
NONE = (3, 3.5)


@pytest.mark.parametrize(
    ("policy", "times", "spared"), [("none", NONE, 0), ("block", (4, 4.5), 1), ("tile", (4, 4.5), 0)]
)
def test_a_block_has_the_operations_that_a_hand_counts(policy, times, spared):
    spec = small_run().spec
    tokens = 2 * clips_of_window(spec.data, 16) * CLIP_TOKENS
    # Queries, keys, values and projection; two layers of the MLP; scores, and sums of values. 2 for each product.
    layers = 2 * tokens * (4 * WIDTH * WIDTH + 2 * WIDTH * MLP_WIDTH)
    attention = 2 * 2 * tokens * CLIP_TOKENS * WIDTH
    # Checkpointing stops before the last layer, whose output backward doesn't need.
    last_layer = 2 * tokens * WIDTH * MLP_WIDTH
    executed, useful = of_a_block(policy)
    assert executed == times[0] * layers + times[1] * attention - spared * last_layer
    assert useful == NONE[0] * layers + NONE[1] * attention


@pytest.mark.parametrize("policy", ["none", "selective", "block", "tile"])
@pytest.mark.parametrize("mode", ["full", "adapter"])
def test_useful_operations_are_executed_and_without_recomputation_they_are_all(mode, policy):
    flops = step_flops(small_run(policy, f"model.backbone.mode={mode}", "model.backbone.depth=4"), META)
    assert 0 < flops.useful <= flops.executed
    assert (flops.useful == flops.executed) == (policy == "none")


def test_rates_of_a_step():
    flops = StepFlops(executed=4 * 10**12, useful=3 * 10**12)
    assert Throughput(flops, peak_tflops=100.0).values(0.5) == pytest.approx({"tflops_per_second": 8.0, "mfu": 0.06})
    assert Throughput(flops).values(2.0) == {"tflops_per_second": 2.0}


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"), ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"), ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA H100 PCIe", None), ("NVIDIA L40", None), ("", None),
        ("NVIDIA RTX 6000 Ada Generation", None),
    ],
)  # fmt: skip
def test_cards_are_known_by_their_whole_name_alone(name, card):
    found = card_of_driver_name(name)
    assert (found and found.tflops) == (card and CARDS[card].tflops)


def test_the_peak_is_that_of_the_arithmetic(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    gpu = torch.device("cuda")
    assert peak_tflops(gpu, torch.bfloat16) == 989
    assert peak_tflops(gpu, torch.float32) == 67
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another 9000")
    assert peak_tflops(gpu, torch.bfloat16) is None
    assert peak_tflops(torch.device("cpu"), torch.bfloat16) is None


def test_a_step_that_cannot_be_counted_costs_the_figure_and_not_the_run(monkeypatch):
    def fail(*_):
        raise ArithmeticError("no such block")

    monkeypatch.setattr(throughput, "planner_for", fail)
    assert throughput_of(small_run(), META) is None


def test_the_line_of_a_step_says_the_rates_that_are_known(capsys):
    bar = ProgressBar(Console(width=300), 1, 3, 0)
    with bar:
        bar.show(1, 0, 0.5, 1e-3, 2**30)
        bar.show(2, 1, 0.5, 1e-3, 2**30, {"tflops_per_second": 81.25})
        bar.show(3, 2, 0.5, 1e-3, 2**30, {"tflops_per_second": 81.25, "mfu": 0.0731})
    plain, rate, both = (line for line in capsys.readouterr().out.splitlines() if "loss" in line)
    assert "TFLOP/s" not in plain
    assert "81.2 TFLOP/s  left" in rate
    assert "81.2 TFLOP/s  MFU 7 %  left" in both


@pytest.mark.parametrize("known", [True, False])
def test_metrics_of_a_step_have_the_rates_where_they_are_known(known):
    written, shown = [], []
    training = SimpleNamespace(
        metrics=SimpleNamespace(write=lambda *line: written.append(line)),
        directory=SimpleNamespace(owner=SimpleNamespace(check=lambda: None)),
        state=SimpleNamespace(engine=SimpleNamespace(memory_bytes=lambda: 5)),
        processes=META, progress=SimpleNamespace(step=7),
        throughput=Throughput(StepFlops(4 * 10**12, 3 * 10**12), 100.0) if known else None,
    )  # fmt: skip
    bar = SimpleNamespace(show=lambda *values: shown.append(values))
    Training.write_metrics(training, 2, {"cost": 0.5, "step_seconds": 0.5, "lr": {"detector": 1e-3}}, bar)
    rates = {"tflops_per_second": 8.0, "mfu": pytest.approx(0.06)} if known else {}
    (_, step, epoch, values), (*_, speed) = written[0], shown[0]
    assert (step, epoch) == (7, 2)
    assert {name: value for name, value in values.items() if name in ("tflops_per_second", "mfu")} == rates
    assert speed == rates
