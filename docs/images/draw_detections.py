"""Draws the page of detections as a browser shows it: python docs/images/draw_detections.py

The videos are those of the built-in data set; the detections are made of its labels by moving, doubling and inventing
some, so that no trained model is needed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from adatad.data.prepare.demo import make_demo
from adatad.detect.detections_page import PageVideo, write_page
from adatad.labels.records import Segment, VideoLabels

PICTURE = Path(__file__).with_name("detections.png")
WIDTH, HEIGHT = 1280, 770
NOISE_SEGMENTS = 25


def detections_like(
    rng: np.random.Generator, truth: list[Segment], classes: list[str], duration: float
) -> list[Segment]:
    """Return one to three detections an annotated segment, the first of them good, and some that are noise."""
    found = []

    def add(label: str, start: float, end: float, score: float) -> None:
        start, end = np.clip([start, end], 0, duration)
        if end - start > 0.3:
            found.append(Segment(label, start, end, score))

    for segment in truth:
        length = segment.end_seconds - segment.start_seconds
        for number in range(rng.integers(1, 4)):
            shifts = rng.normal(size=2) * length * (0.1 if number == 0 else 0.45)
            label = segment.label if rng.uniform() > 0.15 * number else str(rng.choice(classes))
            score = rng.beta(9, 2) if number == 0 else rng.beta(2, 5)
            add(label, segment.start_seconds + shifts[0], segment.end_seconds + shifts[1], score)
    for start in rng.uniform(0, duration, NOISE_SEGMENTS):
        add(str(rng.choice(classes)), start, start + rng.uniform(0.5, 4), rng.beta(1, 9))
    return found


def write_example(folder: Path) -> Path:
    """Write videos and their page into a folder; return the page's path."""
    rng = np.random.default_rng(0)
    annotations = make_demo(folder / "demo", train_videos=4, validation_videos=8, seed=3, difficulty="easy")
    database = json.loads(annotations.read_text())["database"]
    classes = sorted({one["label"] for video in database.values() for one in video["annotations"]})
    videos = []
    for name, video in database.items():
        if video["subset"] != "validation":
            continue
        truth = [Segment(one["label"], *one["segment"]) for one in video["annotations"]]
        found = detections_like(rng, truth, classes, video["duration"])
        file = annotations.parent / "videos" / f"{name}.mp4"
        videos.append(PageVideo(VideoLabels(name, tuple(found), str(file), video["duration"]), truth))
    facts = {"model": "tia.safetensors", "classes": str(len(classes)), "frame rate": "8 fps"}
    thresholds = dict(zip(classes, rng.uniform(0.25, 0.4, len(classes)), strict=True))
    return write_page(folder / "detections.html", videos, facts=facts, classes=classes, thresholds=thresholds)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        address = write_example(Path(folder)).as_uri()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(address)
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Shift+ArrowRight"):
            page.keyboard.press(key)
            # Long enough for the video to show where it was sent.
            page.wait_for_timeout(1000)
        # From the heading to the end of the timeline, also where that is below the window.
        end = page.evaluate("document.getElementById('time').getBoundingClientRect().bottom + scrollY")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end + 10}
        page.screenshot(path=PICTURE, full_page=True, clip=clip)
        browser.close()


if __name__ == "__main__":
    main()
