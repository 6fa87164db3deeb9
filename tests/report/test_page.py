"""report.html: one file that needs no other, whatever the run holds, and that a real browser shows whole."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from adatad.data.annotations import read_annotations
from adatad.report.page import _file_name, class_rows, curves, try_write_report, write_report
from adatad.report.run_files import by_step, read_metrics
from adatad.report.timelines import class_style
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


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures are laid out, but not painted: that takes most of a second for each."""
    monkeypatch.setattr("adatad.report.page.to_png", lambda figure: b"png")


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


def test_what_the_page_says(run, no_pictures):
    text = re.sub(r"\s+", " ", parsed(write_report(*run)).text)
    for words in ("50.0 %", "1.0 %", "untrained", "70.0 %", "average mAP after 3 epochs", "1 min 15 s", "69.03"):
        assert words in text
    assert "<b>pulse</b>" in text, "labels are escaped"
    assert "2 trained tensors" in text
    assert "annotations:" in text, "the settings"


def test_a_run_that_has_hardly_begun(run, no_pictures):
    folder, spec = run
    for name in ("result.json", "detections.json", "metrics.jsonl", "trained.txt"):
        (folder / name).unlink()
        text = parsed(write_report(folder, spec)).text
    assert "No evaluation yet" in text


def test_many_videos_are_not_all_on_the_page(run, no_pictures, monkeypatch):
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
    steps = by_step(read_metrics(folder / "metrics.jsonl", ["cls_loss"]).train)
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert steps[3]["cls_loss"] == 0.25
    write_report(folder, spec)


def test_curves_that_coincide_are_one_under_both_names():
    lines = [{"step": s, "cls_loss": 1, "reg_loss": 2, "lr": {"a": s, "b": s, "c": 2 * s}} for s in (1, 2, 3)]
    axes = curves(lines, [])[-1].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a, b", "c"]
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[1, 2, 3], [2, 4, 6]]


def test_classes_are_sorted_by_precision():
    rows = class_rows({"ap_per_class": {"a": [0.1, 0.3], "b": [0.5, 0.5]}})
    assert [(row["label"], row["average"]) for row in rows] == [("b", 0.5), ("a", pytest.approx(0.2))]


def test_classes_have_one_colour_on_the_whole_page_and_none_is_missing(run, no_pictures):
    folder, spec = run
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"classes": None})})
    classes = read_annotations(spec.data).classes
    result = {"average_mAP": 0.5, "ap_per_class": {classes[2]: [0.1, 0.2], classes[1]: [0.8, 0.9]}}
    (folder / "result.json").write_text(json.dumps(result))
    rows = class_rows(result, classes)
    assert [row["colour"] for row in rows] == [class_style(classes, row["label"])[0] for row in rows]
    assert [row["label"] for row in rows] == [classes[1], classes[2], *(c for c in classes if c not in classes[1:3])]
    text = parsed(write_report(folder, spec)).text
    assert text.count("no instances in validation") == len(classes) - 2


BAD_TEXTS = ["", "{", "[]", "3", "null", "\0", "[" * 9999, '{"average_mAP": {}}', '{"a": 1, "a": 2}', '{"results": []}']


@pytest.mark.parametrize("name", ["result.json", "detections.json", "metrics.jsonl", "trained.txt"])
def test_damaged_files_cost_their_part_of_the_page_and_are_named(run, monkeypatch, name):
    folder, spec = run
    monkeypatch.setattr("adatad.report.page.validation_timelines", lambda *_, **__: iter(()))
    monkeypatch.setattr("adatad.report.page.curves", lambda steps, evaluations: [])
    (folder / name).unlink()
    lines = []
    for content in [text.encode() for text in BAD_TEXTS] + [b"\xff\xfe\x00", b"\x80abc", b"\x1f\x8b"]:
        (folder / name).write_bytes(content)
        lines.append([])
        write_report(folder, spec, lines[-1].append)
    (folder / name).unlink()
    (folder / name).mkdir()
    lines.append([])
    page = write_report(folder, spec, lines[-1].append)
    assert re.search(rf"{name}: [^\n]*a folder[^\n]*left out", parsed(page).text)
    # Without an end the last line is being written; an empty or unread list of names is fine.
    expected = {"metrics.jsonl": 1, "trained.txt": 3}.get(name, len(BAD_TEXTS) + 4)
    assert sum(map(bool, lines)) >= expected
    assert all(name in line and "Traceback" not in line for said in lines for line in said)


