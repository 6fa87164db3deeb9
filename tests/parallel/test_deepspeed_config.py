"""DeepSpeed's file against the spec: what is filled in, and what is refused."""

import json
from pathlib import Path

import pytest

from adatad.errors import UserError
from adatad.parallel.deepspeed.config import deepspeed_config
from adatad.parallel.processes import Processes
from adatad.spec import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_of(tiny_spec, tmp_path):
    """config_of({...}, "engine=zero2", ...) is the configuration that a file of that content gives on two ranks."""

    def config(content: dict | None, *settings: str, on_cpu: bool = True) -> dict:
        overrides = [f"parallel.{settings[0]}", *settings[1:], "train.global_batch=4"]
        if content is not None:
            (tmp_path / "ds.json").write_text(json.dumps(content))
            overrides.append(f"parallel.deepspeed={tmp_path / 'ds.json'}")
        return deepspeed_config(load(tiny_spec, overrides), 2, on_cpu)

    return config


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_spec_fills_in_what_it_determines(config_of, stage):
    config = config_of(None, f"engine=zero{stage}", "train.accumulation=2", "train.clip_norm=null")
    assert config["zero_optimization"]["stage"] == stage
    batch = [config[k] for k in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")]
    assert batch == [4, 1, 2]
    assert config["gradient_clipping"] == 0.0
    assert config["zero_allow_untested_optimizer"]
    assert not config["zero_force_ds_cpu_optimizer"]
    assert not config.keys() & {"fp16", "bf16", "optimizer", "scheduler"}


def test_ranks_that_share_a_window_count_it_each(tiny_spec):
    spec = load(tiny_spec, ["parallel.engine=zero2", "parallel.clip=2", "train.global_batch=1"])
    config = deepspeed_config(spec, 2, True)
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (2, 1)


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_file_that_comes_along_is_accepted(config_of, path):
    zero = json.loads(path.read_text())["zero_optimization"]
    for on_cpu in (True, False):
        config = config_of(json.loads(path.read_text()), f"engine=zero{zero['stage']}", on_cpu=on_cpu)
        for section in ("offload_optimizer", "offload_param"):
            if section in zero:
                assert config["zero_optimization"][section] == {"device": "cpu", "pin_memory": not on_cpu}


def test_what_says_the_same_as_the_spec_may_stay(config_of):
    content = {"zero_optimization": {"stage": 2}, "train_batch_size": 4, "gradient_clipping": "auto"}
    assert config_of(content, "engine=zero2")["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train_batch_size": 8}, ["train_batch_size is 8", "train.global_batch 4 makes it 4"]),
        (
            {"train_micro_batch_size_per_gpu": 4},
            ["train_micro_batch_size_per_gpu is 4", "train.global_batch 4 on 2 ranks", "makes it 2"],
        ),
        ({"gradient_accumulation_steps": 2}, ["gradient_accumulation_steps is 2", "train.accumulation 1 makes it 1"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping is 0.5", "train.clip_norm 1.0 makes it 1.0"]),
        ({"zero_force_ds_cpu_optimizer": True}, ["zero_force_ds_cpu_optimizer is True", "AdamW"]),
        ({"bf16": {"enabled": True}}, ["bf16", "train.precision sets it"]),
        ({"optimizer": {"type": "AdamW"}}, ["optimizer", "section optimizer sets it"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["scheduler", "section schedule sets it"]),
        ({"activation_checkpointing": {}}, ["activation_checkpointing", "memory.policy sets it"]),
        ({"gradient_cliping": 1.0}, ["gradient_cliping", "nothing here uses it"]),
        (
            {"zero_optimization": {"stage": 3}},
            ["zero_optimization.stage is 3", "parallel.engine is zero2", "ds_configs/zero2.json"],
        ),
        (
            {"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1}},
            ["zero_optimization.stage3_max_live_parameters", "nothing here uses it"],
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            ["zero_optimization.offload_optimizer.device", "expected cpu or none", "nvme"],
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            ["zero_optimization.offload_optimizer.ratio"],
        ),
        ({"zero_optimization": {"stage": 0}}, ["zero_optimization.stage", "expected 1, 2 or 3"]),
        ({"zero_optimization": {"stage": True}}, ["zero_optimization.stage", "expected 1, 2 or 3"]),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "many"}},
            ["zero_optimization.reduce_bucket_size", "expected a whole number", "'many'"],
        ),
        (
            {"zero_optimization": {"stage": 2, "overlap_comm": "yes"}},
            ["zero_optimization.overlap_comm", "expected true or false", "'yes'"],
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}},
            ["zero_optimization.offload_optimizer", "expected an object with a device", "'cpu'"],
        ),
        ({"communication_data_type": "fp17"}, ["communication_data_type", "expected fp16, bf16, fp32", "'fp17'"]),
    ],
)
def test_contradictions_and_keys_without_effect_are_refused(config_of, content, words):
    with pytest.raises(UserError) as refused:
        config_of({"zero_optimization": {"stage": 2}, **content}, "engine=zero2")
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert "ds.json: " + words[0].partition(" is ")[0] in message.replace("ds.json: parallel.deepspeed: ", "")
    for word in words:
        assert word in message


def test_everything_wrong_with_a_file_is_said_at_once_before_anything_is_built(tiny_spec, tmp_path, run_command):
    file = tmp_path / "ds.json"
    zero = {"stage": 2, "offload_optimizer": "cpu", "stage3_max_live_parameters": 1}
    file.write_text(json.dumps({"zero_optimization": zero, "gradient_clipping": 3, "bf16": {"enabled": True}}))
    run = run_command("train", tiny_spec, "--deepspeed", file, "--set", "ema.decay=7")
    assert run.returncode == 2
    for key in ("offload_optimizer", "stage3_max_live_parameters", "gradient_clipping", "bf16", "ema.decay: "):
        assert sum(key in line for line in run.stderr.splitlines()) == 1
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "runs").exists()


def test_the_limits_of_stage_3_let_two_blocks_of_the_largest_model_be_whole_and_no_more():
    """DeepSpeed's own limits, a billion parameters, would keep all of it."""
    block = 25_200_000
    for name in ("zero3", "zero3_offload"):
        zero = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())["zero_optimization"]
        assert block < zero["stage3_max_live_parameters"] < 2.1 * block
        assert zero["stage3_max_reuse_distance"] < 2.1 * block
        assert zero["stage3_prefetch_bucket_size"] < 1.1 * block
        assert zero["stage3_param_persistence_threshold"] < 1e6


def test_fp16_is_refused_with_what_to_do(tiny_spec):
    import torch

    from adatad.parallel.deepspeed.engine import ZeroEngine

    spec = load(tiny_spec, ["parallel.engine=zero2", "train.precision=fp16"])
    with pytest.raises(UserError, match=r"train\.precision fp16.*bf16 or fp32"):
        ZeroEngine(torch.nn.Linear(1, 1), [], spec, Processes(0, 1, torch.device("cpu")))


def test_a_file_that_is_no_json_is_refused_by_name(tiny_spec, tmp_path, run_command):
    (tmp_path / "ds.json").write_text("{stage: 3}")
    run = run_command("train", tiny_spec, "--deepspeed", tmp_path / "ds.json")
    assert run.returncode == 2
    assert "ds.json: is not readable as JSON" in run.stderr
