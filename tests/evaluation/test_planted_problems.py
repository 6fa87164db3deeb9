"""What a new user would plant: labels that are shifted, classes that are exchanged, a learning rate a hundred times too
high. The first sentence names each, and a sound run has no such sentence."""

import json
import re
import shutil

import numpy as np
import pytest
from tiny_spec import TINY_SPEC

from adatad.spec import load, to_yaml
from adatad.training.run import train

LABELS = ("pour", "stir fry", 'cut "thin"', "émincer", "切る")
MISTAKES = re.compile("lie .* (late|early)|multiplied|exchanged|learning rate|learnt|skipped|overfits")
# As wide as the demo's detector: a narrow one with few heads learns at any rate.
OVERRIDES = ["model.detector.width=128", "train.checkpoint_every_steps=100", "train.evaluate_every_epochs=3"]


def trained(data, folder, factor):
    """The directory of a run of nine steps with the rates times `factor`."""
    path = folder / "tiny.yaml"
    path.write_text(TINY_SPEC.format(data=data, runs=folder / "runs"))
    rates = [
        f"optimizer.lr={1e-3 * factor}",
        f"optimizer.backbone={{custom: [{{name: adapter, lr: {2e-3 * factor}}}]}}",
    ]
    train(load(path, [*OVERRIDES, *rates]))
    return folder / "runs" / "tiny" / "id0"


@pytest.fixture(scope="module")
def sound(tiny_data, tmp_path_factory):
    return trained(tiny_data, tmp_path_factory.mktemp("sound"), 1)


@pytest.fixture(scope="module")
def hot(tiny_data, tmp_path_factory):
    return trained(tiny_data, tmp_path_factory.mktemp("hot"), 100)


def planted(sound, folder, change=lambda start, end: (start, end), names=None):
    """The sound run with other videos: annotations of 30, and fair detections of the true ones, while the annotations
    are made wrong. change: of seconds; names: the label that stands in the file, by the true one."""
    random, database, results = np.random.default_rng(7), {}, {}
    for number in range(30):
        annotated, found = [], []
        for _ in range(random.integers(2, 7)):
            start, length = random.uniform(5, 90), random.uniform(2, 9)
            label = LABELS[random.integers(len(LABELS))]
            segment = change(start, start + length)
            annotated.append({"segment": list(segment), "label": (names or {}).get(label, label)})
            ends = (np.array([start, start + length]) + random.normal(0, 0.2, 2)).tolist()
            found.append({"segment": ends, "label": label, "score": random.uniform(0.4, 1)})
        for _ in range(5):
            start = random.uniform(0, 90)
            label = LABELS[random.integers(len(LABELS))]
            found.append({"segment": [start, start + 4], "label": label, "score": random.uniform(0, 0.5)})
        entry = {"subset": "validation", "duration": 4000.0, "frame": 120_000, "annotations": annotated}
        database[f"v{number}"], results[f"v{number}"] = entry, found
    annotations = folder / "wrong labels.json"
    annotations.write_text(json.dumps({"database": database}), encoding="utf-8")
    run = folder / "a run" / "id0"
    shutil.copytree(sound, run)
    spec = load(run / "spec.yaml", [f"data.annotations={json.dumps(str(annotations))}"], check_files=False)
    (run / "spec.yaml").write_text(to_yaml(spec), encoding="utf-8")
    (run / "detections.json").write_text(json.dumps({"results": results}), encoding="utf-8")
    return run


def first_sentences(run, run_command) -> list[str]:
    """The sentences that `adatad explain RUN` prints."""
    done = run_command("explain", run)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^\d+\. (.*)$", done.stdout, re.MULTILINE)


# Annotations that are later than the truth make the detections early.
@pytest.mark.parametrize(("seconds", "side"), [(3, "early"), (-3, "late"), (-1.5, "late"), (0.7, "early")])
def test_labels_that_are_shifted_are_named_with_sign_and_amount(sound, tmp_path, run_command, seconds, side):
    run = planted(sound, tmp_path, lambda start, end: (start + seconds, end + seconds))
    said = re.match(r"Detections lie ([\d.]+) s (early|late): corrected", first_sentences(run, run_command)[0])
    assert said[2] == side
    assert float(said[1]) == pytest.approx(abs(seconds), abs=0.15)


@pytest.mark.parametrize(
    ("factor", "hint"), [(25, "annotations in frames, at 25"), (30 / 25, "frames of 25 frames/s taken for 30")]
)
def test_labels_in_frames_or_of_another_rate_are_named(sound, tmp_path, run_command, factor, hint):
    run = planted(sound, tmp_path, lambda start, end: (start * factor, end * factor))
    first = first_sentences(run, run_command)[0]
    assert first.startswith("Times of detections fit when multiplied by")
    assert hint in first


@pytest.mark.parametrize("labels", [LABELS[:2], LABELS[3:], LABELS[1:4]], ids=["two", "two in unicode", "a circle"])
def test_classes_that_are_exchanged_are_named(sound, tmp_path, run_command, labels):
    names = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
    first = first_sentences(planted(sound, tmp_path, names=names), run_command)[0]
    assert "are exchanged" in first
    assert all(repr(label) in first for label in labels)


def test_a_rate_a_hundred_times_too_high_is_named(hot, run_command):
    assert first_sentences(hot, run_command)[0].startswith("The learning rate is too high (adapter 0.2, detector 0.1")
    found = json.loads(run_command("explain", hot, "--json").stdout)
    assert found["training"][0]["kind"] == "learning rate too high"
    assert found["sentences"][0] == found["training"][0]["text"]


def test_a_run_that_broke_before_its_first_evaluation_has_its_sentence(hot, tmp_path, run_command):
    run = tmp_path / "broken"
    shutil.copytree(hot, run)
    (run / "detections.json").unlink()
    assert "learning rate is too high" in first_sentences(run, run_command)[0]


def test_the_page_begins_with_it_too(hot, run_command):
    assert run_command("report", hot).returncode == 0
    assert "The learning rate is too high (adapter 0.2" in (hot / "report.html").read_text(encoding="utf-8")


def test_a_sound_run_has_no_mistake(sound, tmp_path, run_command):
    for run in (sound, planted(sound, tmp_path)):
        assert not [line for line in first_sentences(run, run_command) if MISTAKES.search(line)]


def test_metrics_that_cannot_be_read_cost_the_signs_alone(sound, tmp_path, run_command):
    run = planted(sound, tmp_path)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    done = run_command("explain", run)
    assert done.returncode == 0
    assert re.search(r"^note: .*metrics\.jsonl", done.stdout, re.MULTILINE)
