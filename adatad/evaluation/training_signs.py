"""Signs of trouble in the metrics of a run: rates that are too high or too low, skipped steps, a training that ended
too early or went on too long, waiting for data.

A sign is given only where the evidence is strong: no sound run must be accused. The measure is the loss for each
positive point, since the losses in metrics.jsonl are divided by a running count of such points, which drifts for a
hundred steps. docs/decisions/signs-of-a-learning-rate.md has the figures behind the limits below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adatad.evaluation.sentences import percent
from adatad.files import listed
from adatad.report.run_files import MAX_SECONDS, Record, by_step, is_number, read_metrics
from adatad.spec import Spec

STEP_KEYS = ("epoch", "class_loss", "segment_loss", "lr")
UNTRAINED_LOSS = 2.0
"""Loss for each positive point of an untrained detector, about: its classes' loss and its segments' are near 1 each."""
SPAN_STEPS = 3
"""Steps over which the loss is averaged to find its peak."""
JUMP = 2.0
"""Ratio of the peak to the untrained loss, from which the loss has jumped up."""
LEAST_STEPS = 20
"""Steps below which nothing is said but that the loss has jumped up."""
END_SHARE = 8
"""The end of a run is the last of so many equal parts of its steps."""
NOT_LEARNT, HARDLY_LEARNT = 0.9, 0.6
"""Ratios of the last loss to the untrained one, above which nothing was learnt; above the lower one hardly anything, if
the score agrees."""
NO_SCORE = 0.02
"""Average mAP, 0 to 1, below which detections are hardly better than random ones."""
USUAL_RATE, STALLED = 0.03, 0.3
"""Rate of AdamW that no published training comes near (0.0001 to 0.004), and the ratio of the last loss to the
untrained one above which it is named: such a rate need not let the loss jump, but keeps it from falling further."""
SKIPPED_SHARE, LEAST_SKIPPED = 0.05, 3
"""Share and number of skipped steps that are too many."""
LEAST_EVALUATIONS = 4
FALLEN = 0.8
"""Share of the best average mAP below which the last one has fallen."""
RISING = 0.02
"""Average mAP, 0 to 1, that the last evaluation gained, from which more training would help."""
WAIT_SHARE = 0.5
"""Share of the steps' time above which waiting for data is named."""
MAX_LISTED = 3
"""Groups whose rates a sentence lists; with layer decay there are dozens."""

Place = Literal["first", "before errors", "last"]


class Sign(NamedTuple):
    """Something that is wrong with a training. kind: a short name; text: sentences on what was seen and what to do;
    place: among the sentences on the score; figures: the numbers behind it, by name.

    A model that broke or learnt nothing comes first: its detections say nothing about the files either. What else
    explains a low score stands behind mistakes of the files, what doesn't behind all.
    """

    kind: str
    text: str
    place: Place
    figures: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return self._asdict()


def training_signs(run_directory: Path, spec: Spec) -> list[Sign]:
    """Return what a run's metrics.jsonl and spec show to be wrong, the most serious first; nothing without metrics.

    Lines that can't be read or lack a key are left out. Raises FileError for a file that can't be opened.
    """
    lines = read_metrics(run_directory / "metrics.jsonl", STEP_KEYS)
    steps, evaluations = by_step(lines.train), by_step(lines.evaluations)
    rate = [*_rate_too_high(steps)] or [*_nothing_learnt(steps, evaluations, spec)] or [*_rate_unusual(steps)]
    # Of a run that learns nothing, or not as it should, its length says nothing.
    course = [] if rate else [*_overfitted(steps, evaluations), *_still_rising(steps, evaluations)]
    signs = [*rate, *_skipped(steps), *course, *_random_backbone(steps, spec), *_waits(steps)]
    return sorted(signs, key=lambda sign: ("first", "before errors", "last").index(sign.place))


def loss_for_each_positive(steps: Sequence[Record], least_positives: float = 1.0) -> float:
    """Return the loss of some steps for each of their positive points; NaN if none of them has a finite loss.

    least_positives: of a step, for its part of the divisor; steps with few positive points would else be above all
    others, as background has a loss too.
    """
    losses = positives = 0.0
    for step in steps:
        count = _positives(step)
        # JSON has whole numbers of any size, which only as floats become infinite instead of failing.
        loss = (float(step["class_loss"]) + float(step["segment_loss"])) * _number(step, "normalizer")
        if math.isfinite(loss) and math.isfinite(count):
            losses += loss
            positives += max(count, least_positives)
    return losses / positives if positives else math.nan


def _positives(step: Record) -> float:
    return _number(step, "positives")


def _number(step: Record, key: str) -> float:
    # Lines of early versions lack both, and are taken as they are.
    value = step.get(key, 1)
    return float(value) if is_number(value) else math.nan


