"""report.html: one file that needs no other, whatever the run holds; report_in_browser looks at it in a browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folder import make_run

from adatad.report.html_file import FILES
from adatad.report.page import SCRIPTS, STYLES, _file_name, page, try_write_report, write_page, write_report
from adatad.report.timelines import COLOURS
from adatad.spec import load


@pytest.fixture
def run(tiny_spec, tmp_path) -> tuple[Path, object]:
    spec = load(tiny_spec, ["published={average_mAP: 69.03}"])
    return make_run(tmp_path / "run", spec), spec


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures are laid out, but not painted: that takes most of a second for each."""
    monkeypatch.setattr("adatad.report.page.to_png", lambda figure: b"png")


class Parsed(HTMLParser):
    """Everything that a page would fetch, its tags, its text without scripts, and its data."""

    def __init__(self, page: Path | str) -> None:
        super().__init__()
        self.urls, self.tags, self.text, self.data = [], [], "", None
        self._in = ""
        self.feed(page if isinstance(page, str) else page.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self._in = dict(attributes).get("type", tag)

    def handle_data(self, data):
        if self._in == "application/json":
            self.data = json.loads(data)
        elif self._in not in ("module", "style"):
            self.text += data
        self._in = ""


def test_the_page_needs_no_other_file_and_its_policy_forbids_all(run):
    path = write_report(*run)
    parsed, text = Parsed(path), path.read_text()
    assert set(parsed.urls) == {"data:,"}
    assert parsed.tags.count("script") == 2
    assert "url(" not in text
    assert "connect-src" not in text
    assert "default-src 'none'" in text
    strips = [timeline["strip"] for timeline in parsed.data["runs"][0]["timelines"]]
    assert len(strips) == 2
    assert all(strip.startswith("data:image/jpeg;base64,") for strip in strips)
    assert len(list((run[0] / "timelines").iterdir())) == 2


def test_without_scripts_the_page_says_the_score_and_what_to_do_first(run, no_pictures):
    text = re.sub(r"\s+", " ", Parsed(write_report(*run)).text)
    assert "50.0 % average mAP after 3 epochs." in text
    assert "of average mAP" in text
    assert "needs JavaScript" in text


def test_all_files_of_the_page_are_in_it_once_and_end_no_script():
    # What the page of detections and that of comparisons take besides.
    assert {path.name for path in FILES.iterdir()} >= {*(f"{name}.js" for name in SCRIPTS), *STYLES}
    assert not any("</script" in path.read_text() for path in FILES.glob("*.js"))


def test_pictures_and_pages_have_the_same_colours_of_classes():
    style = (FILES / "base.css").read_text().partition("@media")[0]
    assert re.findall(r"--class-\d: (#\w+);", style) == list(COLOURS)


def test_names_on_the_page_are_data(run, no_pictures):
    folder, spec = run
    labels = ["</script><script>alert(1)</script>", "\x1b[31mred", "$x_{$", "two\nlines", "\u202eltr"]
    result = {"average_mAP": 0.5, "ap_per_class": {label: [0.5] for label in labels}}
    result["groups"] = {f"a={label}": {"average_mAP": 0.1, "instances": 2} for label in labels}
    (folder / "result.json").write_text(json.dumps(result))
    text = write_report(folder, spec).read_text()
    assert "\x1b" not in text
    parsed = Parsed(text)
    assert parsed.tags.count("script") == 2
    assert {"\\x1b[31mred", "\\u202eltr", "two\nlines"} <= set(parsed.data["runs"][0]["classes"])


def test_a_picture_that_fails_takes_neither_the_page_nor_the_result_with_it(run, monkeypatch):
    folder, spec = run
    broken = iter([True])

    def to_png(figure):
        if next(broken, False):
            raise ValueError("no such letter")
        return b"png"

    monkeypatch.setattr("adatad.report.page.to_png", to_png)
    line = try_write_report(folder, spec)
    assert re.match(r"not drawn: timeline of '.*': left out: ValueError: no such letter; the results stand", line)
    assert line.endswith(f"adatad report {folder} tries again")
    data = Parsed(folder / "report.html").data["runs"][0]
    assert len(data["timelines"]) == 2
    assert "no such letter" in data["notes"][0]
    assert try_write_report(folder, spec) is None


def test_a_page_that_cannot_be_written_is_a_line(run, no_pictures, monkeypatch):
    folder, spec = run
    (folder / "report.html").mkdir()
    assert try_write_report(folder, spec).startswith(
        f"not drawn: report.html: {folder}/report.html: is no regular file"
    )
    (folder / "report.html").rmdir()
    monkeypatch.setattr("adatad.report.page.script_data", lambda data: 1 / 0)
    assert "not drawn: report.html: ZeroDivisionError: division by zero" in try_write_report(folder, spec)
    assert not (folder / "report.html").exists()


def test_several_runs_are_one_page_that_links_to_no_file_beside_it(run, tmp_path):
    folder, spec = run
    other = make_run(tmp_path / "other", spec)
    data = Parsed(write_page(tmp_path / "new" / "both.html", [(folder, spec), (other, spec)])).data
    assert [one["run"] for one in data["runs"]] == ["run", "other"]
    assert not data["beside"]
    assert not data["live"]


def test_a_live_page_may_ask_its_server_alone():
    assert "connect-src 'self'" in page([], live=True)


def test_videos_of_any_name_have_a_picture_of_their_own():
    taken = set()
    names = ["a", "b/c", "b_c", "x" * 300, "x" * 301, "\0", "\ud800", "..", "\u4e2d" * 100]
    files = [_file_name(name, taken) for name in names]
    assert files[0] == "a"
    assert files[1] == "b_c"
    assert len(set(files)) == len(names)
    assert all("/" not in file and "\0" not in file and len(file.encode()) < 250 for file in files)
