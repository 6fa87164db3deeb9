"""Say what is in a file of trained weights: classes, backbone, window, frame rate, mAP, thresholds, licence.

adatad model tia.safetensors
adatad model runs/demo/tia/id0 --json

Takes a file of adatad export, a run (its best checkpoint, or the last: train.select), a checkpoint, or a checkpoint of
OpenTAD.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from adatad.cli.command import path_arg

MAX_LISTED = 12
"""Classes that a line names with their thresholds; --json has all."""
FIGURES = (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
"""What a threshold gives, and its key."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad model`."""
    parser.add_argument("file", type=path_arg, metavar="FILE", help="model file, run, checkpoint, or OpenTAD's .pth")
    parser.add_argument("--json", action="store_true", help="print everything that is known as JSON")
    parser.set_defaults(action=model)


def model(args: argparse.Namespace) -> int:
    """Run `adatad model`; returns its exit code."""
    from adatad.detect.model_summary import describe

    summary, notes = describe(args.file)
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    if args.json:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return 0
    for name, text in lines(summary):
        print(f"{name:12} {text}")
    return 0


def lines(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known of a model, by a heading, for a terminal. summary: of
    `adatad.detect.model_summary.describe`."""
    from adatad.files import shown
    from adatad.training.run_directory import size

    yield "file", f"{shown(summary['file'])}, {size(summary['size_bytes'])}"
    yield "kind", ", ".join(filter(None, (summary["kind"], summary["dtype"])))
    if summary["experiment"]:
        yield "experiment", shown(summary["experiment"])
    yield "classes", _classes(summary)
    if summary["classifier"]:
        yield "labels", f"by the external classifier {shown(summary['classifier'])}, which isn't in the file"
    # Of weights without a spec only what their names and shapes tell is known.
    if summary["backbone"]:
        yield "backbone", _backbone(summary)
    if summary["window"]:
        yield "window", _window(summary)
        yield "frame rate", _frame_rate(summary)
        yield "frame size", f"{summary['size_pixels']} x {summary['size_pixels']} pixels"
    yield "mAP", _scores(summary["scores"])
    yield from _thresholds(summary)
    yield "weights", _origin(summary)
    yield "licence", f"{shown(summary['licence'])}, of the backbone's weights"
    if summary["data_licence"]:
        yield "data", f"{shown(summary['data_licence'])}, licence of what it was trained on"
    for name, heading in (("fingerprint", "fingerprint"), ("frozen_fingerprint", "frozen part")):
        if summary[name]:
            yield heading, summary[name]
    if summary["adatad_version"]:
        yield "written by", f"adatad {shown(summary['adatad_version'])}, format version {summary['format_version']}"


def _classes(summary: dict[str, Any]) -> str:
    from adatad.training.model_facts import list_names

    if summary["classes"] is None:
        count = len(summary["outputs"]) if summary["outputs"] else "an unknown number"
        return f"{count}, without names; a spec has them"
    agnostic = "" if summary["outputs"] == summary["classes"] else "; the model doesn't tell them apart"
    return f"{len(summary['classes'])}: {list_names(summary['classes'])}{agnostic}"


def _backbone(summary: dict[str, Any]) -> str:
    backbone, mode = summary["backbone"], summary["mode"]
    if mode == "features":
        return f"none; the detector takes features of {backbone['width']} channels"
    parameters = ""
    if summary["parameters"]:
        parameters = (
            f"; {summary['backbone_parameters'] / 1e6:.1f} of {summary['parameters'] / 1e6:.1f} million parameters"
        )
    return (
        f"{backbone['preset'] or 'of its own size'} (width {backbone['width']}, {backbone['depth']} blocks), mode "
        f"{mode or 'frozen or full'}{parameters}"
    )


def _window(summary: dict[str, Any]) -> str:
    window = summary["window"]
    if window["frames"] is None:
        return f"the whole video, as {window['positions']} positions ({window['decoded_frames']} frames are decoded)"
    seconds = f"{window['seconds']:.1f} s, " if window["seconds"] else ""
    return (
        f"{seconds}{window['frames']} frames, {window['positions']} positions ({window['decoded_frames']} frames are "
        f"decoded); the next one repeats {100 * window['overlap']:.0f} %"
    )


def _frame_rate(summary: dict[str, Any]) -> str:
    rule, usual = summary["frame_rate"], summary["training_fps"]
    by = "frames are counted" if rule["time"] == "count" else "by presentation time"
    if rule["fps"]:
        return f"{rule['fps']:g} a second, {by}"
    return f"each video's own{f' (in training usually {usual:.4g} a second)' if usual else ''}, {by}"


def _scores(scores: dict[str, Any] | None) -> str:
    if scores is None:
        return "unknown: nothing was measured"
    by_tiou = ", ".join(f"{tiou}: {100 * value:.2f}" for tiou, value in scores["by_tiou"].items())
    return f"{100 * scores['average_mAP']:.2f} % on average over tIoU ({by_tiou})"


def _thresholds(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from adatad.files import listed, shown

    stored = summary["thresholds"]
    if stored is None:
        # A run has none before it is exported: nothing to say.
        if summary["kind"] == "model file":
            yield "thresholds", f"none: {shown(summary['thresholds_from'])}"
        return
    overall = stored["overall"]
    figures = ", ".join(f"{name} {100 * overall[key]:.1f} %" for name, key in FIGURES)
    yield (
        "thresholds",
        f"best F1 at tIoU {stored['tiou']:g}, over all classes {overall['threshold']:.3f} ({figures})",
    )
    own = [f"{name} {one['threshold']:.3f}" for name, one in stored["by_class"].items()]
    yield "  by class", listed(own, MAX_LISTED)
    if stored["from_overall"]:
        yield "", f"the one over all for want of their own: {listed(stored['from_overall'], MAX_LISTED)}"
    yield "  chosen on", shown(summary["thresholds_from"])


def _origin(summary: dict[str, Any]) -> str:
    from adatad.files import shown

    chosen = {"best": "the run's best checkpoint", "last": "the run's last checkpoint", "opentad": "OpenTAD's"}
    parts = [
        summary["weights"],
        chosen.get(summary["chosen"]),
        summary["checkpoint"],
        None if summary["epoch"] is None else f"epoch {summary['epoch']}",
        None if summary["step"] is None else f"step {summary['step']}",
    ]
    return shown(", ".join(part for part in parts if part))
