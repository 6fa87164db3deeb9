"""The page of detections in a real browser: plays, seeks, filters, and stays readable."""

from __future__ import annotations

import csv
import io
import shutil
import time

import numpy as np
import pytest

from adatad.data.prepare.demo import FPS, write_video
from adatad.detect.detections_page import PageVideo, write_page
from adatad.labels.records import Segment, VideoLabels

pytestmark = pytest.mark.slow
SECONDS = 12
HOSTILE = "</script><script>alert(1)</script>"
LABELS = ["jump", HOSTILE, '"a" & b', "\u05e9\u05dc\u05d5\u05dd", "long " * 40]
FOUND = (
    Segment("jump", 2.0, 4.0, 1.0),
    Segment("jump", 6.0, 7.0, 0.3),
    Segment(HOSTILE, 5.0, 8.0, 0.9),
    Segment('"a" & b', 5.5, 9.0, 0.6),
    Segment("\u05e9\u05dc\u05d5\u05dd", 9.0, 10.0, 0.2),
    Segment("long " * 40, 10.0, 11.0, 0.7),
)
ANNOTATED = (Segment("jump", 2.5, 4.0), Segment("jump", 10.5, 11.5))
THRESHOLDS = dict.fromkeys(LABELS, 0.5)
# Finds what is drawn in exactly a colour of the style sheet; a segment with score 1 is, as it has no transparency.
CENTRE_OF_COLOUR = """name => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const wanted = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
  const canvas = document.getElementById("bars"), frame = canvas.getBoundingClientRect();
  const {data, width, height} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0, x = 0, y = 0;
  for (let at = 0; at < width * height; at++) {
    if (wanted.some((value, part) => data[4 * at + part] !== value)) continue;
    count++; x += at % width; y += Math.floor(at / width);
  }
  const ratio = width / frame.width;
  return count ? {x: frame.left + x / count / ratio, y: frame.top + y / count / ratio} : null;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a page of three videos: one whose file has an odd name, a second one, and one that is missing."""
    folder = tmp_path_factory.mktemp("detections")
    frames = np.zeros((SECONDS * FPS, 48, 64, 3), np.uint8)
    for number in range(len(frames)):
        frames[number, :, : 1 + number % 64] = 255
    odd = folder / 'it\'s "50 %41" #1?\n\u00fc.mp4'
    write_video(odd, frames)
    shutil.copy(odd, folder / "second.mp4")
    write_page(
        folder / "detections.html",
        [
            PageVideo(VideoLabels(HOSTILE, FOUND, str(odd), float(SECONDS)), ANNOTATED),
            PageVideo(VideoLabels("second", FOUND[:1], str(folder / "second.mp4"), float(SECONDS))),
            PageVideo(VideoLabels("missing", FOUND[:3], str(folder / "gone.avi"), float(SECONDS))),
        ],
        title=f"Detections {HOSTILE}",
        facts={"model": HOSTILE},
        classes=LABELS,
        thresholds=THRESHOLDS,
    )
    return folder


