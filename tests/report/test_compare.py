"""Runs side by side."""

import json
from pathlib import Path

import pytest

from adatad.cli.main import main
from adatad.report.compare import CompareError, compare_runs


def write_run(folder, average):
    folder.mkdir(parents=True)
    lines = [{"kind": "evaluation", "step": s, "epoch": s, "average_mAP": average * s / 4, "mAP": {}} for s in (0, 4)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = {"average_mAP": average, "untrained_average_mAP": None, "seconds": 90}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_results_are_printed_and_drawn(tmp_path, capsys):
    runs = [write_run(tmp_path / "a" / "id0", 0.5), write_run(tmp_path / "b" / "id1", 0.75)]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "c.png")]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("a/id0", "50.00", "b/id1", "75.00", "1.5"))
    assert "which run is better can't be said" in out, "these runs have no detections"
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["c.pdf", "c", "c.json"])
def test_an_output_that_would_be_no_page_of_that_name_is_refused(tmp_path, capsys, name):
    run = write_run(tmp_path / "a" / "id0", 0.5)
    assert main(["compare", str(run), "--output", str(tmp_path / name)]) == 2
    assert "expected a page (.html) or a picture of curves (.png)" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_a_run_without_results_is_named(tmp_path):
    with pytest.raises(CompareError, match="empty: is no run directory"):
        compare_runs([tmp_path / "empty"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompareError, match=r"empty: holds no evaluation that can be read: .*result\.json"):
        compare_runs([tmp_path / "empty"])
    assert main(["compare", str(tmp_path / "empty"), "--output", str(tmp_path / "new" / "c.png")]) == 2
    assert not (tmp_path / "new").exists()


def test_runs_of_one_name_are_told_apart_and_none_is_read_twice(tmp_path, monkeypatch):
    for root, average in (("one", 0.5), ("two", 0.75)):
        write_run(tmp_path / root / "a" / "id0", average)
    monkeypatch.chdir(tmp_path)
    found = compare_runs([Path("one/a/id0"), Path("two/a/id0"), Path("one/a/id0")])
    assert [run["name"] for run in found["runs"]] == ["one/a/id0", "two/a/id0"]
    (tmp_path / "link").symlink_to("one/a/id0")
    again = compare_runs([Path("one/a/id0"), Path("link"), Path("two/../one/a/id0")])
    assert [run["name"] for run in again["runs"]] == ["a/id0"]
    assert again["notes"] == ["a/id0 is the only run here: nothing to compare it with; name another one"]
    monkeypatch.chdir(tmp_path / "one" / "a" / "id0")
    assert compare_runs([Path()])["baseline"] == "a/id0"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"average_mAP": "x"}', '{"average_mAP": 1, "seconds": 1e400}', "\0", "[" * 9999]
)
def test_a_result_that_cannot_be_read_is_named(tmp_path, text):
    run = write_run(tmp_path / "a" / "id0", 0.5)
    (run / "result.json").write_text(text)
    with pytest.raises(CompareError, match=r"id0: holds no evaluation that can be read: .*result\.json: "):
        compare_runs([run])


def test_lines_that_cannot_be_read_are_counted(tmp_path, capsys):
    run = write_run(tmp_path / "a" / "id0", 0.5)
    good = (run / "metrics.jsonl").read_text()
    bad = [
        "3",
        "[]",
        "{}",
        '{"kind": "evaluation"}',
        '{"kind": "evaluation", "step": "x", "average_mAP": 1}',
        "\xff",
        "{",
    ]
    (run / "metrics.jsonl").write_text("\n".join([*bad, good, '{"kind": "tra']), encoding="latin-1")
    assert f"metrics.jsonl: {len(bad)} lines can't be read or lack a key; left out" in compare_runs([run])["notes"][0]


def test_names_are_no_markup_and_the_picture_never_replaces_a_run_s_file(tmp_path, capsys):
    run = write_run(tmp_path / "[red]a" / "[|bold]$x{$", 0.5)
    assert main(["compare", str(run), "--output", str(tmp_path / "c.png")]) == 0
    assert "[red]a/[|bold]$x{$" in capsys.readouterr().out
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["compare", str(run), "--output", str(run / "metrics.jsonl")]) == 2
    assert "is read here" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


def test_figures_of_one_group(tmp_path, capsys):
    run = write_run(tmp_path / "a" / "id0", 0.5)
    for path in (run / "metrics.jsonl", run / "result.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        groups = {"groups": {"night=true": {"average_mAP": 0.125, "mAP": {}, "instances": 3}}}
        path.write_text("\n".join(json.dumps({**line, **groups}) for line in lines))
    found = compare_runs([run], "night=true")["runs"][0]
    assert found["average_mAP"] == found["untrained_average_mAP"] == 0.125, "that of step 0 is of the untrained model"
    assert found["curve"] == [12.5, 12.5]
    with pytest.raises(CompareError, match="id0: has no group 'night=false'; it has night=true"):
        compare_runs([run], "night=false")


def test_a_group_of_runs_without_groups(tmp_path):
    with pytest.raises(CompareError, match=r"none: set evaluate\.groups_by"):
        compare_runs([write_run(tmp_path / "a" / "id0", 0.5)], "night=true")
