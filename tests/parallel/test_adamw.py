"""AdamW's moments in bf16: rounding is unbiased and repeatable, training hardly notices, and a run goes on exactly."""

import math
import shutil

import pytest
import torch
from interrupted import train_until_interrupted
from safetensors.torch import load_file
from torch import nn

import adatad.parallel.adamw as rounded_adamw
from adatad.memory.flops import FlopCount
from adatad.parallel.adamw import RoundedAdamW, round_into
from adatad.spec import SpecError, load
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.checkpoint_check import CheckpointError, check_tensor
from adatad.training.run import train
from adatad.training.run_directory import run_directory

BF16 = "memory.moment_dtype=bf16"
EIGHT_BITS = [
    "memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=1", "memory.frozen_dtype=int8",
    "memory.saved_input_dtype=fp8",
]  # fmt: skip
"""All else that changes bits, which a run that goes on must repeat as well."""


def rounded(moments: torch.Tensor, step: int = 3, first: int = 0, seed: int = 0) -> torch.Tensor:
    out = torch.empty_like(moments, dtype=torch.bfloat16)
    round_into(out, moments.clone(), first, torch.tensor(float(step)), seed)
    return out.float()


def test_the_mean_of_many_roundings_is_the_number_itself():
    # Distances of 0 to 1 between neighbours, over many powers of two and both signs.
    share = torch.linspace(0.01, 0.99, 40)
    base = torch.tensor([1.0, 1.5, -1.25]).view(3, 1, 1) * 2.0 ** torch.arange(-20, 20, 5).view(1, 8, 1)
    gap = base.abs().log2().floor().exp2() * 2.0**-7
    exact = (base + base.sign() * gap * share).flatten()
    count = 1500
    found = torch.stack([rounded(exact.repeat(2, 1), step) for step in range(count)])
    gaps = gap.expand(3, 8, 40).flatten()
    assert ((found - exact).abs() < gaps).all(), "never further than a neighbour"
    deviations = (found.double() - exact).mean(0) / gaps / (share * (1 - share)).sqrt().repeat(24) * math.sqrt(count)
    # Of 1,920 means, in standard deviations: as normal numbers are.
    assert abs(float(deviations.mean())) * math.sqrt(deviations.numel()) < 4
    assert float(deviations.abs().max()) < 5
    assert 0.9 < float(deviations.std()) < 1.1


def test_bf16_numbers_stay_as_they_are():
    numbers = torch.tensor([0.0, -0.0, 1.0, -3.140625, 2.0**-126, 3.3895e38, float("inf"), -float("inf")])
    numbers = numbers.bfloat16().float().repeat(2, 1)
    for step in range(50):
        assert torch.equal(rounded(numbers, step), numbers)


def test_every_step_place_moment_and_seed_draws_anew():
    half = torch.full((2, 10_000), 1 + 2.0**-8)
    plain = rounded(half)
    others = [rounded(half, step=4), rounded(half, first=5_000), rounded(half, seed=1), plain.flip(0), plain.roll(1, 1)]
    assert torch.equal(plain, rounded(half))
    for other in others:
        assert 0.47 < float((plain == other).float().mean()) < 0.53