@pytest.fixture
def opened(browser, folder):
    """A function that opens the page in a window of some size; at the end no error may have been written."""
    problems, contexts = [], []

    def open_page(width=1280, height=1000, file="detections.html", **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
        page.goto((folder / file).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    # A missing video is one of the cases; the browser itself writes this.
    assert [line for line in problems if "ERR_FILE_NOT_FOUND" not in line] == []


def until(page, condition):
    """Wait until a JavaScript expression is true. By asking again: the page's policy refuses what a browser evaluates
    from a text, which playwright's own waiting does."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def ready(page):
    until(page, "document.getElementById('video').readyState >= 2")
    return page


def time_of(page):
    return page.evaluate("document.getElementById('video').currentTime")


def is_paused(page):
    return page.evaluate("document.getElementById('video').paused")


def set_score(page, value):
    script = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
    page.locator("#score").evaluate(script, str(value))


def rows_of(page):
    return page.locator("#segment-list [role=row] .name").all_inner_texts()


def test_a_clicked_segment_is_played_from_its_start(opened):
    page = ready(opened())
    place = page.evaluate(CENTRE_OF_COLOUR, "--class-0")
    page.mouse.click(place["x"], place["y"])
    until(page, "!document.getElementById('video').paused && document.getElementById('video').currentTime > 2.05")
    page.keyboard.press("Space")
    assert 2 <= time_of(page) < 5
    assert page.locator("#segment-list .active .name").inner_text() == "jump"
    assert page.locator("#now bdi").all_inner_texts() == ["jump"]


def test_a_tap_on_a_segment_plays_it_and_one_beside_it_seeks(opened):
    page = ready(opened(400, 860, has_touch=True, is_mobile=True))
    page.locator("#timeline").scroll_into_view_if_needed()
    place = page.evaluate(CENTRE_OF_COLOUR, "--class-0")
    page.touchscreen.tap(place["x"], place["y"])
    until(page, "document.getElementById('video').currentTime > 2.05")
    page.tap("#play")
    until(page, "document.getElementById('video').paused")
    frame = page.locator("#timeline").bounding_box()
    page.touchscreen.tap(frame["x"] + frame["width"] / 2, frame["y"] + 20)
    assert time_of(page) == pytest.approx(SECONDS / 2, abs=0.5)


def test_space_plays_and_pauses_also_after_a_button_was_clicked(opened):
    page = ready(opened())
    page.click("#next")
    page.keyboard.press("Space")
    until(page, "!document.getElementById('video').paused")
    page.keyboard.press("Space")
    until(page, "document.getElementById('video').paused")
    # Not back at the start, where a stop would have put it.
    assert time_of(page) > 0


def test_arrows_go_to_segments_and_with_shift_by_a_second(opened):
    page = ready(opened())
    times = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowLeft"):
        page.keyboard.press(key)
        times.append(time_of(page))
    assert times == pytest.approx([2, 5, 2, 3, 4, 3])
    assert is_paused(page)


def test_a_click_beside_segments_seeks_there(opened):
    page = ready(opened())
    frame = page.locator("#timeline").bounding_box()
    # Beside the playhead's time, in the axis, where no segment is.
    page.mouse.click(frame["x"] + frame["width"] - 16, frame["y"] + 20)
    assert time_of(page) == pytest.approx(SECONDS, abs=0.2)
    assert is_paused(page)
    assert float(page.get_attribute("#timeline", "aria-valuenow")) == pytest.approx(SECONDS, abs=0.2)


def test_check_boxes_choose_classes(opened):
    page = opened()
    assert rows_of(page) == ["jump", HOSTILE, '"a" & b', ("long " * 40).strip()]
    page.locator("#classes input").nth(1).click()
    assert rows_of(page) == ["jump", '"a" & b', ("long " * 40).strip()]
    page.click("#classes-none")
    assert rows_of(page) == []
    assert "No segment passes" in page.inner_text("#timeline-none")
    page.click("#classes-all")
    assert len(rows_of(page)) == 4


def test_the_slider_begins_with_the_model_s_thresholds_and_filters_at_once(opened):
    page = opened()
    assert page.inner_text("#score-value") == "as detected, 0.50"
    assert page.inner_text("#remain") == "4 of 6 segments shown"
    set_score(page, 0.25)
    assert page.inner_text("#remain") == "5 of 6 segments shown"
    assert "9 segments shown" in page.inner_text("#totals")
    set_score(page, 1)
    assert rows_of(page) == ["jump"]
    page.click("#score-model")
    assert page.inner_text("#remain") == "4 of 6 segments shown"
    page.focus("#score")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#score-value") == "at least 0.49"


def test_names_are_shown_as_they_are(opened):
    page = opened()
    assert page.inner_text("h1") == f"Detections {HOSTILE}"
    assert page.title() == f"Detections {HOSTILE}"
    assert page.inner_text("dd") == HOSTILE
    assert page.inner_text("#video-name") == HOSTILE
    assert page.locator("#classes .name").all_inner_texts()[:4] == LABELS[:4]
    assert page.locator("script").count() == 2


def test_dark_mode_changes_every_colour(opened):
    page = opened(color_scheme="light")
    script = """() => [["body", "backgroundColor"], [".card", "backgroundColor"], ["h1", "color"], ["button", "color"]]
      .map(([where, what]) => getComputedStyle(document.querySelector(where))[what])"""
    light = page.evaluate(script)
    assert page.evaluate(CENTRE_OF_COLOUR, "--class-0") is not None
    page.emulate_media(color_scheme="dark")
    assert all(before != after for before, after in zip(light, page.evaluate(script), strict=True))
    # The canvas is drawn again, in the colours of the other scheme.
    until(page, f"({CENTRE_OF_COLOUR})('--class-0') !== null")


@pytest.mark.parametrize("width", [320, 400, 800, 1280])
def test_nothing_scrolls_sideways_at_any_width(opened, width):
    page = opened(width, 800)
    set_score(page, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, #clock, h2")]
          .filter(e => e.offsetParent && e.getBoundingClientRect().right > innerWidth).map(e => e.id)"""
    )
    assert cut == []


def test_several_videos_are_switched_by_keys_by_click_and_found_by_name(opened):
    page = ready(opened())
    page.keyboard.press("n")
    assert page.inner_text("#video-name") == "second"
    assert rows_of(page) == ["jump"]
    ready(page)
    assert page.evaluate("document.getElementById('video').src").endswith("/second.mp4")
    page.keyboard.press("p")
    assert page.inner_text("#video-name") == HOSTILE
    page.fill("#video-search", "MISS")
    assert page.locator("#video-list .name").all_inner_texts() == ["missing"]
    page.click("#video-list [role=option]")
    assert page.inner_text("#video-name") == "missing"


def test_a_video_that_does_not_play_is_said_and_the_timeline_works(opened, folder):
    page = opened()
    page.keyboard.press("n")
    page.keyboard.press("n")
    page.wait_for_selector("#message:not([hidden])")
    assert "can't play" in page.inner_text("#message")
    assert "gone.avi" in page.inner_text("#message")
    assert page.is_disabled("#play")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#clock") == "0:02.0 / 0:12.0"
    # The file is elsewhere now: it goes on where it was.
    page.set_input_files("#choose-file", folder / "second.mp4")
    ready(page)
    assert page.is_hidden("#message")
    assert time_of(page) == pytest.approx(2)
    assert page.is_enabled("#play")


def test_the_table_is_sorted_by_score_and_its_rows_play(opened):
    page = ready(opened())
    page.click("[data-sort=score]")
    assert rows_of(page) == ["jump", HOSTILE, ("long " * 40).strip(), '"a" & b']
    assert page.get_attribute("[data-sort=score]", "aria-sort") == "descending"
    page.click("[data-sort=score]")
    assert rows_of(page)[0] == '"a" & b'
    page.locator("#segment-list [role=row]").nth(0).click()
    until(page, "!document.getElementById('video').paused && document.getElementById('video').currentTime >= 5.5")
    overlaps = page.locator("#segment-list .cells > :last-child").all_inner_texts()
    assert overlaps == ["0.00", "0.00", "0.00", "0.75"]


def test_the_downloaded_list_has_what_is_shown(opened):
    page = opened()
    page.locator("#classes input").nth(0).click()
    for button, expected in (("#csv-video", 3), ("#csv-all", 4)):
        with page.expect_download() as download:
            page.click(button)
        rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
        assert len(rows) == expected
        assert list(rows[0]) == ["video", "label", "start_seconds", "end_seconds", "score"]
        assert list(rows[0].values()) == [HOSTILE, HOSTILE, "5", "8", "0.9"]
        assert rows[1]["label"] == '"a" & b'


def test_zoom_shows_a_part_and_fit_the_whole(opened):
    page = ready(opened())
    assert page.is_hidden("#overview")
    for _ in range(4):
        page.keyboard.press("+")
    page.wait_for_selector("#overview:not([hidden])")
    # The segment at 2 seconds lies behind the part that is seen; the next one brings it.
    assert page.evaluate(CENTRE_OF_COLOUR, "--class-0") is None
    page.keyboard.press("ArrowRight")
    until(page, f"({CENTRE_OF_COLOUR})('--class-0') !== null")
    page.click("#zoom-fit")
    page.wait_for_selector("#overview", state="hidden")


def test_thousands_of_segments_and_hundreds_of_videos_are_few_elements(opened, folder):
    rng = np.random.default_rng(0)
    starts, scores = rng.uniform(0, 3600, 4000), rng.uniform(0, 1, 4000)
    many = tuple(
        Segment(f"class {number % 30}", float(start), float(start) + 5, float(score))
        for number, (start, score) in enumerate(zip(starts, scores, strict=True))
    )
    videos = [PageVideo(VideoLabels(f"video {number}", many[: 4000 if number == 0 else 50])) for number in range(500)]
    write_page(folder / "many.html", videos)
    page = opened(file="many.html")
    assert page.inner_text("#remain") == "4,000 of 4,000 segments shown"
    assert page.evaluate("document.querySelectorAll('*').length") < 1500
    page.locator("#segment-list").evaluate("box => { box.scrollTop = box.scrollHeight; }")
    until(page, "document.getElementById('segment-list-3999') !== null")
    set_score(page, 0.9)
    assert page.inner_text("#table-count") == f"{(scores >= 0.9).sum()}"


def test_everything_is_named_and_the_keyboard_s_place_is_seen(opened):
    page = opened()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, [tabindex='0'], nav, section")].filter(e =>
          !(e.ariaLabel || e.innerText.trim() || e.labels?.[0]?.innerText.trim())).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.type"))
        assert page.evaluate(
            """() => [document.activeElement, document.activeElement.closest("label")].some(e =>
              e && getComputedStyle(e).outlineStyle === "solid" && getComputedStyle(e).outlineWidth === "2px")"""
        ), seen
    assert {"play", "video-search", "score"} <= seen
