"""The site on a telephone and on a desk: no page is wider than the window, the search finds, nothing is foreign."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adatad.dev.docs.site import build_site

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("zensical", reason="zensical is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]
ROOT = Path(__file__).parents[2]
PAGES = ["", "wave/", "support/", "reference-spec/", "reference-commands/", "model-zoo/", "compat/", "faq/"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    build_site(ROOT, folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [400, 1280])
def test_no_page_is_wider_than_the_window_or_asks_another_host(width, address, browser):
    page = browser.new_page(viewport={"width": width, "height": 900})
    foreign, failed = [], []
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or foreign.append(request.url)
    )
    page.on("response", lambda response: response.ok or failed.append(response.url))
    for name in PAGES:
        page.goto(address + name)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, name
    page.close()
    assert (foreign, failed) == ([], [])


def test_the_search_finds_a_key(address, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.keyboard.press("Control+k")
    page.keyboard.type("segment_blocks")
    page.get_by_role("link", name="segment_blocks").first.wait_for()
    page.close()
