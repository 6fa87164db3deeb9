"""What evaluation makes of a model's predictions: an external classifier's labels, blocked videos, recall@kx."""

import json
from pathlib import Path

import pytest
import torch

from adatad.data.annotations import read_annotations
from adatad.data.dataset import SkippedVideos
from adatad.evaluation.classifiers import ClassifierError
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training import validation
from adatad.training.loaders import validation_loader
from adatad.training.resolve import resolve_run
from adatad.training.run import train
from adatad.training.setup import build_initial_model
from adatad.training.validation import check_classifier, detect, score

CPU = Processes(0, 1, torch.device("cpu"))


def found_by(spec):
    """Detections of an untrained model."""
    run = resolve_run(spec, CPU)
    model, _ = build_initial_model(spec, run.num_classes)
    return detect(model, validation_loader(run), run, CPU, SkippedVideos(0, print))


@pytest.fixture
def class_scores(tiny_data, tmp_path):
    """A classifier's file for the validation videos: each is sure of its first label, and half sure of another."""
    database = json.loads((tiny_data / "annotations.json").read_text())["database"]
    names = sorted({item["label"] for entry in database.values() for item in entry["annotations"]})
    results = {}
    for video, entry in database.items():
        if entry["subset"] == "validation":
            label = entry["annotations"][0]["label"]
            results[video] = [1.0 if name == label else 0.5 if name == names[0] else 0.0 for name in names]
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"results": results, "class": names}))
    return path


AGNOSTIC = ["model.detector.class_agnostic=true", "postprocess.nms.multiclass=false"]


def test_a_classifier_gives_the_labels(tiny_spec, class_scores):
    options = ["postprocess.classifier.kind=cuhk", f"postprocess.classifier.file={class_scores}"]
    top = found_by(load(tiny_spec, [*AGNOSTIC, *options]))
    content = json.loads(class_scores.read_text())
    assert top.keys() == content["results"].keys()
    for video, items in top.items():
        scores = content["results"][video]
        assert items
        assert {item["label"] for item in items} == {content["class"][scores.index(max(scores))]}
    plain = found_by(load(tiny_spec, AGNOSTIC))
    assert {item["label"] for items in plain.values() for item in items} == {"action"}


def test_a_video_without_class_scores_ends_the_evaluation(tiny_spec, class_scores):
    content = json.loads(class_scores.read_text())
    missing = content["results"].popitem()[0]
    class_scores.write_text(json.dumps(content))
    options = ["postprocess.classifier.kind=standard", f"postprocess.classifier.file={class_scores}"]
    with pytest.raises(ClassifierError, match=rf"scores\.json: has no scores of video '{missing}'"):
        found_by(load(tiny_spec, [*AGNOSTIC, *options]))


def test_training_does_not_begin_while_the_classifier_lacks_videos(tiny_spec, class_scores):
    content = json.loads(class_scores.read_text())
    missing = sorted(content["results"])
    content["results"] = {"another": [0.0] * len(content["class"])}
    class_scores.write_text(json.dumps(content))
    options = ["postprocess.classifier.kind=cuhk", f"postprocess.classifier.file={class_scores}"]
    spec = load(tiny_spec, [*AGNOSTIC, *options])
    with pytest.raises(ClassifierError, match=f"no scores of 2 videos .*: {', '.join(missing)}"):
        train(spec)
    assert not Path(spec.run.root).exists()


def test_classes_that_no_detection_can_have_are_said_before_training(tiny_spec, tiny_data, class_scores):
    content = json.loads(class_scores.read_text())
    first, *others = content["class"]
    annotations = read_annotations(load(tiny_spec).data)
    [line] = check_classifier(load(tiny_spec, AGNOSTIC), annotations)
    assert "all that is found is labelled 'action', which is no class of" in line
    assert check_classifier(load(tiny_spec), annotations) == []
    options = ["postprocess.classifier.kind=cuhk", f"postprocess.classifier.file={class_scores}"]
    spec = load(tiny_spec, [*AGNOSTIC, *options])
    assert check_classifier(spec, annotations) == []
    class_scores.write_text(json.dumps({**content, "class": [first.upper(), *others]}))
    [line] = check_classifier(spec, annotations)
    assert f"doesn't know {first} of" in line
    assert f"doesn't know its {first.upper()}" in line
    pseudo = ["postprocess.classifier.kind=pseudo", "postprocess.classifier.pseudo_label="]
    assert check_classifier(load(tiny_spec, [*AGNOSTIC, pseudo[0], pseudo[1] + first]), annotations) == []
    with pytest.raises(ClassifierError, match=r"pseudo_label: 'Zzz' is no class of .*: nothing would be found"):
        check_classifier(load(tiny_spec, [*AGNOSTIC, pseudo[0], pseudo[1] + "Zzz"]), annotations)


