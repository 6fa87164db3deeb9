"""docs/model-zoo.md: every published row with its spec, its figures and its command, from the specs themselves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import torch

from adatad.memory.offload import GIB
from adatad.memory.planner import Machine, Planner
from adatad.report.last_and_best import WORDS
from adatad.spec import Spec, load
from adatad.spec.downloads import DATA_LICENCES, DATA_SETS
from adatad.spec.experiments import Experiment, all_experiments
from adatad.spec.published import NOT_KNOWN, PublishedFile, published
from adatad.spec.schema import MemorySpec

HEAD = """# Published rows

Made by `adatad dev model-zoo`; don't edit. One file is one row of AdaTAD's tables, with `compat: reference` and
the published figures in it; `tests/spec/test_experiments.py` holds each against every setting of the
reference. Average mAP is over the tIoUs of the data set's protocol (`evaluate.tious`). Rows without a figure were never
published with one.

**Last or best.** A figure of the best epoch was chosen on the very videos that it is of, and flatters: by up to 1.2
points here. `of` says which epoch a row's figures are of, as far as is known (`published_select`): the best, where the
released training log ends with a figure that is lower by more than a repeated test explains, or where the released
file is of an epoch before the last. `last epoch` is the average mAP with which that log ends (`published_last`), as the
paper on SV-TAD quotes it. `adatad reproduce` compares a figure of the best epoch with the best epoch of the training,
and all others with the last.

```bash
adatad reproduce thumos-s-768 --check                # what is missing, and where it is published
# needs data, and a GPU:
adatad reproduce thumos-s-768                        # train the row and compare; start it again to go on
torchrun --nproc-per-node 2 -m adatad reproduce thumos-s-768  # on two GPUs, as published
adatad reproduce thumos-s-768 --checkpoint CHECKPOINT # test a checkpoint instead, and compare
adatad train configs/thumos/s_768x160_adapter.yaml   # the same without the comparison
```

Each row's command is `adatad reproduce` with its name. Words of the name will do (`thumos-s-768`; without a
mode, adapters in the blocks are meant), and so does the name in OpenTAD, which the tables give without the leading
`e2e_`. A result counts as reproduced if its average mAP is at most 0.5 from the published one. Names say the ViT's size
(s, b, l, h, g), frames of a window x pixels, what is trained, and what else sets a row apart.

Planned memory is what a training step on one window takes of each GPU's memory in bf16 under DDP, in GiB, by formulas,
with `memory.policy` none, block and tile ([memory.md](memory.md)); nothing of it was measured on these rows.
"""
TITLES = {
    "activitynet": "ActivityNet-1.3", "charades": "Charades", "ego4d": "Ego4D-MQ", "epic": "EPIC-KITCHENS-100",
    "multithumos": "MultiTHUMOS", "thumos": "THUMOS-14",
}  # fmt: skip


POLICIES = ("none", "block", "tile")


def planned_memory(spec: Spec) -> str:
    """Return the GiB that a rank with one window takes under each of POLICIES."""
    classes = 1 if spec.model.detector.class_agnostic else spec.data.class_count
    planner = Planner(spec, Machine(0.0, ranks=spec.train.global_batch), torch.bfloat16, classes)
    plans = [planner.plan(planner.resolved(MemorySpec(policy=policy)), "ddp") for policy in POLICIES]
    return " / ".join(f"{plan.bytes / GIB:.1f}" for plan in plans)


def model_zoo(planned: Callable[[Spec], str] = planned_memory) -> str:
    """Return the whole page. planned: what the column of planned memory says of a spec (a second or more for each
    row)."""
    parts = [HEAD]
    for folder, rows in groupby(all_experiments(), key=lambda row: row.name.split("/")[0]):
        # From the smallest backbone to the largest, which isn't the order of their letters.
        by_size = sorted(rows, key=lambda row: ("sblhg".index(row.name.split("/")[1][0]), row.name))
        specs = [(row, load(row.path, check_files=False)) for row in by_size]
        parts.append(_table(TITLES[folder], specs, planned))
    parts.append(
        "## Trained models\n\nGoogle Drive files of OpenTAD's authors, each with its training log. "
        "`adatad weights fetch NAME` fetches one; `NAME/log`\nis its log. The three g rows of 224 pixels with a "
        "classifier are one model. Licences are those of the backbone inside.\n\n" + _files("model", "log")
    )
    parts.append(
        "## Pretrained weights\n\n`adatad weights fetch NAME` fetches one to where the specs look for it "
        "([weights.md](weights.md)).\n\n" + _files("backbone")
    )
    parts.append(
        "## Data sets\n\n| folder | published | licence |\n| --- | --- | --- |\n"
        + "".join(f"| `data/{name}` | {place} | {DATA_LICENCES[name]} |\n" for name, place in DATA_SETS.items())
    )
    return "\n".join(parts)


def _files(*kinds: str) -> str:
    rows = [entry for entry in published().values() if entry.kind in kinds]
    return "| name | published | licence |\n| --- | --- | --- |\n" + "".join(map(_file, rows))


def _file(entry: PublishedFile) -> str:
    place = entry.page()
    text = f"[{entry.drive or entry.hub or entry.name}]({place})" if place else f"made by `{entry.fetch()}`"
    return f"| `{entry.name}` | {text}{f'; {entry.note}' if entry.note else ''} | {entry.licence or NOT_KNOWN} |\n"


def _table(title: str, rows: list[tuple[Experiment, Spec]], planned: Callable[[Spec], str]) -> str:
    tious = sorted({name for _, spec in rows for name in spec.published or {} if name != "average_mAP"}, key=float)
    head = [
        "row",
        "in OpenTAD",
        "window",
        "trained",
        "rate",
        "epochs",
        "planned memory",
        "average mAP",
        "of",
        "last epoch",
        *tious,
    ]
    lines = [head, ["---"] * len(head), *(_line(row, spec, tious, planned(spec)) for row, spec in rows)]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _line(row: Experiment, spec: Spec, tious: list[str], memory: str) -> list[str]:
    window, published = spec.data.window, spec.published or {}
    average, *figures = [f"{published[name]:.2f}" if name in published else "" for name in ("average_mAP", *tious)]
    last = (spec.published_last or {}).get("average_mAP")
    return [
        f"[{row.name}](../{row.shown})",
        row.reference.removeprefix(row.reference.split("/")[0] + "/").removeprefix("e2e_"),
        f"{window.size_grid}x{window.frames_per_position}, {spec.data.size_pixels} px",
        _trained_parts(spec),
        _rate(spec),
        f"{spec.schedule.end_epoch or spec.schedule.epochs} of {spec.schedule.epochs}",
        memory,
        average,
        WORDS[spec.published_select] if published else "",
        "" if last is None else f"{last:.2f}",
        *figures,
    ]


def _trained_parts(spec: Spec) -> str:
    backbone = spec.model.backbone
    blocks = backbone.adapter.blocks
    where = "all" if blocks == "all" else f"{blocks[0]}-{blocks[-1]}"
    match backbone.mode:
        case "frozen":
            return "detector"
        case "full":
            return "everything"
        case "side":
            return f"adapters beside blocks {where}"
        case _:
            return "adapters in all blocks" if blocks == "all" else f"adapters in blocks {where}"


def _rate(spec: Spec) -> str:
    """Return the detector's rate, and that of what is trained in the backbone."""
    backbone = spec.optimizer.backbone
    rates = [spec.optimizer.lr]
    if backbone is not None:
        rates += [group.lr for group in backbone.custom] or [backbone.lr]
    return ", ".join(f"{rate:g}" for rate in rates)
