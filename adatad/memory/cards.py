"""GPUs by name: what the planner has to know of a card that isn't here.

Figures are of the makers' data sheets, for dense products of 16-bit numbers that are summed in fp32. PCIe: what copies
of pinned memory reach, about 0.8 of a link of 16 lanes.
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """memory_gib: as sold; tflops: of large 16-bit products; pcie_gbps: GB/s in each direction; launch_seconds: of the
    host, for one kernel."""

    title: str
    memory_gib: float
    tflops: float
    pcie_gbps: float
    launch_seconds: float = 5e-6


CARDS = {
    "rtx3090": Card("RTX 3090", 24, 71, 25),
    "rtx4090": Card("RTX 4090", 24, 165, 25),
    "rtx5090": Card("RTX 5090", 32, 209, 50),
    "a5000": Card("RTX A5000", 24, 111, 25),
    "a6000": Card("RTX A6000", 48, 155, 25),
    "l4": Card("L4", 24, 121, 25),
    "l40s": Card("L40S", 48, 362, 25),
    "v100-32gb": Card("V100 32 GB", 32, 125, 12),
    "a100-40gb": Card("A100 40 GB", 40, 312, 25),
    "a100-80gb": Card("A100 80 GB", 80, 312, 25),
    "h100": Card("H100", 80, 989, 50),
    "h200": Card("H200", 141, 989, 50),
}
UNKNOWN = Card("GPU", 0, 60, 12)
"""Rates that are assumed where neither a card is named nor one is here."""
