"""DeepSpeed's configuration: its JSON file, completed by what the spec determines.

DeepSpeed keeps and updates the trained parameters in fp32, as any other engine does, and the low precision of
arithmetic is our own autocast. So a run means the same under it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adatad.resources import resource
from adatad.spec.deepspeed_file import (
    BY_RANKS,
    DeepSpeedFileError,
    contradiction,
    deepspeed_problems,
    determined,
    global_batch,
    read_deepspeed_file,
)
from adatad.spec.schema import Spec

DEFAULTS = resource("ds_configs")


def deepspeed_file(spec: Spec) -> Path:
    """Return the JSON file that the spec names, or the shipped one of its engine."""
    return Path(spec.parallel.deepspeed or DEFAULTS / f"{spec.parallel.engine}.json")


def deepspeed_config(spec: Spec, world: int, on_cpu: bool) -> dict[str, Any]:
    """Return what `deepspeed.initialize` gets. Raises DeepSpeedFileError, which names the file's keys and the spec's.

    on_cpu: the device of the run is the CPU, whose memory can't be pinned.
    """
    path, train, clip = deepspeed_file(spec), spec.train, spec.parallel.clip
    # A spec that was loaded with its files has been through these; they can change since.
    problems = list(deepspeed_problems(path, spec))
    if problems:
        raise DeepSpeedFileError("\n".join(problems))
    sections = read_deepspeed_file(path)
    share = train.global_batch * clip // (world * train.accumulation)
    split = f"{global_batch(spec)} on {world} ranks with train.accumulation {train.accumulation}"
    for problem in contradiction(sections, BY_RANKS, share, split):
        raise DeepSpeedFileError(f"{path}: {problem}")
    # A copy: the file's own values stay as they were read.
    zero = dict(sections["zero_optimization"])
    if zero["stage"] == 3:
        # It replaces torch's linear layer for the whole process.
        zero["memory_efficient_linear"] = False
    for section in ("offload_optimizer", "offload_param"):
        if on_cpu and section in zero:
            zero[section] = {**zero[section], "pin_memory": False}
    values = {key: value for key, (value, _) in determined(spec).items()}
    return {**sections, **values, BY_RANKS: share, "zero_optimization": zero}
