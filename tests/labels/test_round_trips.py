"""Labels written in any form come back, as far as the form can hold it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_samples import TRICKY_LABELS, close, is_label, segments

from adatad.labels.forms import COUNTED_IN_FRAMES, FORMS, OF_ONE_VIDEO, read_labels, write_labels
from adatad.labels.problems import LabelError
from adatad.labels.records import Segment, VideoLabels

FPS = 25.0
IN_FRAMES = sorted(COUNTED_IN_FRAMES - {"cvat"})
IN_TIMES = sorted(set(FORMS) - COUNTED_IN_FRAMES - {"srt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("forms")


def through(form, videos, folder, name="k0", **options):
    path = folder / (name + FORMS[form])
    path.write_text(write_labels(form, videos), encoding="utf-8")
    return read_labels(path, **options)


@pytest.mark.parametrize("form", IN_TIMES)
@given(segments=segments())
def test_labels_come_back(form, segments, folder):
    video = VideoLabels("k0", segments, fps=FPS)
    # A table without a row says nothing of its video.
    if not segments and form in ("csv", "tsv"):
        return
    found = through(form, [video], folder)
    assert [one.name for one in found] == ["k0"]
    assert close(found[0], video)


@given(segments=segments())
def test_srt_comes_back_but_for_its_own_signs(segments, folder):
    plain = tuple(replace(s, label=s.label.replace("-->", "to").replace("<", "(").replace(">", ")")) for s in segments)
    if plain:
        assert close(through("srt", [VideoLabels("k0", plain)], folder)[0], VideoLabels("k0", plain))


@pytest.mark.parametrize("form", IN_FRAMES)
@given(segments=segments(step_seconds=1 / FPS))
def test_labels_in_frames_come_back(form, segments, folder):
    video = VideoLabels("k0", segments, fps=FPS)
    # Without a segment nothing needs a rate, and nothing tells whose form a list is.
    if segments:
        (found,) = through(form, [video], folder)
        assert close(found, video)
        assert found.fps == FPS


@given(labels=st.lists(st.sampled_from(TRICKY_LABELS), min_size=1, max_size=5))
def test_tags_of_frames_come_back_but_for_scores(labels, folder):
    # A class may overlap others; its own segments would become one.
    rows = tuple(Segment(label, n * 2, n * 2 + 1 + (label not in labels[n + 1 :])) for n, label in enumerate(labels))
    video = VideoLabels("k0", rows, fps=FPS)
    (found,) = through("cvat", [video], folder, fps=FPS)
    assert close(found, video)


@pytest.mark.parametrize("form", sorted(set(FORMS) - OF_ONE_VIDEO))
def test_several_videos_come_back(form, folder):
    videos = [VideoLabels(name, (Segment("pour", 1, 2), Segment("stir", 1, 3)), fps=FPS) for name in ("k0", "day2/k1")]
    found = through(form, videos, folder, "several")
    # VIA knows a local file by its name alone.
    assert [video.name for video in found] == ["k0", "k1" if form == "via" else "day2/k1"]
    assert all(close(*pair) for pair in zip(found, videos, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "file", ["/data/my clips/ä #1 100%?.mp4", "C:\\data\\clip one.mp4", "https://host/v/k%200.mp4", "clip one.mp4"]
)
def test_names_of_videos_survive(form, file, folder):
    name = {"/": "ä #1 100%?", "C": "clip one", "h": "k 0", "c": "clip one"}[file[0]]
    video = VideoLabels(name, (Segment("pour", 1, 2),), file=file, fps=FPS)
    # Subtitles name no video: theirs is the one that is called as the file.
    found = through(form, [video], folder, "other", fps=FPS)
    assert found[0].name == ("other" if form in ("srt", "vtt") else name)


@pytest.mark.parametrize("form", FORMS)
def test_each_tricky_label_comes_back(form, folder):
    score = None if form == "cvat" else 0.5
    rows = tuple(Segment(label, n, n + 1, score) for n, label in enumerate(TRICKY_LABELS))
    if form == "srt":
        rows = tuple(row for row in rows if "-->" not in row.label and "<" not in row.label)
    video = VideoLabels("k0", rows, fps=FPS)
    assert close(through(form, [video], folder, fps=FPS)[0], video)


@given(form=st.sampled_from(sorted(FORMS)), label=st.text(min_size=1, max_size=8), name=st.text(min_size=1, max_size=8))
def test_any_label_and_name_are_read_or_refused(form, label, name, folder):
    try:
        video = VideoLabels(name, (Segment(label, 1, 2),), fps=FPS)
        found = through(form, [video], folder, fps=FPS)
    except LabelError:
        found = None
    # What is no label for training may be refused; a label never is.
    assert found or not (is_label(label) and is_label(name))
    assert found is None or len(found[0].segments) == 1


@pytest.mark.parametrize("form", IN_FRAMES)
def test_without_a_rate_frames_are_refused_and_with_one_it_is_said(form, folder):
    text = write_labels(form, [VideoLabels("k0", (Segment("pour", 1, 2), Segment("stir", 3, 4)), fps=FPS)])
    path = folder / "rateless.json"
    path.write_text(text.replace('"fps": 25.0', '"other": 25.0'))
    with pytest.raises(LabelError, match=r"k0.*frame rate isn't known; give it") as caught:
        read_labels(path)
    assert len(caught.value.problems) == 1
    (found,) = read_labels(path, fps=lambda video: 50.0)
    assert found.segments[0] == Segment("pour", 0.5, 1.0)
    path.write_text(text)
    notes = []
    read_labels(path, fps=30, notes=notes)
    assert any("k0 (at 30 a second, the file says 25)" in note for note in notes)


def test_what_detect_writes_is_what_training_reads(folder):
    video = VideoLabels("k0", (Segment("pour", 0.123456789, 2.5, 0.87654321),), None, 33.5, 29.97, 1004, "validation")
    content = json.loads(write_labels("activitynet", [video]))
    assert content["database"]["k0"]["annotations"] == [
        {"segment": [0.123456789, 2.5], "label": "pour", "score": 0.87654321}
    ]
    (found,) = through("activitynet", [video], folder)
    assert (found.segments, found.fps, found.frame_count, found.subset) == (video.segments, 29.97, 1004, "validation")
