"""GPUs by name: what the planner has to know of a card that isn't here.

Figures are of the makers' data sheets, for dense products of 16-bit numbers that are summed in fp32. PCIe: what copies
of pinned memory reach, about 0.8 of a link of 16 lanes.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Card(NamedTuple):
    """memory_gib: as sold; tflops: of large 16-bit products; pcie_gbps: GB/s in each direction; launch_seconds: of the
    host, for one kernel; fp32_tflops: of products in fp32 without TF32, None where it isn't known."""

    title: str
    memory_gib: float
    tflops: float
    pcie_gbps: float
    launch_seconds: float = 5e-6
    fp32_tflops: float | None = None


CARDS = {
    "rtx3090": Card("RTX 3090", 24, 71, 25, fp32_tflops=35.6),
    "rtx4090": Card("RTX 4090", 24, 165, 25, fp32_tflops=82.6),
    "rtx5090": Card("RTX 5090", 32, 209, 50, fp32_tflops=104.8),
    "a5000": Card("RTX A5000", 24, 111, 25, fp32_tflops=27.8),
    "a6000": Card("RTX A6000", 48, 155, 25, fp32_tflops=38.7),
    "l4": Card("L4", 24, 121, 25, fp32_tflops=30.3),
    "l40s": Card("L40S", 48, 362, 25, fp32_tflops=91.6),
    "v100-32gb": Card("V100 32 GB", 32, 125, 12, fp32_tflops=15.7),
    "a100-40gb": Card("A100 40 GB", 40, 312, 25, fp32_tflops=19.5),
    "a100-80gb": Card("A100 80 GB", 80, 312, 25, fp32_tflops=19.5),
    "h100": Card("H100", 80, 989, 50, fp32_tflops=67),
    "h200": Card("H200", 141, 989, 50, fp32_tflops=67),
}
UNKNOWN = Card("GPU", 0, 60, 12)
"""Rates that are assumed where neither a card is named nor one is here."""

# The names that drivers give, whole: a laptop's chip or a PCIe variant of the same number has other rates.
_DRIVER_NAMES = {
    r"(geforce )?rtx 3090": "rtx3090", r"(geforce )?rtx 4090": "rtx4090", r"(geforce )?rtx 5090": "rtx5090",
    r"rtx a5000": "a5000", r"rtx a6000": "a6000", r"l4": "l4", r"l40s": "l40s",
    r"(tesla )?v100-sxm[23](-\d+gb)?": "v100-32gb", r"a100(-sxm4|-pcie)?(-\d+gb)?|a100 80gb pcie": "a100-40gb",
    r"h100( 80gb hbm3| sxm5?)?": "h100", r"h200( sxm)?": "h200",
}  # fmt: skip


def card_of_driver_name(name: str) -> Card | None:
    """Return the card whose rates a GPU has that its driver calls `name` ("NVIDIA A100-SXM4-80GB"); None if none is
    known to have the same. Its size of memory may be another."""
    plain = name.lower().removeprefix("nvidia ").strip()
    return next((CARDS[card] for pattern, card in _DRIVER_NAMES.items() if re.fullmatch(pattern, plain)), None)
