"""Memory of a rank under every engine, from its partition rule and the count of one process's step.

VideoMAEv2-g, 1,536 frames of 224 pixels, one window a rank, under the wave (`memory.policy: tile`).
"""

from __future__ import annotations

from typing import NamedTuple

from adatad.dev.benchmarks.tables import Result, Sheet, show_sheet
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
"""Categories of the count that a partition rule replaces."""


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
    """Print a table each for adapters and full fine-tuning; return the results that have a bar. Two minutes."""
    results = []
    for title, overrides in (("adapters in 20 blocks", ""), ("full fine-tuning", FULL)):
        spec = load("configs/thumos/g_1536x224_adapter.yaml", f"{TILE} {overrides}".split(), check_files=False)
        sizes, peak = sizes_of(spec), step_memory(spec, windows=1)
        show(title, sizes, peak)
        results += bars(title, sizes, peak)
    return results


def sizes_of(spec: Spec) -> ModelBytes:
    """Return the bytes of a spec's model, built on the meta device."""
    # No values: g with all its weights would take 4 GB.
    with META:
        model = build_model(spec.model, num_classes=20)
    trained_ones = set(trained_names(model, spec.model.backbone, spec.model.freeze))
    frozen, trained, learning, blocks, root = 0, 0, 0, {}, 0
    for name, parameter in model.named_parameters():
        learns = name in trained_ones
        size = parameter.numel() * (4 if learns else 2)  # fp32, and bf16 for frozen ones
        frozen, trained = (frozen, trained + size) if learns else (frozen + size, trained)
        if name.startswith("backbone.blocks."):
            # "backbone.blocks.7.attn...": by the block's number.
            blocks[name.split(".")[2]] = blocks.get(name.split(".")[2], 0) + size
            learning += size if learns else 0
        else:
            root += size
    return ModelBytes(frozen, trained, learning, max(blocks.values()), root, spec.model.backbone.mode == "full")


def rank_bytes(engine: str, ranks: int, sizes: ModelBytes, peak: Peak) -> float:
    """Return the peak of a rank, in backward or in the update: in backward, activations stand beside what is held and
    gathered; in the update, all gradients do."""
    held = held_bytes(engine, ranks, sizes.frozen, sizes.trained)
    # Without what the count has of weights and states, which each engine partitions by its own rule.
    working = peak.bytes - sum(peak.by_label.get(name, 0) for name in WEIGHTS)
    in_backward = working + peak.by_label.get("gradients", 0) + gathered(engine, ranks, sizes)
    return sum(held) - held.gradients + max(in_backward, held.gradients)


def gathered(engine: str, ranks: int, sizes: ModelBytes) -> float:
    """Return the bytes gathered from other ranks in backward: of sharded weights two segments of blocks (one in use,
    one prefetched), the root, and the trained weights that the wave needs unsharded, unless FSDP gathers them by
    block."""
    unsharded = 0 if engine == "fsdp" and sizes.full else sizes.trained_in_blocks
    return gathered_bytes(engine, ranks, sizes.trained, 2 * SEGMENT * sizes.block + sizes.root + unsharded)


def show(title: str, sizes: ModelBytes, peak: Peak) -> None:
    """Print what each engine takes, by number of ranks."""
    rows = [(engine, *(f"{rank_bytes(engine, ranks, sizes, peak) / GIB:.2f}" for ranks in RANKS)) for engine in ENGINES]
    columns = "engine", *(f"{ranks} ranks" for ranks in RANKS)
    show_sheet(Sheet(f"GiB a rank, g 1536 x 224, {title}", columns, rows))


def bars(title: str, sizes: ModelBytes, peak: Peak) -> list[Result]:
    """Return the results that have a bar."""
    held: dict[str, RankBytes] = {e: held_bytes(e, 64, sizes.frozen, sizes.trained) for e in ("zero3", "fsdp")}
    if title.startswith("full"):
        # A tenth of 24 GB and 1 GiB are left to the allocator and the context.
        room = 0.9 * 24e9 / GIB - 1
        rank = rank_bytes("fsdp", 8, sizes, peak) / GIB
        return [Result("full fine-tuning, fsdp, 8 ranks: GiB a rank", rank, room)]
    return [Result(f"{e}, 64 ranks: GiB of frozen weights kept", h.frozen / GIB, 0.1) for e, h in held.items()]
