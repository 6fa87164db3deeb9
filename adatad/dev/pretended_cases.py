"""Cases for the pretended GPU: every mode, policy and placement in a training step, an evaluation, whole runs.

python -m adatad.dev.pretended_cases [CASE ...] prints what was counted, by place; without a name, of all cases.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from adatad.dev.pretended_gpu import pretended_gpu
from adatad.dev.pretended_runs import ROOT, run_all, run_augmentation, run_evaluation, run_step
from adatad.dev.pretended_streams import Counts
from adatad.spec import Spec, load

CONFIG = ROOT / "configs/thumos/s_768x160_adapter.yaml"
TINY = (
    "data.window.size_grid=64 data.size_pixels=32 model.detector.width=32 model.detector.max_length=64 "
    "model.detector.stem_blocks=1 model.detector.branch_blocks=2 "
    "model.detector.regression_ranges=[[0,4],[4,8],[8,10000]] "
    "model.backbone.depth=4 model.backbone.width=96 model.backbone.heads=2 train.global_batch=2"
)
"""Windows of four clips, two a step. As few numbers as possible: what is counted doesn't depend on them."""
TILE = "memory.policy=tile memory.tile_clips=1 memory.segment_blocks=2"
HOST = "memory.saved_inputs=host memory.halos=host memory.frames=host"
STATE = "memory.optimizer_state=host memory.moving_average=host"
EVERYTHING = f"{TILE} {HOST} {STATE} memory.frozen_weights=stream"
FULL = "model.backbone.mode=full optimizer.backbone.lr=1e-4"
SIDE = "model.backbone.mode=side"
RANGES = "'memory.policy=[{first: 0, last: 1, policy: block}, {first: 2, last: 3, policy: tile}]' memory.tile_clips=1"

MAX_WAITS = 2
"""Host waits of a training step on one rank, under any policy and placement."""
MAX_WAITS_OF_RANKS = 3
"""Host waits of a step on each of several ranks."""
MAX_WAITS_OF_A_WINDOW = 1
"""Host waits for the detections of one window: the next one is queued before they are looked at."""


@dataclass(frozen=True)
class PretendedCase:
    """One thing to run. overrides: of TINY, or of the demo for a run; ranks: of which rank 0 is counted."""

    name: str
    overrides: str = ""
    kind: Literal["step", "augmentation", "evaluation", "run"] = "step"
    ranks: int = 1

    def spec(self) -> Spec:
        """Return the spec of a case that isn't a run."""
        return load(CONFIG, [*TINY.split(), *shlex.split(self.overrides)], check_files=False)

    @property
    def max_waits(self) -> int | None:
        """Host waits that the case may have; None for a run, which may wait between steps."""
        match self.kind:
            case "step":
                return MAX_WAITS if self.ranks == 1 else MAX_WAITS_OF_RANKS
            case "augmentation":
                return 0
            case "evaluation":
                return MAX_WAITS_OF_A_WINDOW
            case _:
                return None

    def faults(self, counts: Counts) -> dict[str, Counter]:
        """Return what the case may have none of, beside waits, by name: all but launches; evaluations and runs may pin
        memory."""
        names = {"unpinned", "races", "freed"}
        if self.kind in ("step", "augmentation"):
            names.add("pinnings")
        return {name: counter for name, counter in vars(counts).items() if name in names}


