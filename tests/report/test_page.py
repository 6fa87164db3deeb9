"""report.html: one file that needs no other, whatever the run holds, and that a real browser shows whole."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from adatad.report.page import by_step, class_rows, curves, read_lines, write_report
from adatad.spec import load


@pytest.fixture
def run(tiny_spec, tmp_path) -> tuple[Path, object]:
    """A run directory as training leaves it, written by hand."""
    folder = tmp_path / "run"
    folder.mkdir()
    spec = load(tiny_spec, ["published={average_mAP: 69.03}"])
    result = {
        "average_mAP": 0.5, "untrained_average_mAP": 0.01, "mAP": {"0.3": 0.7, "0.5": 0.3}, "epochs": 3, "seconds": 75,
        "ap_per_class": {"<b>pulse</b>": [0.1, 0.2], "blink": [0.8, 0.9]},
    }  # fmt: skip
    found = [{"segment": [1.0, 3.0], "label": "pulse", "score": 0.8}]
    names = [path.stem for path in sorted((Path(spec.data.videos)).glob("*validation*"))]
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "detections.json").write_text(json.dumps({"results": {name: found for name in names}}))
    (folder / "trained.txt").write_text("backbone.blocks.0.adapter.gamma\ndetector.head.cls_head.bias\n")
    lines = [
        {"kind": "train", "step": step, "epoch": 0, "cls_loss": 1 / step, "reg_loss": 0.5, "lr": {"adapter": 1e-3}}
        for step in range(1, 9)
    ]
    lines.append({"kind": "evaluation", "step": 8, "epoch": 1, "average_mAP": 0.5, "mAP": {"0.3": 0.7, "0.5": 0.3}})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "tra')
    return folder, spec


class References(HTMLParser):
    """Everything that a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.urls, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


def parsed(page: Path) -> References:
    parser = References()
    parser.feed(page.read_text())
    return parser


def test_the_page_needs_no_other_file(run):
    page = write_report(*run)
    seen = parsed(page)
    assert seen.urls
    assert all(url.startswith("data:image/png;base64,") for url in seen.urls)
    assert not {"script", "link", "iframe"} & set(seen.tags)
    assert "url(" not in page.read_text()
    assert seen.tags.count("img") == 3 + 2


def test_what_the_page_says(run):
    text = re.sub(r"\s+", " ", parsed(write_report(*run)).text)
    for words in ("50.0 %", "1.0 %", "untrained", "70.0 %", "average mAP after 3 epochs", "1 min 15 s", "69.03"):
        assert words in text
    assert "<b>pulse</b>" in text, "labels are escaped"
    assert "2 trained tensors" in text
    assert "annotations:" in text, "the settings"


def test_a_run_that_has_hardly_begun(run):
    folder, spec = run
    for name in ("result.json", "detections.json", "metrics.jsonl", "trained.txt"):
        (folder / name).unlink()
        text = parsed(write_report(folder, spec)).text
    assert "No evaluation yet" in text


def test_many_videos_are_not_all_on_the_page(run, monkeypatch):
    monkeypatch.setattr("adatad.report.page.MAX_TIMELINES", 1)
    seen = parsed(write_report(*run))
    assert seen.tags.count("img") == 3 + 1
    assert "The first 1 of 2 videos" in re.sub(r"\s+", " ", seen.text)
    assert len(list((run[0] / "timelines").iterdir())) == 2


def test_nan_and_repeated_steps(run):
    folder, spec = run
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n")
        for value in ("NaN", "0.25"):
            line = '{"kind": "train", "step": 4, "epoch": 0, "cls_loss": %s, "reg_loss": 0.5, "lr": {"adapter": 0}}'
            file.write(line % value + "\n")
    steps = by_step(read_lines(folder / "metrics.jsonl"), "train")
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert steps[3]["cls_loss"] == 0.25
    write_report(folder, spec)


def test_curves_that_coincide_are_one_under_both_names():
    lines = [{"step": s, "cls_loss": 1, "reg_loss": 2, "lr": {"a": s, "b": s, "c": 2 * s}} for s in (1, 2, 3)]
    axes = curves(lines, [])[-1].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a, b", "c"]
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[1, 2, 3], [2, 4, 6]]


def test_classes_are_sorted_by_precision():
    rows = class_rows({"ap_per_class": {"a": [0.1, 0.3], "b": [0.5, 0.5]}}, (0.3, 0.5))
    assert [(row["label"], row["average"]) for row in rows] == [("b", 0.5), ("a", pytest.approx(0.2))]


FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000", "--dump-dom",
]  # fmt: skip
PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const images = [...document.images];
  const facts = {loaded: images.filter(i => i.complete && i.naturalWidth > 0).length, images: images.length,
                 wide: document.documentElement.scrollWidth, inner: innerWidth};
  document.documentElement.setAttribute("data-facts", JSON.stringify(facts));
}, 100));
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_real_browser_shows_every_picture_and_needs_no_sideways_scrolling(run, tmp_path, width):
    page = write_report(*run)
    probed = tmp_path / "probed.html"
    # Eager pictures: those below the window load only when scrolled to.
    probed.write_text(page.read_text().replace('loading="lazy"', "") + PROBE)
    command = ["chromium", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    dom = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=120).stdout
    facts = json.loads(re.search(r'data-facts="([^"]*)"', dom)[1].replace("&quot;", '"'))
    assert facts["loaded"] == facts["images"] == 5
    assert facts["wide"] <= facts["inner"]
