"""Compute a batch again that a training left, and say what in it isn't finite.

adatad replay runs/demo/tia/id0/bad_batches/step12_rank0.safetensors
adatad replay step12_rank0.safetensors --device cpu --set model.backbone.weights=weights/vit_s.pth

In fp32, in bf16, and in fp16 if that was the run's precision: loss, gradient norm, the largest number, and the first
module that goes bad. docs/reliability.md says when a step leaves its batch.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from adatad.cli.arguments import add_device_argument
from adatad.cli.command import path_arg
from adatad.files import shown

if TYPE_CHECKING:
    from adatad.training.replay import PassResult, Replayed


MAX_CHARACTERS = 100
"""Characters of a text in the file that are shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad replay`."""
    parser.add_argument("file", type=path_arg, metavar="FILE", help="file of a run's folder bad_batches")
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="settings over those of the file's spec, such as model.backbone.weights=FILE on another machine",
    )  # fmt: skip
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(action=replay)


def replay(args: argparse.Namespace) -> int:
    """Run `adatad replay`; returns its exit code."""
    from adatad.training.replay import replay as compute

    found = compute(args.file, args.overrides)
    if args.json:
        print(json.dumps(_as_json(found), indent=1, ensure_ascii=False))
    else:
        show(found)
    return 0


def show(found: Replayed) -> None:
    """Print the results on one screen."""
    from adatad.files import listed
    from adatad.training.replay_verdict import verdict

    facts = found.facts
    # Texts of the file are somebody else's, and may hold what a terminal obeys.
    loss, norm = shown(facts.loss, MAX_CHARACTERS), shown(facts.gradient_norm, MAX_CHARACTERS)
    engine = shown(facts.engine, MAX_CHARACTERS)
    print(
        f"step {facts.step}, rank {facts.rank} of {facts.ranks}, {engine}, {facts.precision}: loss {loss}, "
        f"gradient norm {norm} over all ranks"
    )
    print(f"videos here: {listed([window.video for part in facts.windows for window in part])}")
    for note in found.notes:
        print(f"note: {shown(note)}")
    for result in found.passes:
        print(
            f"{result.precision}: loss {result.loss:.4g}, gradient norm {result.gradient_norm:.4g}, largest number "
            f"{result.largest.value:.4g} out of {result.largest.name}; first that isn't finite: {_first_bad(result)}"
        )
    print(shown(verdict(found)))


def _first_bad(result: PassResult) -> str:
    if result.forward is not None:
        return f"output of {result.forward.name}"
    return "none" if result.backward is None else f"gradient of {result.backward.name}"


def _as_json(found: Replayed) -> dict[str, Any]:
    from adatad.training.replay_verdict import verdict

    passes = [
        {
            "precision": result.precision,
            # As text: JSON has no NaN.
            "loss": f"{result.loss:g}",
            "gradient_norm": f"{result.gradient_norm:g}",
            "largest": result.largest._asdict(),
            "forward": result.forward and result.forward._asdict(),
            "backward": result.backward and result.backward._asdict(),
            "window": result.window and result.window.model_dump(),
            "operator": result.operator,
        }
        for result in found.passes
    ]
    labels = [window.model_dump() for window in found.bad_labels]
    rest = {"bad_weights": found.bad_weights, "bad_labels": labels, "notes": found.notes, "verdict": verdict(found)}
    return {"batch": found.facts.model_dump(mode="json"), "passes": passes, **rest}
