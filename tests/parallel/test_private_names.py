"""A library without a private name that an engine uses is refused at the start, by a message that names both."""

import re
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.zero import partition_parameters
from fairscale.nn.data_parallel import FullyShardedDataParallel, fully_sharded_data_parallel
from torch import nn
from torch.distributed.fsdp import FSDPModule

from adatad.errors import UserError
from adatad.parallel import base, fairscale, fsdp
from adatad.parallel.base import require_names
from adatad.parallel.deepspeed import internals
from adatad.parallel.processes import Processes

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("owner", "name", "start", "versions"),
    [
        pytest.param(FSDPModule, "_set_unshard_async_op", lambda: fsdp.FsdpEngine(nn.Linear(1, 1), [], None, ALONE),
                     "torch>=2.13", id="torch"),
        pytest.param(partition_parameters, "ZeroParamStatus", lambda: internals.start_deepspeed(ALONE),
                     "deepspeed>=0.19.8,<0.20", id="deepspeed"),
        pytest.param(FullyShardedDataParallel, "_lazy_init",
                     lambda: fairscale.FairscaleEngine(nn.Linear(1, 1), [], None, ALONE),
                     "fairscale>=0.4.13,<0.5", id="fairscale"),
        pytest.param(fully_sharded_data_parallel, "free_storage_",
                     lambda: fairscale.FairscaleEngine(nn.Linear(1, 1), [], None, ALONE),
                     "fairscale>=0.4.13,<0.5", id="fairscale_function"),
    ],
)  # fmt: skip
def test_an_engine_names_the_library_its_version_and_what_it_lacks(owner, name, start, versions, monkeypatch):
    monkeypatch.delattr(owner, name)
    with pytest.raises(
        UserError, match=rf"{versions.partition('>')[0]} [0-9.]+\S* lacks {name} of .*{re.escape(versions)}"
    ):
        start()


@pytest.mark.parametrize("layout", [internals.Partitions, internals.ShardedPartitions])
def test_an_optimizer_of_deepspeed_without_a_private_attribute_is_refused(layout):
    with pytest.raises(UserError, match=rf"clip_grad.* of the optimizer of {layout.stages}"):
        layout(SimpleNamespace(), {}, 0)


def test_names_that_are_there_are_no_error():
    assert require_names("torch", ">=2", "a string", "", ["upper", "lower"]) is None


def test_versions_in_messages_are_those_of_the_package():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    extras = setup["options.extras_require"]
    assert extras["deepspeed"] == f"deepspeed{internals.WORKS_WITH}"
    assert extras["fairscale"] == f"fairscale{fairscale.WORKS_WITH}"
    assert f"torch{base.TORCH_WORKS_WITH}" in setup["options"]["install_requires"]


def test_what_fairscale_takes_for_granted_is_undone():
    tensor = torch.zeros(1)
    before = fully_sharded_data_parallel.torch, fully_sharded_data_parallel.logging, torch.Tensor.record_stream
    with fairscale.fairscale_runs_here(tensor.device, torch.float32):
        with fairscale.fairscale_runs_here(tensor.device, torch.float32):
            assert fully_sharded_data_parallel.torch.cuda is torch.cpu
        assert tensor.record_stream(None) is None
    after = fully_sharded_data_parallel.torch, fully_sharded_data_parallel.logging, torch.Tensor.record_stream
    assert after == before
    assert "record_stream" not in vars(torch.Tensor)
