"""DeepSpeed's JSON file: read, asked for the ZeRO stage it is for, and checked against the spec.

A key that says something else than the spec, or that would be without effect, is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adatad.errors import UserError
from adatad.files import MAX_SPEC_BYTES, FileError, read_json
from adatad.spec.schema import Spec
from adatad.spec.text import cut, cut_key, short

# Each would be accepted by DeepSpeed without a word: two places that set one thing drift apart.
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
    "wandb": "logging.wandb sets it",
    "csv_monitor": "a run has a metrics file of its own",
    "steps_per_print": "the run's own log and metrics say how training goes",
    "wall_clock_breakdown": "the run's own log and metrics say how training goes",
    "gradient_allreduce_op": "losses are sums over the global batch, whatever the number of ranks",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "checkpoints hold whole tensors already",
    "zero_optimization.memory_efficient_linear": "it would replace torch's linear layer in the whole process",
    "zero_optimization.cpu_offload": "zero_optimization.offload_optimizer takes its place",
    "zero_optimization.leaf_module": "blocks of the backbone are the units, always",
}
"""Settings to use instead of a key that would be without effect, or would harm."""

# In which ranks exchange gradients (communication_data_type).
DTYPES = ("fp16", "bf16", "fp32")
# Kinds of values, in the words of messages.
NUMBER, FLAG, SECTION = "a whole number from 0 to 10^15", "true or false", "an object with a device"
PLAIN = {
    "reduce_bucket_size": NUMBER,
    "reduce_scatter": FLAG,
    "contiguous_gradients": FLAG,
    "overlap_comm": FLAG,
    "offload_optimizer": SECTION,
}
STAGE_KEYS = {
    # Stages 1 and 2 share DeepSpeed's code, and so its keys.
    1: {**PLAIN, "allgather_bucket_size": NUMBER},
    2: {**PLAIN, "allgather_bucket_size": NUMBER},
    3: {
        **PLAIN,
        "offload_param": SECTION,
        "sub_group_size": NUMBER,
        "stage3_prefetch_bucket_size": NUMBER,
        "stage3_max_live_parameters": NUMBER,
        "stage3_max_reuse_distance": NUMBER,
        "stage3_param_persistence_threshold": NUMBER,
    },
}
"""Keys of zero_optimization that have an effect, and what they take."""


class DeepSpeedFileError(UserError):
    """A DeepSpeed file that can't be used; the message names the file and the key, and says what to do."""


