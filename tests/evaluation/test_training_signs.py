"""Signs of training in a run's metrics: each kind of trouble is named, and no sound run is accused."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.evaluation.sentences import with_signs
from adatad.evaluation.training_signs import training_signs


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A spec with pretrained weights and one epoch of warm-up."""
    from tiny_spec import TINY_SPEC

    from adatad.spec import load

    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data="data", runs="runs"))
    return load(path, ["model.backbone.weights=small.safetensors"], check_files=False)


def step(number: int, loss: float, rate: float = 1e-3, **changes: object) -> dict:
    """A line of metrics after `number` steps, ten an epoch. loss: for each positive point."""
    # The divisor falls from its start, as in every run: losses as they stand would seem to rise.
    normalizer, positives = 20 + 80 * 0.9**number, 20
    cost = loss * positives / normalizer
    line = {
        "kind": "train", "step": number, "epoch": (number - 1) // 10, "class_loss": cost / 2, "segment_loss": cost / 2,
        "positives": positives, "normalizer": normalizer, "lr": {"adapter": 2 * rate, "detector": rate},
        "applied": True, "data_wait_seconds": 0.01, "step_seconds": 1.0,
    }  # fmt: skip
    return line | changes


def course(*losses: float, each: int = 10) -> list[dict]:
    """Lines of a run whose loss keeps each value for some steps; its first two steps are untrained."""
    every = [loss for loss in losses for _ in range(each)]
    return [step(number, 2.1 if number <= 2 else loss) for number, loss in enumerate(every, 1)]


def scores(*values: float) -> list[dict]:
    """Evaluations after every ten steps."""
    return [
        {"kind": "evaluation", "step": 10 * place, "epoch": place, "average_mAP": value}
        for place, value in enumerate(values, 1)
    ]


SOUND = [*course(1.8, 1.1, 0.8, 0.6, 0.5), *scores(0.1, 0.3, 0.45, 0.5, 0.51)]


def write(folder, lines) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def kinds(folder, spec, lines) -> list[str]:
    """Kinds of the signs of these lines."""
    write(folder, lines)
    return [sign.kind for sign in training_signs(folder, spec)]


FINE = {
    "it falls as it should": SOUND,
    "its first steps are skipped in fp16": [
        *(step(number, math.nan, applied=False) for number in range(1, 13)),
        *(step(number, 1.5 - number / 50) for number in range(13, 60)),
    ],
    "it starts from a detector": [
        step(number, 0.3 if number < 5 else 0.8 if number < 9 else 0.4) for number in range(1, 60)
    ],
    "some windows hold background alone": [
        step(number, 1.0, class_loss=0.3 if number % 7 else 1.0, positives=0 if number % 7 else 140)
        for number in range(1, 60)
    ],
    "it has hardly begun": [step(number, 2.1) for number in range(1, 15)],
    "all of it is warm-up": [step(number, 2.1, epoch=0) for number in range(1, 60)],
    "its score scatters": [*SOUND[:50], *scores(0.5, 0.55, 0.5, 0.54, 0.5)],
    "one step is skipped": [line | {"applied": line["step"] != 30} for line in SOUND],
    "it learns well at a high rate": [line | {"lr": {"adapter": 0.1}} for line in course(1.5, 0.8, 0.4)],
    "it falls a little and something is found": [*course(2.1, 1.9, 1.7, 1.6), *scores(0.02, 0.04)],
    "it has no line": [],
}  # fmt: skip


@pytest.mark.parametrize("lines", FINE.values(), ids=FINE)
def test_a_sound_run_has_no_sign(spec, tmp_path, lines):
    assert kinds(tmp_path, spec, lines) == []


