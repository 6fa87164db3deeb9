"""The site on a telephone and on a desk: no page is wider than the window, the search finds, nothing is foreign."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("zensical", reason="zensical is not installed")
pytestmark = pytest.mark.slow
PAGES = {400: ["", "wave/", "support/", "reference-spec/", "compat/"], 1280: ["", "support/"]}
"""By the width of the window."""
WIDE = """() => {
  const scrolls = (e) => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const inside = [...document.querySelectorAll(".md-content *")];
  return inside.filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
    .map((e) => `${e.tagName} ${e.textContent.slice(0, 60)}`);
}"""
"""What of a page's content goes over its right border and can't be scrolled by itself, as tables and code can."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture(scope="module")
def address(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("width", PAGES)
def test_no_page_is_wider_than_the_window_or_asks_another_host(width, address, browser):
    page = browser.new_page(viewport={"width": width, "height": 900})
    foreign, failed = [], []
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or foreign.append(request.url)
    )
    page.on("response", lambda response: response.status < 400 or failed.append(response.url))
    for name in PAGES[width]:
        page.goto(address + name)
        assert page.evaluate(WIDE) == [], name
    # That something wide is seen.
    page.evaluate("document.querySelector('.md-content p').style.width = '2000px'")
    assert len(page.evaluate(WIDE)) > 0
    page.close()
    assert (foreign, failed) == ([], [])


def test_the_search_finds_a_key(address, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address, wait_until="networkidle")
    page.keyboard.press("Control+k")
    page.keyboard.type("segment_blocks")
    # Results come while one types, so what stands first may be for half of the word: the key's own entry is waited for.
    page.locator("a[href*='#memorysegment_blocks']").first.click()
    page.wait_for_url("**/reference-spec/**#memorysegment_blocks")
    assert page.locator("#memorysegment_blocks").is_visible()
    page.close()
