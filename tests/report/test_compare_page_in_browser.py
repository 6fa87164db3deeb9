"""The page of a comparison in a real browser: names are text, curves say their values, a phone shows it all."""

from __future__ import annotations

import pytest
from compared_runs import VIDEOS, annotations, write_run

from adatad.cli.main import main

pytestmark = pytest.mark.slow
HOSTILE = '<img src=x onerror=alert(1)> "\u05e9" ' + "long" * 20


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    truth = annotations(folder)
    runs = [
        write_run(folder / "a" / "id0", truth, 0.9),
        write_run(folder / HOSTILE / "id0", truth, 0.5, VIDEOS // 2, "postprocess: {nms: {sigma: 0.4}}\n"),
        write_run(folder / "c" / "id0", truth, 0.9),
    ]
    output = folder / "a page.html"
    assert main(["compare", *map(str, runs), "--output", str(output)]) == 0
    return output


@pytest.fixture
def opened(browser, page_file):
    """A function that opens the page; at the end no error may have been written, and nothing fetched."""
    problems, contexts = [], []

    def open_page(width=1100, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: problems.append(request.url) if request.url != page_file.as_uri() else None)
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def test_verdicts_keys_and_names_stand_there_as_text(opened):
    page = opened()
    text = page.inner_text("body")
    assert f"{HOSTILE}/id0 is worse than a/id0" in text
    assert "c/id0 and a/id0 score the same" in text
    assert "postprocess.nms.sigma" in text
    assert page.locator("img").count() == 0


def test_curves_and_intervals_say_their_values_under_the_pointer(opened):
    page = opened()
    assert page.locator("#charts svg[role=img]").count() == 1
    page.locator("#charts svg[role=img]").hover()
    assert "step 20" in page.inner_text("#tip")
    page.locator(".interval").first.hover()
    assert "of the draws" in page.inner_text("#tip")
    assert page.inner_text("#tip").startswith("average")


def test_classes_are_listed_on_demand(opened):
    page = opened()
    assert not page.locator("details td", has_text="pour").first.is_visible()
    page.locator("summary").first.click()
    assert page.locator("details td", has_text="pour").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(opened, scheme):
    page = opened(400, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    colours = page.evaluate("[document.body, document.querySelector('h1')].map(e => getComputedStyle(e).color)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background not in colours