def test_names_on_the_page_are_data(run, no_pictures):
    folder, spec = run
    labels = ["<script>alert(1)</script>", "\x1b[31mred", "$x_{$", "two\nlines"]
    groups = {f"a={label}": {"average_mAP": 0.1, "instances": 2} for label in labels}
    result = {"average_mAP": 0.5, "ap_per_class": {label: [0.5] for label in labels}, "groups": groups}
    (folder / "result.json").write_text(json.dumps(result))
    page = write_report(folder, spec)
    assert "\x1b" not in page.read_text()
    assert "script" not in parsed(page).tags
    assert parsed(page).text.count("\\x1b[31mred") == 2


def test_lines_of_metrics_that_lack_a_key_are_counted(run, no_pictures):
    folder, spec = run
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '\n[]\n{"kind": "train", "step": 9}\n{"kind": "evaluation", "step": 9, "average_mAP": 1, "mAP": 3}\n'
        )
        file.write('{"kind": "another", "step": 9}\n')
    lines = []
    write_report(folder, spec, lines.append)
    assert lines == [f"{folder / 'metrics.jsonl'}: 4 lines can't be read or lack a key; left out"]


def test_a_picture_that_fails_takes_neither_the_others_nor_the_result_with_it(run, monkeypatch):
    folder, spec = run
    broken = iter([True])

    def to_png(figure):
        if next(broken, False):
            raise ValueError("no such letter")
        return b"png"

    monkeypatch.setattr("adatad.report.page.to_png", to_png)
    line = try_write_report(folder, spec)
    assert line.startswith("not drawn: a curve: left out: ValueError: no such letter")
    assert line.endswith(f"the results stand; adatad report {folder} tries again")
    assert parsed(folder / "report.html").tags.count("img") == 3 + 2 - 1
    monkeypatch.setattr("adatad.report.page.to_png", lambda figure: b"png")
    assert try_write_report(folder, spec) is None


def test_a_page_that_cannot_be_written_is_a_line(run, no_pictures, monkeypatch):
    folder, spec = run
    (folder / "report.html").mkdir()
    assert try_write_report(folder, spec).startswith(
        f"not drawn: report.html: {folder}/report.html: is no regular file"
    )
    (folder / "report.html").rmdir()
    monkeypatch.setattr("adatad.report.page.to_yaml", lambda spec: 1 / 0)
    assert "not drawn: report.html: ZeroDivisionError: division by zero" in try_write_report(folder, spec)


def test_a_report_without_its_annotations(run, no_pictures, tmp_path):
    folder, spec = run
    moved = spec.model_copy(update={"data": spec.data.model_copy(update={"annotations": str(tmp_path / "gone.json")})})
    lines = []
    assert "50.0 %" in parsed(write_report(folder, moved, lines.append)).text
    assert len(lines) == 1
    assert "gone.json" in lines[0]


def test_videos_of_any_name_have_a_picture_of_their_own():
    taken = set()
    names = ["a", "b/c", "b_c", "x" * 300, "x" * 301, "\0", "\ud800", "..", "\u4e2d" * 100]
    files = [_file_name(name, taken) for name in names]
    assert files[0] == "a"
    assert files[1] == "b_c"
    assert len(set(files)) == len(names)
    assert all("/" not in file and "\0" not in file and len(file.encode()) < 250 for file in files)


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