def regression(make) -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy fit: how far all parameters have moved, and the mean squares."""
    torch.manual_seed(0)
    teacher, model = nn.Linear(16, 4), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = make([{"params": list(model.parameters()), "lr": 3e-3}])
    for _ in range(600):
        x = torch.randn(8, 16)
        loss = (model(x) - teacher(x).detach() - torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    squares = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten().float() for p in model.parameters()])
    return nn.utils.parameters_to_vector(model.parameters()).detach() - start, squares


def test_training_is_near_that_with_fp32_moments_and_rounding_to_the_nearest_is_not(monkeypatch):
    exact, exact_squares = regression(torch.optim.AdamW)

    def deviations() -> tuple[float, float]:
        way, squares = regression(lambda groups: RoundedAdamW(groups, seed=0))
        return float((way - exact).norm() / exact.norm()), float(squares.sum() / exact_squares.sum())

    way, squares = deviations()
    assert way < 0.01
    assert squares == pytest.approx(1, abs=0.02)
    monkeypatch.setattr(rounded_adamw, "round_into", lambda out, moments, *_: out.copy_(moments))
    _, squares = deviations()
    assert squares > 1.04, "what should fade stays"


def test_kernels_of_rounding_do_not_grow_with_the_number_of_parameters(monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)

    def kernels(count: int) -> int:
        parameters = [nn.Parameter(torch.zeros(4)) for _ in range(count)]
        for parameter in parameters:
            parameter.grad = torch.zeros(4)
        optimizer = RoundedAdamW([{"params": parameters}], seed=0)
        optimizer.step()
        with FlopCount() as counted:
            optimizer.step()
        return counted.kernels

    assert kernels(1) == kernels(100) <= 45


def test_parameters_without_a_gradient_have_no_moments_and_keep_their_draws():
    """The pieces are those of all parameters, whichever get a gradient."""
    ones = [nn.Parameter(torch.ones(5)) for _ in range(3)]
    optimizer = RoundedAdamW([{"params": ones[:2]}, {"params": ones[2:]}], seed=0)
    ones[1].grad = torch.full((5,), 0.3)
    optimizer.step()
    assert [parameter in optimizer.state for parameter in ones] == [False, True, False]
    assert optimizer.state[ones[1]]["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(ones[0], torch.ones(5))


def same(ours, theirs) -> bool:
    kinds = [(ours.parameters, theirs.parameters), (ours.ema, theirs.ema)]
    kinds += [(ours.optimizer[name], theirs.optimizer[name]) for name in theirs.optimizer]
    return all(torch.equal(a[name], b[name]) for a, b in kinds for name in b)


def end_of(spec):
    return read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1])


def test_a_run_goes_on_with_the_same_bits_wherever_moments_wait_and_also_in_fp32(tiny_spec, tmp_path, monkeypatch):
    usual = ["train.evaluate_every_epochs=3", "train.checkpoint_every_steps=null", *EIGHT_BITS]
    plain = load(tiny_spec, [BF16, *usual, "run.id=1"])
    host = ["memory.optimizer_state=host", "memory.saved_inputs=host", "memory.frozen_weights=stream"]
    placed = load(tiny_spec, [BF16, *usual, *host, "run.id=2"])
    train(plain)
    train_until_interrupted(placed, 4, monkeypatch)
    middle = tmp_path / "middle"
    shutil.copytree(all_checkpoints(run_directory(placed).checkpoints)[-1], middle)
    train(placed, resume="auto")
    assert same(end_of(placed), end_of(plain))
    stored = load_file(middle / "optimizer.safetensors")
    assert {t.dtype for name, t in stored.items() if not name.endswith("/step")} == {torch.bfloat16}
    in_fp32 = load(tiny_spec, [*usual, "run.id=3"])
    train(in_fp32, resume=str(middle))
    assert not same(end_of(in_fp32), end_of(plain))
    for name, parameter in end_of(plain).parameters.items():
        assert torch.allclose(end_of(in_fp32).parameters[name], parameter, atol=1e-3)


def test_only_moments_may_be_bf16_in_a_checkpoint(tmp_path):
    tensor = torch.ones(2, dtype=torch.bfloat16)
    check_tensor(tmp_path, "optimizer.safetensors", "w/exp_avg_sq", tensor, steps=1)
    for file, name in (("parameters.safetensors", "w"), ("ema.safetensors", "w")):
        with pytest.raises(CheckpointError, match="w is bfloat16, expected float32"):
            check_tensor(tmp_path, file, name, tensor, steps=1)


def test_an_engine_with_moments_of_its_own_is_refused(tiny_spec):
    with pytest.raises(SpecError, match=r"memory.moment_dtype.*bf16 works with engine ddp, not zero2"):
        load(tiny_spec, [BF16, "parallel.engine=zero2"])