def _mean_positives(steps: Sequence[Record]) -> float:
    counts = [count for step in steps if math.isfinite(count := _positives(step))]
    return max(sum(counts) / len(counts), 1.0) if counts else 1.0


def _untrained_loss(steps: Sequence[Record]) -> float:
    """Return the loss that counts as untrained: the one that the run began with, or more if it began from a
    detector."""
    # A warm-up starts at rate 0, so that its second step is untrained too; without one the first step alone is.
    begun = [
        step for step in steps[:2] if step["step"] == 1 or (step["step"] == 2 and not any(steps[0]["lr"].values()))
    ]
    first = loss_for_each_positive(begun)
    return max(first, UNTRAINED_LOSS) if math.isfinite(first) else UNTRAINED_LOSS


def _end(steps: Sequence[Record]) -> Sequence[Record]:
    return steps[-max(len(steps) // END_SHARE, SPAN_STEPS) :]


def highest_rates(steps: Sequence[Record]) -> str:
    """Return the highest learning rates of groups of parameters, the largest first, in words."""
    highest: dict[str, float] = {}
    for step in steps:
        for group, rate in step["lr"].items():
            highest[group] = max(rate, highest.get(group, 0.0))
    ordered = sorted(highest.items(), key=lambda pair: -pair[1])
    return listed([f"{group} {rate:.2g}" for group, rate in ordered], MAX_LISTED)


def _rate_too_high(steps: Sequence[Record]) -> Iterator[Sign]:
    """Yield a sign if the loss rose far above that of an untrained detector."""
    start, least = _untrained_loss(steps), _mean_positives(steps)
    peak, at = 0.0, 0
    for place in range(len(steps) - SPAN_STEPS + 1):
        span = steps[place : place + SPAN_STEPS]
        # A NaN is never larger.
        if (loss := loss_for_each_positive(span, least)) > peak:
            peak, at = loss, span[0]["step"]
    if peak < JUMP * start:
        return
    text = (
        f"The learning rate is too high ({highest_rates(steps)}): at step {at} the loss for each positive point was "
        f"{peak:.3g}, where an untrained detector's is {start:.2g}. Train anew with a tenth, then a hundredth, of "
        f"optimizer.lr and of the rates in optimizer.backbone; adatad train SPEC --overfit 2 tries one within minutes."
    )
    yield Sign("learning rate too high", text, "first", {"untrained_loss": start, "peak_loss": peak, "step": at})


def _nothing_learnt(steps: Sequence[Record], evaluations: Sequence[Record], spec: Spec) -> Iterator[Sign]:
    """Yield a sign if the loss is still that of an untrained detector, or nearly so and the score near 0."""
    trained = [step for step in steps if step["epoch"] >= spec.schedule.warmup_epochs]
    start, loss, scores = _untrained_loss(steps), loss_for_each_positive(_end(steps)), _scores(evaluations)
    nothing = loss > NOT_LEARNT * start
    hardly = loss > HARDLY_LEARNT * start and bool(scores) and scores[-1][1] < NO_SCORE
    if len(trained) < LEAST_STEPS or not (nothing or hardly):
        return
    text = (
        f"Hardly anything was learnt: after {len(steps):,} steps the loss for each positive point is {loss:.2g}, where "
        f"an untrained detector's is {start:.2g}. Are the learning rates too low ({highest_rates(steps)}), or the "
        f"steps too few? If adatad train SPEC --overfit 2 can't learn two windows either, the set-up is wrong."
    )
    figures = {"untrained_loss": start, "last_loss": loss, "steps": len(steps)}
    # A model that has learnt a little may be right where the files are wrong.
    yield Sign("nothing learnt", text, "first" if nothing else "before errors", figures)


def _rate_unusual(steps: Sequence[Record]) -> Iterator[Sign]:
    """Yield a sign if a rate is far above all usual ones and the loss didn't fall far."""
    start, loss = _untrained_loss(steps), loss_for_each_positive(_end(steps))
    rate = max((rate for step in steps for rate in step["lr"].values()), default=0.0)
    if len(steps) < LEAST_STEPS or not rate >= USUAL_RATE or not loss > STALLED * start:
        return
    text = (
        f"The learning rate is probably too high ({highest_rates(steps)}; published ones are 0.0001 to 0.004): the "
        f"loss for each positive point stands at {loss:.2g}, where an untrained detector's is {start:.2g}. Train anew "
        f"with a tenth, then a hundredth, of the highest."
    )
    figures = {"untrained_loss": start, "last_loss": loss, "highest_rate": rate}
    yield Sign("learning rate unusually high", text, "before errors", figures)


def _skipped(steps: Sequence[Record]) -> Iterator[Sign]:
    """Yield a sign if many steps changed nothing since their loss or gradients weren't finite."""
    # In fp16 the first steps look for the loss scale, and are skipped in every sound run.
    applied = [step.get("applied", True) is not False for step in steps]
    counted = applied[applied.index(True) :] if True in applied else applied
    skipped = counted.count(False)
    if skipped < LEAST_SKIPPED or skipped < SKIPPED_SHARE * len(counted):
        return
    text = (
        f"{skipped:,} of {len(counted):,} steps were skipped, as their loss or gradients weren't finite: lower the "
        f"learning rate ({highest_rates(steps)}), or set train.precision to fp32; log.txt names their videos."
    )
    yield Sign("steps skipped", text, "first", {"skipped": skipped, "steps": len(counted)})


def _overfitted(steps: Sequence[Record], evaluations: Sequence[Record]) -> Iterator[Sign]:
    """Yield a sign if the score fell from its best while the training loss fell on."""
    scores = _scores(evaluations)
    if len(scores) < LEAST_EVALUATIONS or len(steps) < LEAST_STEPS:
        return
    best_step, best = max(scores, key=lambda pair: pair[1])
    last = scores[-1][1]
    before = [step for step in steps if step["step"] <= best_step]
    falls = loss_for_each_positive(_end(steps)) < loss_for_each_positive(_end(before)) if before else False
    # The last two: a single evaluation of few videos may be low by chance.
    if not falls or max(score for _, score in scores[-2:]) >= FALLEN * best or best - last < RISING:
        return
    text = (
        f"The model overfits: average mAP fell from {percent(best)} at step {best_step} to {percent(last)} at the end "
        f"while the training loss went on falling. Use checkpoints/best, train for fewer epochs (train.stop_after ends "
        f"a run by itself), or add training videos."
    )
    yield Sign(
        "overfitting", text, "before errors", {"best_average_mAP": best, "best_step": best_step, "average_mAP": last}
    )


def _still_rising(steps: Sequence[Record], evaluations: Sequence[Record]) -> Iterator[Sign]:
    """Yield a sign if loss and score still got better at the end."""
    scores = _scores(evaluations)
    if len(scores) < LEAST_EVALUATIONS or len(steps) < LEAST_STEPS:
        return
    *earlier, before, last = (score for _, score in scores)
    end = _end(steps)
    previous = steps[: -len(end)][-len(end) :]
    if before <= max(earlier) or last - before < RISING or not previous:
        return
    if loss_for_each_positive(end) < loss_for_each_positive(previous):
        text = (
            f"The score was still rising at the end, from {percent(before)} to {percent(last)} at the last evaluation, "
            f"and the training loss still falling: train for more epochs (schedule.epochs)."
        )
        yield Sign("still rising", text, "last", {"average_mAP_before": before, "average_mAP": last})


def _scores(evaluations: Sequence[Record]) -> list[tuple[int, float]]:
    """Return steps and average mAPs of the evaluations, but for the untrained model's."""
    return [
        (item["step"], item["average_mAP"])
        for item in evaluations
        if item["step"] and math.isfinite(item["average_mAP"])
    ]


def _random_backbone(steps: Sequence[Record], spec: Spec) -> Iterator[Sign]:
    """Yield a sign if weights that aren't trained are random."""
    backbone = spec.model.backbone
    if (
        steps
        and backbone.weights == "random"
        and backbone.mode not in ("full", "features")
        and spec.model.init_from is None
    ):
        text = (
            "The frozen backbone has random weights (model.backbone.weights), so that its features are those of "
            "nothing: docs/weights.md says where pretrained ones come from."
        )
        yield Sign("random backbone", text, "last", {})


def _waits(steps: Sequence[Record]) -> Iterator[Sign]:
    """Yield a sign if most of the time went into waiting for data."""
    # The first step waits for the loader to begin.
    times = [
        (step["data_wait_seconds"], step["step_seconds"])
        for step in steps[1:]
        if all(_is_duration(step.get(key)) for key in ("data_wait_seconds", "step_seconds"))
    ]
    waited, whole = (sum(column) for column in zip(*times, strict=True)) if times else (0.0, 0.0)
    if len(times) < LEAST_STEPS or not whole or waited <= WAIT_SHARE * whole:
        return
    text = (
        f"{percent(waited / whole)} of the steps' time went into waiting for data, which costs time and no score: "
        f"adatad data benchmark SPEC says what limits."
    )
    yield Sign("waiting for data", text, "last", {"waited_seconds": waited, "seconds": whole})


def _is_duration(value: object) -> bool:
    return is_number(value) and 0 <= value <= MAX_SECONDS