WRONG = {
    "the loss jumps up and recovers": (course(9.0, 4.0, 1.2, 1.1, 1.0), "learning rate too high"),
    "it jumps up within a few steps": (course(9.0, each=8), "learning rate too high"),
    "it jumps up at the end": (course(1.8, 1.1, 0.8, 0.6, 20.0), "learning rate too high"),
    "it jumps up in the first step without warm-up": (
        [step(1, 2.1), *(step(number, 30.0 / number) for number in range(2, 12))],
        "learning rate too high",
    ),
    "it never falls": (course(2.1, 2.08, 2.1, 2.05, 2.07), "nothing learnt"),
    "it falls a little and nothing is found": ([*course(2.1, 1.9, 1.7, 1.6), *scores(0.0, 0.01)], "nothing learnt"),
    "one rate is far too high and the loss stands": (
        [line | {"lr": {"adapter": 0.4, "detector": 0.001}} for line in course(1.5, 0.85, 0.75, 0.7)],
        "learning rate unusually high",
    ),
    "every loss is NaN": (
        [step(number, 2.1 if number < 4 else math.nan, applied=number < 4) for number in range(1, 14)],
        "steps skipped",
    ),
    "no step was ever applied": ([step(number, math.inf, applied=False) for number in range(1, 11)], "steps skipped"),
    "some steps are skipped": (
        [line | {"applied": line["step"] % 6 > 0} for line in course(1.0, 0.9)],
        "steps skipped",
    ),
    "the score falls while the loss does": ([*SOUND[:50], *scores(0.3, 0.5, 0.4, 0.3, 0.25)], "overfitting"),
    "the score rises to the end": ([*SOUND[:50], *scores(0.1, 0.2, 0.3, 0.4, 0.5)], "still rising"),
    "steps wait for data": (
        [line | {"data_wait_seconds": 0.7} for line in course(1.0, 0.8, 0.6)],
        "waiting for data",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "kind"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_the_only_sign(spec, tmp_path, lines, kind):
    assert kinds(tmp_path, spec, lines) == [kind]


def test_the_sentence_names_rates_step_and_losses(spec, tmp_path):
    write(tmp_path, course(1.9, 9.0, 4.0))
    (sign,) = training_signs(tmp_path, spec)
    assert sign.text.startswith("The learning rate is too high (adapter 0.002, detector 0.001): at step 11 the loss")
    assert "was 9, where an untrained detector's is 2.1" in sign.text
    assert sign.place == "first"


def test_lines_without_counts_are_taken_as_they_are(spec, tmp_path):
    old = [{key: value for key, value in line.items() if key not in ("positives", "normalizer")} for line in SOUND]
    assert kinds(tmp_path, spec, old) == []
    assert kinds(tmp_path, spec, [*old, old[-6] | {"class_loss": 50.0, "step": 60}]) == ["learning rate too high"]


def test_of_steps_that_a_resumed_run_repeats_the_last_ones_count(spec, tmp_path):
    broken = [step(number, 30.0) for number in range(20, 30)]
    assert kinds(tmp_path, spec, [*SOUND[:19], *broken]) == ["learning rate too high"]
    assert kinds(tmp_path, spec, [*SOUND[:19], *broken, *SOUND[19:]]) == []


def test_frozen_weights_that_are_random_are_named(spec, tmp_path):
    backbone = spec.model.backbone.model_copy(update={"weights": "random"})
    random = spec.model_copy(update={"model": spec.model.model_copy(update={"backbone": backbone})})
    assert kinds(tmp_path, random, SOUND) == ["random backbone"]
    trained = backbone.model_copy(update={"mode": "full"})
    full = spec.model_copy(update={"model": spec.model.model_copy(update={"backbone": trained})})
    assert kinds(tmp_path, full, SOUND) == []


def test_damaged_lines_cost_themselves_alone(spec, tmp_path):
    write(tmp_path, course(9.0, 4.0, 1.2))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"kind": "train", "step": 3}\n[1]\n{"kind": "train", "st')
    assert [sign.kind for sign in training_signs(tmp_path, spec)] == ["learning rate too high"]


numbers = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.integers(-(10**40), 10**310), st.floats(), st.lists(st.integers())
)
keys = [
    "step",
    "epoch",
    "class_loss",
    "segment_loss",
    "positives",
    "normalizer",
    "applied",
    "data_wait_seconds",
    "average_mAP",
]
changes = st.dictionaries(st.sampled_from(keys), numbers, max_size=4)


@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), changes), max_size=30))
def test_whatever_the_lines_hold_signs_are_json(spec, tmp_path_factory, edits):
    lines = [dict(line) for line in SOUND]
    for place, change in edits:
        lines[place] |= change
    folder = tmp_path_factory.mktemp("any")
    write(folder, lines)
    found = [sign.as_json() for sign in training_signs(folder, spec)]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_broken_training_comes_before_files_and_what_costs_no_score_last():
    lines = ["file", "error", "other error"]
    assert with_signs(lines, 1, [("first", "rate")]) == ["rate", "file", "error"]
    assert with_signs(lines, 1, [("before errors", "overfits"), ("last", "waits")]) == [
        "file", "overfits", "error", "waits",
    ]  # fmt: skip
    assert with_signs(lines, 1, []) == lines