def test_what_makes_a_score_wrong_is_said_once_a_run(tiny_spec, caplog):
    train(load(tiny_spec, [*AGNOSTIC, "schedule.epochs=2"]))
    assert caplog.text.count(": average mAP") == 2
    assert caplog.text.count("model.detector.class_agnostic without postprocess.classifier") == 1
    assert caplog.text.count("that no annotation has (left out of the score)") == 1


def test_without_instances_to_score_no_score_is_logged(tiny_spec, tiny_data, tmp_path, caplog):
    content = json.loads((tiny_data / "annotations.json").read_text())
    for entry in content["database"].values():
        if entry["subset"] == "validation":
            entry["annotations"] = []
    (tmp_path / "a.json").write_text(json.dumps(content))
    train(load(tiny_spec, ["schedule.epochs=1", "schedule.warmup_epochs=0", f"data.annotations={tmp_path / 'a.json'}"]))
    assert "epoch 1: nothing to score: no instance in validation" in caplog.text
    assert "average mAP" not in caplog.text


def test_blocked_videos_and_recall_reach_the_score(tiny_spec, tiny_data, tmp_path):
    database = json.loads((tiny_data / "annotations.json").read_text())["database"]
    truth = {name: entry["annotations"] for name, entry in database.items() if entry["subset"] == "validation"}
    blocked, seen = sorted(truth)
    (tmp_path / "blocked.json").write_text(json.dumps([blocked]))
    perfect = {seen: [{**item, "score": 0.5} for item in truth[seen]], blocked: []}
    options = [f"evaluate.blocked_videos={tmp_path / 'blocked.json'}", "evaluate.top_k=[1,5]"]
    result = score(perfect, resolve_run(load(tiny_spec, options), CPU))
    assert (result.average_mAP, result.num_ground_truth) == (1.0, len(truth[seen]))
    assert result.summary()["recall"]["0.5"] == {"1": 1.0, "5": 1.0}
    assert score(perfect, resolve_run(load(tiny_spec), CPU)).num_ground_truth == len(truth[seen]) + len(truth[blocked])


def test_a_classifier_of_other_classes_is_refused_before_training(tiny_spec, class_scores, tmp_path):
    content = json.loads(class_scores.read_text())
    class_scores.write_text(json.dumps({**content, "class": [f"other {name}" for name in content["class"]]}))
    settings = [f"postprocess.classifier={{kind: cuhk, file: {class_scores}}}", "model.detector.class_agnostic=true",
                "postprocess.nms.multiclass=false"]  # fmt: skip
    with pytest.raises(
        ClassifierError, match=r"scores\.json: has other classes \('other blink' and so on\) than .*'blink'"
    ):
        train(load(tiny_spec, settings))
    assert not (tmp_path / "runs").exists()


def test_a_window_is_queued_before_the_one_before_is_worked_on(tiny_spec, monkeypatch):
    spec, events = load(tiny_spec), []
    real_start, real_found = validation.ResultCopies.start, validation.detections_in

    def start(copies, tensors):
        events.append("queued")
        return real_start(copies, tensors)

    def found(windows, *arguments):
        events.append(windows[0])
        return real_found(windows, *arguments)

    monkeypatch.setattr(validation.ResultCopies, "start", start)
    monkeypatch.setattr(validation, "detections_in", found)
    assert found_by(spec)
    loader = validation_loader(resolve_run(spec, CPU))
    windows = [(place.video.name, place.start_grid * spec.data.window.stride_frames) for place in loader.dataset.places]
    assert [(w.video.name, w.start_frame) for w in events if w != "queued"] == windows
    assert events[:2] == ["queued", "queued"]
    assert [event == "queued" for event in events[2:-1]] == [False, True] * (len(windows) - 2) + [False]
