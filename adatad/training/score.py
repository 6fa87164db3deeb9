"""Score trained weights on the validation videos, as `adatad test` does."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from adatad.convert.opentad_checkpoint import load_opentad
from adatad.convert.weight_file import is_own_safetensors
from adatad.data.dataset import SkippedVideos, check_times, check_videos
from adatad.data.time_check import TimeLog
from adatad.errors import UserError
from adatad.files import check_output
from adatad.parallel.processes import start_processes
from adatad.spec import Spec
from adatad.training.checkpoint import fingerprint, read_checkpoint
from adatad.training.choice import resolve_choices
from adatad.training.determinism import run_arithmetic
from adatad.training.export import load_exported, read_trained_file
from adatad.training.loaders import validation_loader
from adatad.training.model_facts import match_for_test
from adatad.training.resolve import annotations_for, check_mesh
from adatad.training.resume import check_same_model
from adatad.training.setup import build_initial_model, own_clip_group, prepare_model, shapes_of
from adatad.training.streamed_validation import check_stream, detect_streams
from adatad.training.validation import (
    Detections,
    check_classifier,
    detect,
    score_summary,
    warnings_of,
    write_detections,
)


def score_checkpoint(
    spec: Spec,
    checkpoint: Path,
    detections: Path | None = None,
    shuffle_clips: bool = False,
    averages: bool = True,
) -> dict[str, Any]:
    """Score a checkpoint as `detect_and_score` does, and write the detections to a file if one is named."""
    if detections:
        check_output(detections)
    scored = detect_and_score(spec, checkpoint, shuffle_clips, averages)
    if detections and scored.is_main:
        write_detections(detections, scored.detections)
    return scored.result


class Scored(NamedTuple):
    """A score and the detections of all evaluated videos, on every rank. is_main: this rank writes files."""

    result: dict[str, Any]
    detections: Detections
    is_main: bool


def detect_and_score(
    spec: Spec, checkpoint: Path, shuffle_clips: bool = False, averages: bool = True, only_scores: bool = False
) -> Scored:
    """Score a checkpoint, ours or OpenTAD's, or a file that `adatad export` wrote, on the validation videos. Its
    outputs have the names that it says; what isn't as it was in training is said on stderr.

    shuffle_clips: frames permuted at random inside every clip. averages: of a checkpoint's parameters, where it has
    them, instead of those of the last step. only_scores: nobody takes the detections. Raises UserError before anything
    is decoded, also if nothing would come of it.
    """
    if shuffle_clips and spec.evaluate.stream:
        raise UserError("--shuffle-clips needs windows: leave evaluate.stream false")
    with start_processes(spec.train.hang_seconds) as processes, run_arithmetic(spec.train, processes.device):
        # Outputs have the names of the weights, and everything that follows is in these.
        facts = read_trained_file(checkpoint).facts
        spec, lines = match_for_test(spec, facts, checkpoint)
        annotations = annotations_for(spec, training=False)
        say = partial(print, file=sys.stderr) if processes.is_main else lambda line: None
        for line in lines:
            say(f"note: {line}")
        for line in annotations.warnings:
            say(f"warning: {line}")
        # Before the model is built: missing videos are found in a second, the rest takes minutes.
        check_videos(spec.data, annotations.validation)
        for line in processes.on_main(lambda: check_times(spec.data, (), annotations.validation)):
            say(line)
        for line in check_classifier(spec, annotations):
            say(f"warning: {line}")
        if only_scores and not any(len(video.labels) for video in annotations.validation):
            raise UserError(
                f"{spec.data.annotations}: the evaluated videos have no annotated instance, so that nothing can be "
                "scored; --detections FILE writes what is found in them"
            )
        if processes.world == 1:
            # One process scores whole windows, however many ranks shared them in training.
            spec = spec.model_copy(update={"parallel": spec.parallel.model_copy(update={"clip": 1})})
        check_mesh(spec, processes.world)
        run, _ = next(resolve_choices(spec, processes, annotations, facts.outputs if facts else None))
        check_stream(run.spec, learns=False)
        # Annotations that can't be scored must not come to light after the detection.
        score_summary({}, run)
        model = build_initial_model(run.spec, run.num_classes)[0]
        # Loaded within `prepare_model`, which knows what is trained, before the memory policy casts or moves weights.
        load = partial(load_for_scoring, model, checkpoint=checkpoint, averages=averages)
        prepare_model(run, processes, model, learns=False, load=load, group=own_clip_group(run, processes))
        skipped = SkippedVideos(spec.data.skip_limit, lambda line: print(line, file=sys.stderr))
        shared = run, processes, skipped
        if spec.evaluate.stream:
            found = detect_streams(model, *shared, times=TimeLog(say))
        else:
            found = detect(model, validation_loader(run, shuffle_clips), *shared, times=TimeLog(say))
        for line in warnings_of(found, run):
            say(f"warning: {line}")
        return Scored(score_summary(found, run), found, processes.is_main)


def load_for_scoring(model: nn.Module, trained: list[str], checkpoint: Path, averages: bool = True) -> None:
    """Copy a checkpoint's averages or last parameters, or an exported file's tensors, into a model with its frozen
    weights; or all of a checkpoint of OpenTAD's."""
    if checkpoint.is_file() and not is_own_safetensors(checkpoint):
        for line in load_opentad(model, checkpoint, averages).lines():
            print(line, file=sys.stderr)
        return
    if checkpoint.is_file():
        load_exported(model, trained, checkpoint)
        return
    # A checkpoint of a run: trained tensors, whose frozen companions the model has from its own weights file.
    saved = read_checkpoint(checkpoint)
    check_same_model(shapes_of(model), trained, fingerprint(model), saved, checkpoint)
    model.load_state_dict(saved.ema if averages else saved.parameters, strict=False)
