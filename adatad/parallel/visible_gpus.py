"""Signs that this process is meant to have a GPU, read before torch is asked.

Imports no torch: the doctor asks here, also where torch doesn't start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DEVICES = Path("/dev")
# CUDA itself stops at the first device that it doesn't know, and -1 is one.
HIDE_ALL = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES, the last one Slurm's, that show no GPU; so does a list that begins with one."""

BF16_CAPABILITY = (8, 0)
"""The first compute capability whose GPUs compute in bf16."""


def hides_all(visible: str | None) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES says that no GPU is wanted. visible: its value, None if it isn't set."""
    return visible is not None and visible.split(",")[0].strip() in HIDE_ALL


def asks_for_gpus(environment: Mapping[str, str]) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES names GPUs, by the user or a job system.

    DeepSpeed's launcher, which is known by CROSS_SIZE, numbers the ranks in it on machines without GPUs too.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    # A value alone is no proof of a GPU: that launcher sets one on machines without any.
    return visible is not None and not hides_all(visible) and "CROSS_SIZE" not in environment


def names_mig(visible: str | None) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES names parts of a GPU, of which CUDA shows a process one, however many are
    listed."""
    return visible is not None and visible.strip().startswith("MIG-")


def device_nodes() -> list[str]:
    """Return the GPUs that NVIDIA's driver has, or that a container was given: /dev/nvidia0 and so on."""
    return sorted(str(path) for path in DEVICES.glob("nvidia[0-9]*"))