CASES = (
    PretendedCase("none", "memory.policy=none"),
    PretendedCase("selective", "memory.policy=selective"),
    PretendedCase("block", "memory.policy=block"),
    PretendedCase("tile", TILE),
    PretendedCase("tile, rebuild", f"{TILE} memory.recompute=twice"),
    PretendedCase("tile, compiled", f"{TILE} memory.compile=true"),
    PretendedCase("full, tile, compiled", f"{FULL} {TILE} memory.compile=true"),
    PretendedCase("tile, by blocks", f"{TILE} memory.order=blocks"),
    PretendedCase("ranges", RANGES),
    PretendedCase("tile, rows on the host", f"{TILE} memory.saved_inputs=host"),
    PretendedCase("tile, halos on the host", f"{TILE} memory.halos=host"),
    PretendedCase("tile, frames on the host", f"{TILE} memory.frames=host"),
    PretendedCase("tile, rows, halos, frames on the host", f"{TILE} {HOST}"),
    PretendedCase("tile, frozen weights streamed", f"{TILE} memory.frozen_weights=stream"),
    PretendedCase("block, optimizer and average on the host", f"memory.policy=block {STATE}"),
    PretendedCase("tile, everything on the host", EVERYTHING),
    PretendedCase("tile, everything on the host, rebuild", f"{EVERYTHING} memory.recompute=twice"),
    PretendedCase("tile, fp16", f"{TILE} train.precision=fp16 memory.saved_inputs=host"),
    PretendedCase("none, fp32", "memory.policy=none train.precision=fp32"),
    PretendedCase("tile, accumulation", f"{TILE} train.accumulation=2"),
    PretendedCase("tile, long window", f"{TILE} data.window.size_grid=128 model.detector.max_length=128"),
    PretendedCase("side", f"{SIDE} memory.policy=none"),
    PretendedCase("side, block", f"{SIDE} memory.policy=block"),
    PretendedCase(
        "side, tile", f"{SIDE} memory.policy=tile memory.tile_clips=1 memory.frames=host memory.frozen_weights=stream"
    ),
    PretendedCase("full", f"{FULL} memory.policy=block"),
    PretendedCase("full, tile", f"{FULL} {TILE}"),
    PretendedCase("full, tile, rows, halos, frames on the host", f"{FULL} {TILE} {HOST}"),
    PretendedCase("frozen", "model.backbone.mode=frozen optimizer.backbone=null memory.policy=none"),
    PretendedCase("frozen, tile", f"model.backbone.mode=frozen optimizer.backbone=null {TILE}"),
    PretendedCase("plain, tile", f"model.backbone.mode=plain {TILE}"),
    PretendedCase("none, two ranks", "memory.policy=none", ranks=2),
    PretendedCase("tile, two ranks", TILE, ranks=2),
    PretendedCase("block, fairscale, two ranks", "memory.policy=block parallel.engine=fairscale", ranks=2),
    PretendedCase("block, fsdp, two ranks", "memory.policy=block parallel.engine=fsdp", ranks=2),
    PretendedCase("tile, fsdp, two ranks", f"{TILE} parallel.engine=fsdp", ranks=2),
    PretendedCase("tile, two ranks share windows", f"{TILE} parallel.clip=2", ranks=2),
    PretendedCase("augmentation", kind="augmentation"),
    PretendedCase("evaluation", "memory.policy=none", kind="evaluation"),
    PretendedCase("evaluation, tile, frames on the host", f"{TILE} memory.frames=host", kind="evaluation"),
    PretendedCase("run", "memory.policy=none", kind="run"),
    PretendedCase("run, tile, everything on the host", EVERYTHING, kind="run"),
)


def case_of(name: str) -> PretendedCase:
    """Raises ValueError, which lists the names, for one that there isn't."""
    for case in CASES:
        if case.name == name:
            return case
    raise ValueError(f"no case {name!r}; there are {', '.join(repr(case.name) for case in CASES)}")


def run_case(case: PretendedCase) -> Counts:
    """Return what is counted of a case, of a step in its second one. Raises DeviceMismatchError."""
    with pretended_gpu() as gpu:
        match case.kind:
            case "step":
                run_step(case.spec(), gpu, case.ranks)
            case "augmentation":
                run_augmentation(case.spec(), gpu)
            case "evaluation":
                run_evaluation(case.spec(), gpu)
            case "run":
                run_all(shlex.split(case.overrides), gpu)
        return gpu.counts


def main() -> None:
    for case in [case_of(name) for name in sys.argv[1:]] or CASES:
        started = time.process_time()
        counts = run_case(case)
        totals = ", ".join(f"{counter.total()} {name}" for name, counter in vars(counts).items())
        print(f"{case.name}: {totals} ({time.process_time() - started:.1f} s)", flush=True)
        for name, counter in vars(counts).items():
            if name != "launches":
                for what, count in counter.most_common():
                    print(f"  {name} {count} {what}")


if __name__ == "__main__":
    main()
