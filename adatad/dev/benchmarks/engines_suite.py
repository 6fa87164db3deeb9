"""Memory of a rank under every engine, by its partition rule and the count of one process's step.

VideoMAEv2-g, 1,536 frames of 224 pixels, one window a rank, under the wave (`memory.policy: tile`).
"""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from adatad.dev.benchmarks.results import Result
from adatad.memory.meter import Peak
from adatad.models.detector import build_model, trained_names
from adatad.parallel.layout import RankBytes, gathered_bytes, held_bytes
from adatad.spec import Spec, load
from adatad.training.metered import META, step_memory

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp", "fairscale")
RANKS = (1, 2, 8, 64)
GIB = 2**30
SEGMENT = 5
TILE = f"memory.policy=tile memory.tile_clips=1 memory.segment_blocks={SEGMENT} memory.order=blocks"
FULL = "model.backbone.mode=full optimizer.backbone.lr=1e-5 optimizer.backbone.custom=[]"
WEIGHTS = ("frozen weights", "trained weights", "optimizer state", "moving average", "gradients")
"""Labels of the count whose place a partition rule takes."""


class ModelBytes(NamedTuple):
    """Bytes of a model: frozen weights in bf16 (norms too, as under the wave), trained ones in fp32; of both, those of
    the largest block, and of what lies outside of blocks. full: whether everything is trained."""

    frozen: int
    trained: int
    trained_in_blocks: int
    block: int
    root: int
    full: bool


def run() -> list[Result]:
    """Two minutes. Prints a table each for adapters and full fine-tuning; returns what has a bar."""
    results = []
    for title, overrides in (("adapters in 20 blocks", ""), ("full fine-tuning", FULL)):
        spec = load("configs/thumos/g_1536x224_adapter.yaml", f"{TILE} {overrides}".split(), check_files=False)
        sizes, peak = sizes_of(spec), step_memory(spec, windows=1)
        show(title, sizes, peak)
        results += bars(title, sizes, peak)
    return results


def sizes_of(spec: Spec) -> ModelBytes:
    with META:
        model = build_model(spec.model, num_classes=20)
    trained_ones = set(trained_names(model, spec.model.backbone, spec.model.freeze))
    frozen, trained, learning, blocks, root = 0, 0, 0, {}, 0
    for name, parameter in model.named_parameters():
        learns = name in trained_ones
        size = parameter.numel() * (4 if learns else 2)
        frozen, trained = (frozen, trained + size) if learns else (frozen + size, trained)
        if name.startswith("backbone.blocks."):
            blocks[name.split(".")[2]] = blocks.get(name.split(".")[2], 0) + size
            learning += size if learns else 0
        else:
            root += size
    return ModelBytes(frozen, trained, learning, max(blocks.values()), root, spec.model.backbone.mode == "full")


def rank_bytes(engine: str, ranks: int, sizes: ModelBytes, peak: Peak) -> float:
    """The larger of two moments: backward, where what a step works on stands beside what is held and gathered; and the
    update, where all gradients do."""
    held = held_bytes(engine, ranks, sizes.frozen, sizes.trained)
    working = peak.bytes - sum(peak.by_label.get(name, 0) for name in WEIGHTS)
    in_backward = working + peak.by_label.get("gradients", 0) + gathered(engine, ranks, sizes)
    return sum(held) - held.gradients + max(in_backward, held.gradients)


def gathered(engine: str, ranks: int, sizes: ModelBytes) -> float:
    """What is held of others in backward. Of sharded weights two segments of blocks (one in work, one on its way), the
    root, and the trained weights that the wave reads whole, unless torch's shards reach it block by block."""
    whole = 0 if engine == "fsdp" and sizes.full else sizes.trained_in_blocks
    return gathered_bytes(engine, ranks, sizes.trained, 2 * SEGMENT * sizes.block + sizes.root + whole)


def show(title: str, sizes: ModelBytes, peak: Peak) -> None:
    table = Table("engine", *(f"{ranks} ranks" for ranks in RANKS), title=f"GiB a rank, g 1536 x 224, {title}",
                  title_justify="left")  # fmt: skip
    for engine in ENGINES:
        row = [f"{rank_bytes(engine, ranks, sizes, peak) / GIB:.2f}" for ranks in RANKS]
        table.add_row(engine, *row)
    Console(width=100).print(table)


def bars(title: str, sizes: ModelBytes, peak: Peak) -> list[Result]:
    held: dict[str, RankBytes] = {e: held_bytes(e, 64, sizes.frozen, sizes.trained) for e in ("zero3", "fsdp")}
    if title.startswith("full"):
        # Of 24 GB a tenth and 1 GiB stay free.
        room = 0.9 * 24e9 / GIB - 1
        rank = rank_bytes("fsdp", 8, sizes, peak) / GIB
        return [Result("full fine-tuning, fsdp, 8 ranks: GiB a rank", rank, room)]
    return [Result(f"{e}, 64 ranks: GiB of frozen weights kept", h.frozen / GIB, 0.1) for e, h in held.items()]
