"""The report page in a real browser: boxes with tips, filters, one look a class, narrow and dark, and live."""

from __future__ import annotations

import json
import threading
import time
from urllib.request import Request, urlopen

import pytest
from run_folder import make_run, train_line, write_lines

from adatad.data.annotations import read_annotations
from adatad.report.page import page, write_page
from adatad.report.run_data import run_data
from adatad.report.serve import Server
from adatad.spec import load

pytestmark = pytest.mark.slow
HOSTILE = ["</script><script>alert(1)</script>", '"a" & <b>b</b>', "\u05e9\u05dc\u05d5\u05dd", "long " * 60]
PAINT = "element => getComputedStyle(element).getPropertyValue('--colour')"


@pytest.fixture(scope="module")
def run(shared_spec, tmp_path_factory):
    """A run whose detections are of the third class; two classes have no instance that was scored."""
    spec = load(shared_spec)
    classes = read_annotations(spec.data).classes
    folder = make_run(tmp_path_factory.mktemp("runs") / "id0", spec, classes[1:3], classes[2])
    return folder, spec


@pytest.fixture(scope="module")
def data(run):
    return run_data(*run)


@pytest.fixture
def opened(browser):
    """A function that opens a page; at the end no error may have been written, and no other file asked for."""
    problems, contexts, asked = [], [], []

    def open_page(address, width=1280, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
    assert len({url for url in asked if url.startswith("file:")}) <= 1
    assert not [url for url in asked if not url.startswith(("file:", "data:", "http://127.0.0.1:"))]


@pytest.fixture(scope="module")
def report(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page([data]))
    return path.as_uri()


def until(tab, condition):
    """Wait until a JavaScript expression is true; the page's policy refuses playwright's own waiting."""
    end = time.monotonic() + 30
    while not tab.evaluate(condition):
        assert time.monotonic() < end, condition
        tab.wait_for_timeout(20)


def set_score(tab, value):
    script = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
    tab.locator("#score").evaluate(script, str(value))


def draw_timelines(tab):
    """Scroll to the timelines, and wait until the browser has told the page that they are seen."""
    tab.locator("#timelines").scroll_into_view_if_needed()
    until(tab, "document.querySelector('.bar.annotated')")


def test_boxes_have_tips_and_the_slider_hides_them(opened, report, data):
    tab = opened(report)
    draw_timelines(tab)
    set_score(tab, 0)
    tab.wait_for_function("document.querySelectorAll('.bar.detected').length === 4")
    assert tab.inner_text("#remain") == "4 of 4 detections shown"
    tab.locator(".bar.detected").first.hover()
    tip = tab.inner_text("#tip").splitlines()
    assert tip == [data["classes"][2], "0:01.0 – 0:03.0, 2.0 s", "score 0.875"]
    set_score(tab, 0.5)
    assert tab.locator(".bar.detected").count() == 2
    set_score(tab, 1)
    assert tab.locator(".bar.detected").count() == 0
    assert "nothing detected" in tab.inner_text(".timeline >> nth=0")
    tab.mouse.move(2, 2)
    assert tab.locator("#tip").is_hidden()


def test_scores_have_a_visible_scale_and_colours_of_their_own_size(opened, report):
    tab = opened(report)
    assert tab.locator(".scale-marks span").all_inner_texts() == ["0", "0.25", "0.5", "0.75", "1"]
    draw_timelines(tab)
    set_score(tab, 0)
    # Bars are made when their video comes near, and anew after the slider has moved.
    tab.wait_for_function("document.querySelectorAll('.bar.detected').length === 4")
    shares = tab.locator(".bar.detected").evaluate_all(
        "bars => bars.map(bar => bar.style.getPropertyValue('--strength'))"
    )
    assert set(shares) == {"89.0%", "34.0%"}


def test_a_class_has_one_look_everywhere(opened, report, data):
    tab = opened(report)
    draw_timelines(tab)
    set_score(tab, 0)
    name = data["classes"][2]
    row = tab.locator("#classes tr", has_text=name)
    button = tab.locator(".class-legend button", has_text=name)
    looks = [
        tab.locator(".bar.detected").first.evaluate(PAINT),
        row.locator(".key").evaluate(PAINT),
        row.locator(".share").evaluate(PAINT),
        button.locator(".key").evaluate(PAINT),
    ]
    assert looks[0]
    assert len(set(looks)) == 1
    bars = tab.locator(".bar").count()
    button.click()
    assert tab.locator(".bar.detected").count() == 0
    assert tab.locator(".bar").count() < bars


def test_classes_without_instances_are_named(opened, report, data):
    tab = opened(report)
    absent = tab.locator("#classes tr", has_text="no instances in validation")
    without = [row for row in data["class_rows"] if row["average"] is None and not row["instances"]]
    assert absent.count() == len(without)
    counts = tab.locator("#classes tbody td:nth-child(2)").all_inner_texts()
    assert counts == [str(row["instances"]) for row in data["class_rows"]]


def test_what_matters_first_stands_first_and_curves_say_their_values(opened, report, data):
    tab = opened(report)
    assert tab.locator("main section:visible h2").first.inner_text() == "What to do first"
    assert tab.locator(".sentences li").all_inner_texts() == data["explained"]["sentences"]
    assert tab.locator(".figure b").all_inner_texts() == ["50.0", "62.5", "1.0"]
    titles = tab.locator("#training figcaption").all_inner_texts()
    assert titles == ["loss", "mAP on validation, %", "learning rate", "gradient norm", "time of a step, seconds"]
    chart = tab.locator("#training .chart").first
    assert "class loss: 1 at step 1, 0.125 at step 8" in chart.locator("svg").first.get_attribute("aria-label")
    chart.locator("svg").first.hover()
    assert "class loss: 0." in tab.inner_text("#tip")
    chart.get_by_role("button", name="class loss").click()
    assert "class loss" not in chart.locator("svg").first.get_attribute("aria-label")


def test_a_run_without_an_evaluation_shows_what_its_training_says(opened, data, tmp_path):
    broken = {"sentences": ["The learning rate is too high."], "training": []}
    path = tmp_path / "broken.html"
    path.write_text(page([{**data, "result": None, "timelines": [], "explained": broken}]))
    tab = opened(path.as_uri())
    assert tab.locator(".sentences li").all_inner_texts() == broken["sentences"]
    assert not tab.locator("#errors").inner_text()


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_scrolls_the_page_sideways_and_tables_say_that_they_scroll(opened, report, width):
    tab = opened(report, width)
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    until(tab, f"document.documentElement.scrollWidth <= {width}")
    hints = tab.locator("#classes .scroll-hint, #timelines .scroll-hint")
    assert hints.count() == 3
    until(
        tab,
        "[...document.querySelectorAll('#timelines .scroll-hint')]"
        f".every(one => one.hidden === {str(width > 700).lower()})",
    )
    # At their natural size: bars stay wide enough to be told apart.
    assert tab.locator(".timeline-area").first.bounding_box()["width"] >= 600


def test_dark_mode_changes_every_colour(opened, report):
    tab = opened(report, color_scheme="light")
    script = """() => [["body", "backgroundColor"], [".card", "backgroundColor"], ["h1", "color"],
      [".bar", "backgroundColor"], [".chart text", "fill"], [".share", "backgroundColor"]]
      .map(([where, what]) => getComputedStyle(document.querySelector(where))[what])"""
    tab.locator("#timelines").scroll_into_view_if_needed()
    until(tab, "document.querySelector('.bar')")
    light = tab.evaluate(script)
    tab.emulate_media(color_scheme="dark")
    assert all(before != after for before, after in zip(light, tab.evaluate(script), strict=True))


def test_names_are_shown_as_they_are(opened, data, tmp_path):
    classes = [*HOSTILE, *data["classes"][len(HOSTILE) :]]
    renamed = {**data, "name": HOSTILE[0], "run": HOSTILE[2], "classes": classes, "trained": HOSTILE, "notes": HOSTILE}
    renamed["timelines"] = [{**one, "name": HOSTILE[3]} for one in data["timelines"]]
    renamed["rank_errors"] = [[HOSTILE[0], HOSTILE[1]]]
    renamed["explained"] = {**data["explained"], "sentences": HOSTILE[:3]}
    path = tmp_path / 'it\'s "50 %41" #1? \u00fc.html'
    path.write_text(page([renamed]))
    tab = opened(path.as_uri(), 400)
    assert tab.title() == f"{HOSTILE[0]} {HOSTILE[2]}"
    assert tab.locator("script").count() == 2
    assert tab.locator(".sentences li").all_inner_texts() == HOSTILE[:3]
    assert HOSTILE[1] in tab.inner_text("#ranks")
    assert set(tab.locator("#classes .name").all_text_contents()) == set(classes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


def test_runs_side_by_side_share_their_charts_and_one_is_chosen(opened, run, tmp_path):
    folder, spec = run
    classes = read_annotations(spec.data).classes
    other = make_run(tmp_path / "id1", spec, classes[:2], classes[0])
    write_page(tmp_path / "both.html", [(folder, spec), (other, spec)])
    tab = opened((tmp_path / "both.html").as_uri())
    assert tab.locator("#figures thead th").all_inner_texts()[1:] == ["tiny id0", "tiny id1"]
    named = tab.locator("#training .chart").nth(1).locator(".curve-legend button").all_text_contents()
    assert named[:2] == ["tiny id0: average", "tiny id1: average"]
    set_score(tab, 0)
    tab.get_by_role("button", name="tiny id1", exact=True).first.click()
    draw_timelines(tab)
    set_score(tab, 0)
    tab.locator(".bar.detected").first.hover()
    assert tab.inner_text("#tip").startswith(classes[0])
    assert "tiny id1" in tab.inner_text("#result h2")


@pytest.fixture
def served(shared_spec, tmp_path):
    """A server of a run that has just begun, in a thread."""
    spec = load(shared_spec)
    folder = tmp_path / "id7"
    folder.mkdir()
    server = Server([(folder, spec)])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, folder, spec
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_live_page_follows_a_run_without_being_loaded_again(opened, served):
    server, folder, spec = served
    tab = opened(server.address, height=500)
    assert "has just begun" in tab.inner_text(".status")
    tab.evaluate("window.mark = 1")
    write_lines(folder, [train_line(1), train_line(2)])
    until(tab, "document.querySelector('#training .chart')")
    classes = read_annotations(spec.data).classes
    make_run(folder, spec, classes[1:3], classes[2])
    until(tab, "document.querySelectorAll('.timeline').length === 2")
    set_score(tab, 0.5)
    tab.locator("#settings summary").first.click()
    tab.locator("#timelines").scroll_into_view_if_needed()
    top = "document.getElementById('timelines').getBoundingClientRect().top"
    before = tab.evaluate(top)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n")
    write_lines(folder, [train_line(9, tokens=3.0)], "a")
    until(tab, "document.querySelector('.status').textContent.includes('step 9')")
    assert tab.inner_text("#training figcaption >> nth=-1") == "tokens"
    assert tab.evaluate(top) == pytest.approx(before, abs=2)
    assert tab.locator("#score").input_value() == "0.5"
    assert tab.locator("#settings details").first.get_attribute("open") is not None
    assert tab.evaluate("window.mark") == 1


def test_the_server_answers_its_own_page_alone(served):
    server, folder, _ = served

    def status(path, method="GET", **headers):
        try:
            with urlopen(Request(server.address + path, method=method, headers=headers), timeout=30) as answer:
                return answer.status
        except OSError as error:
            return error.code

    assert status("") == 200
    assert status("", Host="evil.example") == 403
    assert status("", Host=f"localhost:{server.server_port}") == 200
    assert status("", "POST") == 501
    write_lines(folder, [train_line(1)])
    for path in ("metrics.jsonl", "../id7/metrics.jsonl", "%2e%2e/", "picture-0.jpg"):
        assert status(path) == 404
    with urlopen(server.address + "data.json", timeout=30) as answer:
        tag, content = answer.headers["ETag"], json.load(answer)
    assert content["runs"][0]["progress"]["step"] in (None, 1)
    assert status("data.json", **{"If-None-Match": '"another"'}) == 200
    assert tag
