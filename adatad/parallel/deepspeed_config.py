"""DeepSpeed's configuration: its JSON file, completed by what the spec determines.

DeepSpeed keeps and updates the trained parameters in fp32, as any other engine does, and the low precision of
arithmetic is our own autocast. So a run means the same under it. A key of the file that says something else than the
spec, or that would be without effect, is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adatad.spec.deepspeed_file import DeepSpeedFileError, read_deepspeed_file
from adatad.spec.schema import Spec

DEFAULTS = Path(__file__).parents[2] / "ds_configs"

INSTEAD = {
    "optimizer": "the spec's section optimizer sets it",
    "scheduler": "the spec's section schedule sets it",
    "fp16": "train.precision sets it",
    "bf16": "train.precision sets it",
    "amp": "train.precision sets it",
    "torch_autocast": "train.precision sets it",
    "data_types": "train.precision sets it",
    "activation_checkpointing": "memory.policy sets it",
    "checkpoint": "checkpoints are the run's own, whole whatever the engine",
    "tensorboard": "a run has a TensorBoard folder of its own",
    "wandb": "a run has a TensorBoard folder of its own",
    "csv_monitor": "a run has a metrics file of its own",
    "steps_per_print": "the run's own log and metrics say how training goes",
    "wall_clock_breakdown": "the run's own log and metrics say how training goes",
    "gradient_allreduce_op": "losses are sums over the global batch, whatever the number of ranks",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "checkpoints hold whole tensors already",
    "zero_optimization.memory_efficient_linear": "it would replace torch's linear layer in the whole process",
    "zero_optimization.cpu_offload": "zero_optimization.offload_optimizer takes its place",
    "zero_optimization.leaf_module": "blocks of the backbone are the units, always",
}
"""What to set instead of a key that would be without effect, or would harm."""

PLAIN = ("stage", "reduce_bucket_size", "reduce_scatter", "contiguous_gradients", "overlap_comm", "offload_optimizer")
STAGE_KEYS = {
    1: (*PLAIN, "allgather_bucket_size"),
    2: (*PLAIN, "allgather_bucket_size"),
    3: (
        *PLAIN, "offload_param", "sub_group_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters",
        "stage3_max_reuse_distance", "stage3_param_persistence_threshold",
    ),
}  # fmt: skip
"""Keys of zero_optimization that have an effect."""


def deepspeed_file(spec: Spec) -> Path:
    return Path(spec.parallel.deepspeed or DEFAULTS / f"{spec.parallel.engine}.json")


def deepspeed_config(spec: Spec, world: int, on_cpu: bool) -> dict[str, Any]:
    """What `deepspeed.initialize` gets. Raises DeepSpeedFileError, which names the file's key and the spec's.

    on_cpu: the device of the run is the CPU, whose memory can't be pinned.
    """
    path = deepspeed_file(spec)
    sections = read_deepspeed_file(path)
    zero = sections["zero_optimization"]
    _check_stage(path, zero["stage"], spec)
    _check_keys(path, zero)
    fixed = determined(spec, world)
    for key, (value, origin) in fixed.items():
        if key in sections and sections[key] not in (value, "auto"):
            raise DeepSpeedFileError(
                f"{path}: {key} is {sections[key]!r}, but {origin} makes it {value!r}; remove the key from the file"
            )
    for key in sections:
        if key not in fixed and key not in ("zero_optimization", "communication_data_type"):
            raise _without_effect(path, key)
    for section in ("offload_optimizer", "offload_param"):
        _check_offload(path, section, zero.get(section))
    merged = {**zero, "memory_efficient_linear": False} if zero["stage"] == 3 else dict(zero)
    for section in ("offload_optimizer", "offload_param"):
        if on_cpu and zero.get(section):
            merged[section] = {**zero[section], "pin_memory": False}
    values = {key: value for key, (value, _) in fixed.items()}
    return {**sections, **values, "zero_optimization": merged}


def determined(spec: Spec, world: int) -> dict[str, tuple[Any, str]]:
    """DeepSpeed's keys that follow from the spec and from this design, and where each comes from."""
    train = spec.train
    share = train.global_batch // (world * train.accumulation)
    split = f"train.global_batch {train.global_batch} on {world} ranks with train.accumulation {train.accumulation}"
    return {
        "train_batch_size": (train.global_batch, f"train.global_batch {train.global_batch}"),
        "train_micro_batch_size_per_gpu": (share, split),
        "gradient_accumulation_steps": (train.accumulation, f"train.accumulation {train.accumulation}"),
        "gradient_clipping": (train.clip_norm or 0.0, f"train.clip_norm {train.clip_norm}"),
        "zero_allow_untested_optimizer": (True, "the spec's AdamW, torch's own,"),
        "zero_force_ds_cpu_optimizer": (False, "the spec's AdamW, torch's own,"),
    }


def _check_stage(path: Path, stage: int, spec: Spec) -> None:
    engine = spec.parallel.engine
    if engine != f"zero{stage}":
        raise DeepSpeedFileError(
            f"{path}: zero_optimization.stage is {stage}, but parallel.engine is {engine}; "
            f"take ds_configs/{engine}.json, or set parallel.engine to zero{stage}"
        )


def _check_keys(path: Path, zero: dict[str, Any]) -> None:
    for key in zero:
        if key not in STAGE_KEYS[zero["stage"]]:
            raise _without_effect(path, f"zero_optimization.{key}")


def _without_effect(path: Path, key: str) -> DeepSpeedFileError:
    reason = INSTEAD.get(key, "nothing here uses it")
    return DeepSpeedFileError(f"{path}: {key} would be without effect or harmful: {reason}; remove it from the file")


def _check_offload(path: Path, section: str, offload: dict[str, Any] | None) -> None:
    if offload is None:
        return
    key = f"zero_optimization.{section}"
    if offload.get("device") not in ("cpu", "none"):
        raise DeepSpeedFileError(f"{path}: {key}.device: expected cpu or none, got {offload.get('device')!r}")
    for name in offload.keys() - {"device", "pin_memory"}:
        raise _without_effect(path, f"{key}.{name}")
