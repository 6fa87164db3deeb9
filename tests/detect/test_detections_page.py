"""The page of detections as a file: its data, addresses of videos, and what is refused."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adatad.detect.detections_page import FILES, SCRIPTS, PageVideo, page_data, page_text, video_url, write_page
from adatad.errors import UserError
from adatad.labels.records import Segment, VideoLabels

FOLDER = Path("/data/out put")
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "]]>",
        '"',
        "&amp;",
        "\u2028",
        "\u05e9\u05dc\u05d5\u05dd",
        "x" * 200,
    ]
)
TIMES = st.floats(0, 1e6)
SEGMENTS = st.builds(
    lambda label, a, b, score: Segment(label, min(a, b), max(a, b), score),
    TEXTS, TIMES, TIMES, st.none() | st.floats(0, 1),
)  # fmt: skip


class Reader(HTMLParser):
    """Collects what a browser would: elements by name, texts of scripts and of the title."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.texts = [], [("", "")]
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append((tag, ""))

    def handle_data(self, data):
        tag, before = self.texts[-1]
        self.texts[-1] = (tag, before + data)

    def handle_endtag(self, tag):
        self.texts.append(("", ""))

    def text(self, name):
        return [text for tag, text in self.texts if tag == name]


def data_of(page: str):
    return json.loads(Reader(page).text("script")[0])


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def labels(name, *segments, **facts):
    return VideoLabels(name, tuple(segments), **facts)


@given(
    st.lists(st.tuples(TEXTS, st.lists(SEGMENTS, max_size=4), st.none() | st.lists(SEGMENTS, max_size=2)), max_size=4)
)
def test_data_of_any_texts_comes_back_as_it_went_in(drawn):
    videos = [PageVideo(labels(name, *found), truth) for name, found, truth in drawn]
    written = page_data(FOLDER / "p.html", videos, (), {})
    data = data_of(page_text("".join(name for name, _, _ in drawn), {}, written))
    assert data == written
    for video, (_, found, truth) in zip(data["videos"], drawn, strict=True):
        assert len(video["segments"]) == len(found)
        assert (video["truth"] is None) == (truth is None)
        expected = sorted((s.start_seconds, s.end_seconds) for s in found)
        assert np.allclose([row[1] for row in video["segments"]], [start for start, _ in expected], rtol=0, atol=6e-4)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_no_text_becomes_an_element_of_the_page(texts):
    video = PageVideo(labels(texts[0], *(Segment(text, 0, 1, 0.5) for text in texts), file=f"a{texts[-1]}"))
    data = page_data(FOLDER / "p.html", [video], texts, {})
    hostile = Reader(page_text("".join(texts), {texts[0]: texts[-1]}, data))
    plain = Reader(page_text("title", {"name": "value"}, {}))
    assert hostile.elements == plain.elements
    assert hostile.text("script")[1] == plain.text("script")[1]


def test_lone_surrogates_and_control_characters_are_written_as_escapes(tmp_path):
    page = write_page(
        tmp_path / "d.html", [PageVideo(labels("a\udcff\x1b", Segment("b\ud800\n", 0, 1)))], title="\udcff"
    )
    data = data_of(read(page))
    assert data["videos"][0]["name"] == "a\\udcff\\x1b"
    assert data["classes"] == ["b\\ud800\\n"]


@given(
    st.lists(
        st.binary(min_size=1, max_size=12).filter(lambda b: not set(b) & {0, 47} and b not in (b".", b"..")),
        min_size=1,
        max_size=3,
    )
)
def test_a_browser_finds_a_file_of_any_name_beside_the_page(names):
    file = FOLDER.joinpath(*(os.fsdecode(name) for name in names))
    url = video_url(file, FOLDER)
    assert not urlsplit(url).scheme
    joined = urljoin(FOLDER.joinpath("detections.html").as_uri(), url)
    assert unquote_to_bytes(urlsplit(joined).path) == os.fsencode(file)
    assert not urlsplit(joined).query + urlsplit(joined).fragment