def read_deepspeed_file(path: str | Path) -> dict[str, Any]:
    """Return the file's sections. Raises DeepSpeedFileError if it isn't there or isn't a JSON object with a ZeRO
    stage."""
    if not os.path.lexists(path):
        raise DeepSpeedFileError(f"{cut(path)}: there is no such DeepSpeed file")
    try:
        sections = read_json(path, MAX_SPEC_BYTES)
    except FileError as error:
        raise DeepSpeedFileError(cut(error)) from error
    zero = sections.get("zero_optimization") if isinstance(sections, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if type(stage) is not int or stage not in STAGE_KEYS:
        raise DeepSpeedFileError(
            f"{cut(path)}: zero_optimization.stage: expected 1, 2 or 3; ds_configs/ has a file for each"
        )
    return sections


def engine_of(path: str | Path) -> str:
    """Return the value of `parallel.engine` that a file is for."""
    return f"zero{read_deepspeed_file(path)['zero_optimization']['stage']}"


def determined(spec: Spec) -> dict[str, tuple[Any, str]]:
    """Return the values of DeepSpeed's keys that follow from the spec, whatever the number of ranks, and where each
    comes from."""
    train = spec.train
    return {
        # Values must be equal or "auto": DeepSpeed reads its own file, so a different number would train another run.
        "train_batch_size": (train.global_batch * spec.parallel.clip, global_batch(spec)),
        "gradient_accumulation_steps": (train.accumulation, f"train.accumulation {train.accumulation}"),
        "gradient_clipping": (train.clip_norm or 0.0, f"train.clip_norm {train.clip_norm}"),
        "zero_allow_untested_optimizer": (True, "the spec's AdamW, torch's own,"),
        "zero_force_ds_cpu_optimizer": (False, "the spec's AdamW, torch's own,"),
    }


def global_batch(spec: Spec) -> str:
    """Return the origin of DeepSpeed's batch size, in words.

    DeepSpeed knows of no shared windows, so it must count a window once for every rank that has it.
    """
    shared = f" x parallel.clip {spec.parallel.clip}" if spec.parallel.clip > 1 else ""
    return f"train.global_batch {spec.train.global_batch}{shared}"


BY_RANKS = "train_micro_batch_size_per_gpu"
"""DeepSpeed's key that follows from the spec and the number of ranks."""


def deepspeed_problems(path: str | Path, spec: Spec) -> Iterator[str]:
    """Yield all that is wrong with a file beside a spec, as far as it doesn't hang on the number of ranks."""
    try:
        sections = read_deepspeed_file(path)
    except DeepSpeedFileError as error:
        yield str(error)
        return
    # A wrong stage says little of the other keys, but all is reported at once.
    for check in (_stage, _values, _zero_keys):
        for problem in check(sections, spec):
            yield f"{cut(path)}: {problem}"


def contradiction(sections: dict[str, Any], key: str, value: Any, origin: str) -> Iterator[str]:
    """Yield what is wrong with a key whose value is determined."""
    # "auto" is what Hugging Face's files have: to be filled in by the trainer.
    if key in sections and sections[key] not in (value, "auto"):
        yield f"{key} is {short(sections[key])}, but {origin} makes it {value!r}; remove the key from the file"


def _stage(sections: dict[str, Any], spec: Spec) -> Iterator[str]:
    stage, engine = sections["zero_optimization"]["stage"], spec.parallel.engine
    if engine != f"zero{stage}":
        yield (
            f"zero_optimization.stage is {stage}, but parallel.engine is {engine}; "
            f"take ds_configs/{engine}.json, or set parallel.engine to zero{stage}"
        )


def _values(sections: dict[str, Any], spec: Spec) -> Iterator[str]:
    fixed = determined(spec)
    for key, (value, origin) in fixed.items():
        yield from contradiction(sections, key, value, origin)
    for key in sections:
        if key not in (*fixed, "zero_optimization", "communication_data_type", BY_RANKS):
            yield _without_effect(key)
    dtype = sections.get("communication_data_type", DTYPES[0])
    if dtype not in DTYPES:
        yield f"communication_data_type: expected {', '.join(DTYPES)}, got {short(dtype)}"


def _zero_keys(sections: dict[str, Any], spec: Spec) -> Iterator[str]:
    zero = sections["zero_optimization"]
    # The stage that the file has, even if the spec wants another: that was said by `_stage`.
    known = STAGE_KEYS[zero["stage"]]
    for name, value in zero.items():
        key = f"zero_optimization.{name}"
        if name == "stage":
            continue
        if name not in known:
            yield _without_effect(key)
            continue
        kind = known[name]
        if kind == SECTION:
            fits = isinstance(value, dict)
        else:
            # By type, not isinstance: true is an int to Python.
            fits = type(value) is bool if kind == FLAG else type(value) is int and 0 <= value <= 10**15
        if not fits:
            yield f"{key}: expected {kind}, got {short(value)}"
        elif kind == SECTION:
            yield from _offload(key, value)


def _offload(key: str, offload: dict[str, Any]) -> Iterator[str]:
    if offload.get("device") not in ("cpu", "none"):
        yield f"{key}.device: expected cpu or none, got {short(offload.get('device'))}"
    if type(offload.get("pin_memory", False)) is not bool:
        yield f"{key}.pin_memory: expected {FLAG}, got {short(offload['pin_memory'])}"
    for name in offload:
        if name not in ("device", "pin_memory"):
            yield _without_effect(f"{key}.{name}")


def _without_effect(key: str) -> str:
    reason = INSTEAD.get(key, "nothing here uses it")
    return f"{cut_key(key)} would be without effect or harmful: {reason}; remove it from the file"
