"""A GPU that is there and doesn't work is an error in a line, and never the CPU instead."""

from types import SimpleNamespace

import pytest
import torch

from adatad.cli.arguments import add_device_argument
from adatad.memory.arithmetic import autocast_dtype
from adatad.parallel import visible_gpus
from adatad.parallel.devices import DeviceError, check_card, cuda_failure, device_of
from adatad.spec.schema import TrainSpec

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040)."


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(nodes=..., visible=..., build=..., gpus=...): what torch and the system show."""

    def pretend(nodes: int = 0, visible: str | None = None, build: str | None = "13.0", gpus: int = 0) -> None:
        for number in range(nodes):
            (tmp_path / f"nvidia{number}").touch()
        (tmp_path / "nvidiactl").touch()
        monkeypatch.setattr(visible_gpus, "DEVICES", tmp_path)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

        def init() -> None:
            if build is None:
                raise AssertionError("Torch not compiled with CUDA enabled")
            if not gpus:
                raise RuntimeError(f"{TOO_OLD}\nmore")

        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return pretend


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        pytest.param(
            {"nodes": 2}, r"nvidia0 is there, and torch \S+ .*: The NVIDIA driver .* too old", id="old_driver"
        ),
        pytest.param({"nodes": 1, "visible": "0"}, "nvidia0 is there", id="in_a_container"),
        pytest.param({"visible": "0,1"}, "CUDA_VISIBLE_DEVICES=0,1 asks for GPUs", id="no_device_node"),
        pytest.param({"nodes": 1, "build": None}, "Torch not compiled with CUDA", id="torch_for_cpus"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused_in_one_line(machine, facts, says):
    machine(**facts)
    with pytest.raises(DeviceError, match=says) as refused:
        device_of(0)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("--device cpu runs on the CPU")


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({}, id="no_gpu"),
        pytest.param({"visible": "0", "build": None}, id="no_gpu_and_torch_for_cpus"),
        pytest.param({"nodes": 1, "visible": ""}, id="hidden"),
        pytest.param({"nodes": 1, "visible": "-1,0"}, id="hidden_by_number"),
        pytest.param({"nodes": 1, "visible": "NoDevFiles"}, id="hidden_by_slurm"),
    ],
)
def test_the_cpu_is_taken_where_there_is_no_gpu_or_none_is_wanted(machine, facts):
    machine(**facts)
    assert device_of(1) == torch.device("cpu")


def test_deepspeed_s_launcher_asks_for_no_gpu_on_a_machine_without_one(machine, monkeypatch):
    machine(visible="0,1")
    monkeypatch.setenv("CROSS_SIZE", "1")
    assert device_of(1) == torch.device("cpu")
    machine(visible="0,1", nodes=1)
    with pytest.raises(DeviceError):
        device_of(1)


@pytest.mark.parametrize("wanted", [["--device", "cpu"], ["--device=cpu"]])
def test_device_cpu_hides_a_gpu_that_does_not_work(machine, wanted):
    import argparse

    machine(nodes=1, visible="0")
    parser = argparse.ArgumentParser()
    add_device_argument(parser)
    assert parser.parse_args([]).device is None
    with pytest.raises(DeviceError):
        device_of(0)
    parser.parse_args(wanted)
    assert device_of(0) == torch.device("cpu")


def test_more_ranks_than_gpus_are_refused(machine):
    machine(nodes=2, gpus=2)
    assert device_of(1) == torch.device("cuda", 1)
    with pytest.raises(
        DeviceError, match=r"LOCAL_RANK is 2, and this process sees 2 GPUs.*--nproc-per-node"
    ) as refused:
        device_of(2)
    assert "MIG" not in str(refused.value)


def test_mig_instances_beyond_the_first_are_explained(machine):
    machine(nodes=1, gpus=1, visible="MIG-3e1c,MIG-5a")
    with pytest.raises(DeviceError, match=r"LOCAL_RANK is 1, and this process sees 1 GPU: .*MIG instances.* first one"):
        device_of(1)


def test_a_gpu_that_another_process_has_for_itself_is_refused(machine, monkeypatch):
    def busy(device):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors ...")

    machine(nodes=1, gpus=1)
    monkeypatch.setattr(torch.cuda, "set_device", busy)
    with pytest.raises(DeviceError, match=r"GPU 0 can't be used: CUDA error: .*busy or unavailable; --device cpu"):
        device_of(0)


def test_a_gpu_that_works_has_no_failure(machine):
    machine(nodes=1, gpus=1)
    assert cuda_failure() is None


@pytest.fixture
def card(monkeypatch):
    """A V100: torch says that it has bf16, which it emulates."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    return torch.device("cuda", 0)


def test_emulated_bf16_is_not_taken(card):
    assert autocast_dtype("auto", card) == torch.float16
    spec = SimpleNamespace(train=TrainSpec(precision="bf16"))
    with pytest.raises(DeviceError, match=r"train\.precision: Tesla V100 doesn't compute in bf16.*fp16, fp32 or auto"):
        check_card(spec, card)
    check_card(spec, torch.device("cpu"))
    for precision in ("auto", "fp16", "fp32"):
        check_card(SimpleNamespace(train=TrainSpec(precision=precision)), card)