def test_a_video_below_another_root_has_an_absolute_address():
    assert video_url("/media/disk/a b#c.mp4", Path("/home/me/out")) == "file:///media/disk/a%20b%23c.mp4"
    assert video_url("/home/me/videos/a.mp4", Path("/home/me/out")) == "./../videos/a.mp4"


def test_a_relative_path_is_one_from_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert video_url("videos/a.mp4", Path("out")) == "./../videos/a.mp4"


@pytest.mark.parametrize("address", ["https://host/a.mp4?x=1#t=2", "HTTP://host/a", "file:///a%20b.mp4"])
def test_addresses_stay_as_they_are(address, tmp_path):
    assert video_url(address, tmp_path) == address


def test_a_path_that_looks_like_a_script_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert video_url("javascript:alert(1)", tmp_path) == "./javascript%3Aalert%281%29"


def test_classes_keep_the_given_order_and_others_follow_by_name(tmp_path):
    video = PageVideo(labels("v", Segment("b", 0, 1, 0.5), Segment("z", 0, 1, 0.5)), [Segment("a", 0, 1)])
    data = page_data(tmp_path / "p.html", [video], ["z", "y"], {"z": 0.25, "gone": 0.5})
    assert data["classes"] == ["z", "y", "a", "b"]
    assert data["thresholds"] == [0.25, None, None, None]
    assert data["videos"][0]["truth"] == [[2, 0, 1]]


def test_numbers_of_numpy_are_numbers(tmp_path):
    segment = Segment("a", np.float32(1.5), np.float64(2), np.float32(0.25))
    write_page(
        tmp_path / "p.html",
        [PageVideo(labels("v", segment, duration_seconds=np.float32(4)))],
        thresholds={"a": np.float32(0.5)},
    )
    video = data_of(read(tmp_path / "p.html"))["videos"][0]
    assert (video["segments"], video["duration"]) == ([[0, 1.5, 2, 0.25]], 4)


NAN, INF = float("nan"), float("inf")
BAD = [
    (NAN, 1, 0.5), (0, INF, 0.5), (2, 1, 0.5), (0, 1e12, 0.5), ("0", 1, 0.5), (None, 1, 0.5), (True, 2, 0.5),
    (0, 1, NAN), (0, 1, 1.5), (0, 1, "1"),
]  # fmt: skip


@pytest.mark.parametrize("values", BAD)
def test_values_that_cannot_be_drawn_are_refused_with_the_video_s_name(tmp_path, values):
    page = tmp_path / "p.html"
    with pytest.raises(UserError, match=r"video 'my video': .*'jump'.*expected"):
        write_page(page, [PageVideo(labels("my video", Segment("run", 0, 1, 0.5), Segment("jump", *values)))])
    assert not page.exists()


@pytest.mark.parametrize("value", [NAN, -1, 2, "high", None])
def test_a_threshold_that_is_no_score_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="threshold of 'a'"):
        write_page(tmp_path / "p.html", [], thresholds={"a": value})


@pytest.mark.parametrize("value", [NAN, -1, INF, "long"])
def test_a_duration_that_is_no_time_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="video 'v': expected a duration"):
        write_page(tmp_path / "p.html", [PageVideo(labels("v", duration_seconds=value))])


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    page = read(write_page(tmp_path / "p.html", [PageVideo(labels("v", file="v.mp4"))]))
    for tag, attributes in Reader(page).elements:
        assert tag not in ("link", "iframe", "img", "base", "form")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page


def test_every_script_of_the_folder_is_joined_and_none_ends_its_element():
    assert {path.stem for path in FILES.glob("*.js")} == set(SCRIPTS)
    assert not any("</script" in (FILES / f"{name}.js").read_text() for name in SCRIPTS)
    assert "</style" not in (FILES / "page.css").read_text()
