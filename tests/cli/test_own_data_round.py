"""The round of docs/own-data.md: labels of tools, a detector, its predictions corrected in the tools, and the next
detector, on the built-in videos as if they were one's own."""

import json
import re
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny_spec import SMALL

OVERRIDES = [*SMALL, "train.evaluate_every_epochs=1"]
ADDED = (1.0, 2.5, "wave")
"""What a person adds in both tools: start and end in seconds, and a label that is new."""


def instances(annotations: Path, name: str) -> list[tuple[float, float, str]]:
    entry = json.loads(annotations.read_text())["database"][name]
    return sorted((*item["segment"], item["label"]) for item in entry["annotations"])


def subsets(annotations: Path) -> dict[str, str]:
    return {name: entry["subset"] for name, entry in json.loads(annotations.read_text())["database"].items()}


def correct(found: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Correct detections as a person would: rename one, move a border of one, add one, and delete the others."""
    renamed, (start, end, label) = [row for row in found if row[1] - row[0] > 0.01][:2]
    assert len(found) > 2
    return [(*renamed[:2], "pulse"), (start, (start + end) / 2, label), ADDED]


def correct_in_boris(path: Path) -> list[tuple[float, float, str]]:
    """Correct the one observation of a BORIS project, and return its labels."""
    project = json.loads(path.read_text())
    (observation,) = project["observations"].values()
    open_, pairs = {}, []
    for time, _, code, *_ in observation["events"]:
        if code in open_:
            pairs.append((open_.pop(code), time, code.partition(" [")[0]))
        else:
            open_[code] = time
    after = correct(pairs)
    observation["events"] = sorted([time, "", label, "", ""] for *times, label in after for time in times)
    project["behaviors_conf"] = {
        str(number): {"type": "State event", "code": label} for number, label in enumerate({row[2] for row in after})
    }
    path.write_text(json.dumps(project))
    return sorted(after)


def correct_in_elan(path: Path) -> list[tuple[float, float, str]]:
    """Correct an ELAN document, and return its labels."""
    tree = ElementTree.parse(path)
    root = tree.getroot()
    order = root.find("TIME_ORDER")
    times = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE")) / 1000 for slot in order}
    found = [
        (times[one.get("TIME_SLOT_REF1")], times[one.get("TIME_SLOT_REF2")], tier.get("TIER_ID"))
        for tier in root.iter("TIER")
        for one in tier.iter("ALIGNABLE_ANNOTATION")
    ]
    after = correct(found)
    for tier in root.findall("TIER"):
        root.remove(tier)
    order.clear()
    for number, (*times, label) in enumerate(after):
        slots = [f"s{number}-{end}" for end in (1, 2)]
        for slot, time in zip(slots, times, strict=True):
            ElementTree.SubElement(order, "TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=str(round(time * 1000)))
        tier = next((one for one in root.iter("TIER") if one.get("TIER_ID") == label), None)
        if tier is None:
            tier = ElementTree.SubElement(root, "TIER", TIER_ID=label, LINGUISTIC_TYPE_REF="default-lt")
        ends = {f"TIME_SLOT_REF{end}": slot for end, slot in enumerate(slots, 1)}
        one = ElementTree.SubElement(ElementTree.SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", ends)
        one.set("ANNOTATION_ID", f"a{number}")
        ElementTree.SubElement(one, "ANNOTATION_VALUE").text = label
    tree.write(path)
    return sorted(after)


@pytest.mark.slow
@pytest.mark.pictures
def test_labels_of_boris_and_elan_go_the_whole_round(tiny_data, run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text: str, *more: str) -> str:
        done = run_command(*shlex.split(text), *more)
        assert done.returncode == 0, (text, done.stderr)
        return done.stdout + done.stderr

    # Two videos are new ones; half of the others are labelled in BORIS, half in ELAN.
    videos = sorted((tiny_data / "videos").iterdir())
    for folder, some in (("my_videos", videos[:-2]), ("new_videos", videos[-2:])):
        Path(folder).mkdir()
        for video in some:
            shutil.copy(video, folder)
    database = json.loads((tiny_data / "annotations.json").read_text())["database"]
    for form, some in (("boris", videos[:3]), ("elan", videos[3:-2])):
        labels = {"database": {video.stem: database[video.stem] for video in some}}
        Path(f"{form}.json").write_text(json.dumps(labels))
        run(f"data export {form}.json --form {form} --output labels --videos my_videos")
    run("data import labels --videos my_videos --output data/mine")
    annotations = Path("data/mine/annotations.json")
    before = subsets(annotations)
    assert len(before) == 6
    for name in before:
        expected = sorted((*item["segment"], item["label"]) for item in database[name]["annotations"])
        assert instances(annotations, name) == [pytest.approx(row) for row in expected]

    run("data summary data/mine/spec.yaml")
    run("data check data/mine/spec.yaml --output data/mine/check")
    head = re.sub(r"(?m)^#|\\\n#", "", Path("data/mine/spec.yaml").read_text().partition("\nname:")[0])
    trial = re.search(r"adatad (train .* schedule.epochs=2 .*)", head).group(1)
    run(trial, *OVERRIDES[:6], SMALL[-1])
    run("train data/mine/spec.yaml --set", *OVERRIDES)
    run("test --checkpoint runs/mine/id0 --detections runs/mine/id0/found.json")
    # A detector of a few steps is sure of nothing.
    run("detect runs/mine/id0 new_videos --output found --threshold 0")

    one, other = (video.stem for video in videos[-2:])
    for form, name in (("boris", one), ("elan", other)):
        run(f"data export found/{name}.json --form {form} --output corrected --videos new_videos")
    corrected = {one: correct_in_boris(next(Path("corrected").glob("*.boris")))}
    corrected[other] = correct_in_elan(next(Path("corrected").glob("*.eaf")))
    for video in videos[-2:]:
        shutil.move(Path("new_videos") / video.name, "my_videos")
    spec = Path("data/mine/spec.yaml").read_text()
    said = run("data import labels corrected --videos my_videos --output data/mine --update")
    assert "one new class: wave" in said
    after = subsets(annotations)
    assert before.items() < after.items()
    assert set(after) - set(before) == {one, other}
    assert Path("data/mine/spec.yaml").read_text() == spec
    for name, rows in corrected.items():
        assert instances(annotations, name) == [pytest.approx(row, abs=1e-3) for row in rows]

    said = run("train data/mine/spec.yaml --id 1 --set model.init_from=runs/mine/id0", *OVERRIDES)
    assert "init_from" in said
    assert "wave" in said
    assert Path("runs/mine/id1/report.html").is_file()
