"""The pages of the data sets: every command runs on small files in the published form, and the page's spec reads and
scores what comes out; what a page says of the protocol is what its spec says."""

import csv
import functools
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_documents import commands

from adatad.data.annotation_file import read_names
from adatad.data.prepare.demo import write_video
from adatad.data.prepare.transcode import transcode
from adatad.parallel.processes import Processes
from adatad.spec import load
from adatad.training.resolve import resolve_run
from adatad.training.validation import score_summary

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "tools" / "prepare_data").glob("*/README.md"))
SPAN = (0.25, 1.75)
"""Of every instance, in videos of two seconds."""


def table(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def activitynet(videos, folder="anet", file="activity_net.v1-3.min.json", duration=2.0):
    items = [{"segment": SPAN, "label": f"Doing thing {number}"} for number in range(200)]
    subsets = {"a": "training", "b": "validation", "gone": "validation", "c": "testing"}
    entry = {"duration": duration, "url": "", "resolution": "32x32"}
    database = {name: {"subset": subset, **entry, "annotations": items} for name, subset in subsets.items()}
    database["c"]["annotations"] = []
    Path(folder).mkdir()
    (Path(folder) / file).write_text(json.dumps({"version": "1.3", "taxonomy": [], "database": database}))
    table(Path(folder) / "video_info_new.csv", *({"video": f"v_{name}", "subset": "any"} for name in "abc"))
    videos(*(f"{folder}/videos/v_{name}.mp4" for name in ("a", "b", "gone")))


def hacs(videos):
    activitynet(videos, "HACS_v1.1.1", "HACS_segments_v1.1.1.json", "2.000000")
    videos("HACS/Archery/v_a.mp4", "HACS/Doing_thing_2/v_b.mp4", "HACS/Archery/v_gone.mp4", "HACS/Bowling/v_gone.mp4")


def thumos(videos, folder="TH14_annotations", classes=20, endings=("_val", "_test")):
    names = ["video_validation_0000051", "video_test_0000004"]
    for number in range(classes):
        for name, ending in zip(names, endings, strict=True):
            path = Path(folder) / ending.strip("_") / f"Action{number:02d}{ending}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(f"{name}  {SPAN[0]} {SPAN[1]}\n")
    if endings[1]:
        (Path(folder) / "test" / "Ambiguous_test.txt").write_text(
            "video_test_0000270 0.5 1\nvideo_test_0000004 1 1.5\n"
        )
    videos(*(f"data/thumos-14/raw_data/video/{name}.mp4" for name in names))


def multithumos(videos):
    thumos(videos, "multithumos/annotations", 65, ("", ""))


def charades(videos):
    for subset, name in (("train", "46GP8"), ("test", "YSKX3")):
        row = {"id": name, "script": "x, y", "actions": f"c092 {SPAN[0]} {SPAN[1]};c147 0.00 1.50", "length": "2.00"}
        table(Path(f"Charades/Charades_v1_{subset}.csv"), row)
        videos(f"Charades_v1_480/{name}.mp4")


def epic(videos):
    folder = Path("epic-kitchens-100-annotations")
    stamps = {"start_timestamp": "00:00:00.25", "stop_timestamp": "00:00:01.75"}
    for subset, name in (("train", "P01_01"), ("validation", "P02_12")):
        instances = ({"verb_class": number % 97, "noun_class": number} for number in range(293))
        table(folder / f"EPIC_100_{subset}.csv", *({"video_id": name, **stamps, **item} for item in instances))
        videos(f"EPIC-KITCHENS/{name[:3]}/videos/{name}.MP4")
    table(folder / "EPIC_100_test_timestamps.csv", {"video_id": "P03_01", **stamps})
    facts = {"duration": 2.0, "fps": 8.0, "resolution": "32x32"}
    table(folder / "EPIC_100_video_info.csv", *({"video_id": name, **facts} for name in ("P01_01", "P02_12", "P03_01")))
    for task, count in (("verb", 97), ("noun", 300)):
        table(folder / f"EPIC_100_{task}_classes.csv", *({"id": n, "key": f"{task}:{n}"} for n in range(count)))


def ego4d(videos):
    clip = {"video_start_sec": 100.0, "video_end_sec": 102.0, "video_start_frame": 3000, "video_end_frame": 3060}
    times = {"video_start_time": 100 + SPAN[0], "video_end_time": 100 + SPAN[1], "primary": True}
    labels = [{**times, "label": f"do_{number}"} for number in range(110)]
    files = {"train": "moments_train.json", "val": "moments_val.json", "test": "moments_test_unannotated.json"}
    Path("v2/annotations").mkdir(parents=True)
    for split, file in files.items():
        annotators = {} if split == "test" else {"annotations": [{"labels": labels}]}
        content = {"videos": [{"split": split, "clips": [{**clip, "clip_uid": f"uid-{split}", **annotators}]}]}
        Path("v2/annotations", file).write_text(json.dumps(content))
    videos("v2/clips/uid-train.mp4", "v2/clips/uid-val.mp4", fps=30)


OFFICIAL = {function.__name__: function for function in (activitynet, charades, ego4d, epic, hacs, multithumos, thumos)}


@pytest.fixture(scope="module")
def two_seconds(tmp_path_factory):
    """Makes videos of two seconds, by frames per second and name: each name has other frames."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "30").mkdir()

    @functools.cache
    def make(fps, name):
        path = folder / f"{name}.mp4"
        if fps == 8:
            frames = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (16, 4, 6, 3), np.uint8)
            write_video(path, frames.repeat(8, 1).repeat(8, 2))
            return path
        return transcode(make(8, name), folder / "30", 32, 16, fps=fps)

    return make


@pytest.fixture
def videos(two_seconds, tmp_path, monkeypatch):
    """In a folder that looks like the project's: puts videos of two seconds at paths, each name with its own frames."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)

    def put(*paths, fps=8):
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(two_seconds(fps, path.stem), path)

    return put


def spec_of(page):
    words = next(word for command in commands(page) for word in command if word.startswith("configs/"))
    return load(ROOT / words, check_files=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_commands_of_a_page_prepare_what_its_spec_reads_and_scores(page, videos, run_command):
    OFFICIAL[page.parent.name](videos)
    for program, *words in commands(page):
        done = run_command(*words) if program == "adatad" else subprocess.run([program, *words])
        assert done.returncode == 0, (words, done.stderr)
    spec = spec_of(page)
    run = resolve_run(spec, Processes(0, 1, torch.device("cpu")))
    annotations = run.annotations
    assert len(annotations.train) == 1
    assert {video.name for video in annotations.validation} >= {"activitynet": {"gone"}}.get(page.parent.name, set())
    database = json.loads(Path(spec.data.annotations).read_text())["database"]
    perfect = {
        video.name: [{**item, "score": 0.9} for item in database[video.name]["annotations"]]
        for video in annotations.validation
        if video.name not in read_names(spec.evaluate.blocked_videos)
    }
    assert perfect
    result = score_summary(perfect, run)
    assert result["mAP"] == {f"{tiou:g}": 1.0 for tiou in spec.evaluate.tious}
    ks = {str(k): 1.0 for k in spec.evaluate.top_k}
    assert result.get("recall", {}) == ({f"{tiou:g}": ks for tiou in spec.evaluate.tious} if ks else {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_protocol_on_a_page_is_that_of_its_spec(page):
    (said,) = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    resolved = json.loads(spec_of(page).model_dump_json())

    def compare(said, resolved, at):
        for key, value in said.items():
            if isinstance(value, dict):
                compare(value, resolved[key], f"{at}.{key}")
            else:
                assert resolved[key] == value, f"{at}.{key}"

    compare(yaml.safe_load(said), resolved, page.parent.name)


def test_the_spec_that_the_page_of_hacs_gives_is_one(tmp_path):
    page = next(page for page in PAGES if page.parent.name == "hacs")
    text = re.findall(r"```\n(base: .*?)```", page.read_text(), re.DOTALL)[0]
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("../base", str(ROOT / "configs" / "base")))
    spec = load(path, check_files=False)
    assert (spec.postprocess.classifier.kind, spec.compat, spec.reference, spec.published) == (
        "tcanet_hacs", "fixed", None, None,
    )  # fmt: skip


def test_wrong_files_are_answered_with_the_page(run_command, tmp_path):
    done = run_command("data convert", "epic-verb", tmp_path / "nowhere", "--output", tmp_path / "out/verb.json")
    assert done.returncode == 2
    assert "nowhere/EPIC_100_verb_classes.csv: can't be read: No such file" in done.stderr
    assert "tools/prepare_data/epic/README.md says which files are expected where" in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_data_set_has_its_page():
    assert [page.parent.name for page in PAGES] == sorted(OFFICIAL)
    assert all(f"prepare_data/{name}/README.md" in (ROOT / "docs" / "data-sets.md").read_text() for name in OFFICIAL)
