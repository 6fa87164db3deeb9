"""What a run sets of torch's arithmetic, and puts back: kernels that sum in one order, float32 without TF32."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adatad.errors import UserError
from adatad.memory.meta import gpu_like_meta
from adatad.models.detector import build_model
from adatad.models.losses import Targets, detection_losses
from adatad.spec import SpecError, load
from adatad.spec.schema import TrainSpec
from adatad.training.determinism import deterministic_kernels, is_deterministic, run_arithmetic
from adatad.training.run import train

CPU, GPU, META = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")

ALERTS = {
    "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "cumsum", "histc",
    "upsample_trilinear3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "put", "put_", "median",
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "bincount",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "nll_loss_forward", "nll_loss2d_forward",
    "_ctc_loss_backward", "max_unpool2d", "fractional_max_pool2d_backward", "_embedding_bag_forward_only",
}  # fmt: skip
"""Operators that the documentation of torch.use_deterministic_algorithms says have no deterministic kernel on CUDA."""


def settings() -> tuple:
    return (
        torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_leaks(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    yield
    assert settings() == before


@pytest.mark.parametrize("value", ["maybe", "1.5", "[]"])
def test_what_is_not_a_truth_value_is_refused(tiny_spec, value):
    with pytest.raises(SpecError, match=r"train\.deterministic"):
        load(tiny_spec, [f"train.deterministic={value}"])


@pytest.mark.parametrize(
    ("value", "device", "wanted"),
    [(None, CPU, True), (False, CPU, False), (None, GPU, False), (True, GPU, True), (False, GPU, False)],
    ids=str,
)
def test_without_the_key_cpus_are_deterministic_and_gpus_are_not(value, device, wanted):
    assert is_deterministic(TrainSpec(deterministic=value), device) == wanted


def test_a_run_sets_what_its_spec_says():
    with run_arithmetic(TrainSpec(precision="fp32"), CPU):
        assert settings() == (2, False, False, False, None)
    with run_arithmetic(TrainSpec(precision="fp32"), GPU):
        assert settings() == (0, True, False, False, None)
    with run_arithmetic(TrainSpec(precision="bf16", deterministic=True), GPU):
        assert settings() == (2, False, True, False, ":4096:8")
    with run_arithmetic(TrainSpec(precision="bf16", recheck_every=5), GPU):
        assert settings() == (0, True, True, False, ":4096:8")


def test_a_workspace_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with run_arithmetic(TrainSpec(precision="bf16", deterministic=True), GPU):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_settings_are_put_back_after_an_error_and_an_operator_without_a_kernel_is_one_line():
    with pytest.raises(ZeroDivisionError), run_arithmetic(TrainSpec(precision="fp32"), CPU):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match=r"^other$"), deterministic_kernels("train.deterministic"):
        raise RuntimeError("other")
    with (
        pytest.raises(UserError, match=r"^train\.deterministic can't be used on this device: .*put_.*; leave it out$"),
        deterministic_kernels("train.deterministic"),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))


def test_a_run_trains_under_its_settings(tiny_spec, monkeypatch):
    seen = []
    real = torch.Tensor.backward

    def backward(*args, **options):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return real(*args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    train(load(tiny_spec, ["schedule.epochs=1", "schedule.warmup_epochs=0"]))
    assert seen
    assert all(seen)


class Operators(TorchDispatchMode):
    """Names of the operators that run while it is active."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("neck", ["identity", "fpn"])
@pytest.mark.parametrize("window", [-1, 8])
def test_no_operator_of_a_step_lacks_a_deterministic_kernel(tiny_spec, neck, window):
    spec = load(tiny_spec, [f"model.detector.neck={neck}", f"model.detector.attention_window={window}"])
    with META:
        model = build_model(spec.model, 3)
        frames, mask = torch.empty(2, 3, 64, 32, 32, dtype=torch.uint8), torch.ones(2, 32, dtype=torch.bool)
        keys, points = torch.zeros(2, dtype=torch.int64, device="cpu"), 32 + 16 + 8
        valid = torch.ones(2, points, dtype=torch.bool)
        targets = Targets(torch.zeros(2, points, 3), torch.zeros(2, points, 2), valid, valid)

    def alerts() -> set[str]:
        with gpu_like_meta(), Operators() as operators:
            losses = detection_losses(model(frames, mask, keys), targets, 10.0, spec.model.detector)
            losses["cost"].backward()
        return operators.names & ALERTS

    assert alerts() == {"upsample_linear1d_backward"}
    with deterministic_kernels("train.deterministic"):
        assert alerts() == set()
