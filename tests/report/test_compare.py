"""Runs side by side."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from adatad.files import FileError
from adatad.printing import print_table
from adatad.report.compare import CompareError, compare


def write_run(folder, average):
    folder.mkdir(parents=True)
    lines = [{"kind": "evaluation", "step": s, "epoch": s, "average_mAP": average * s / 4, "mAP": {}} for s in (0, 4)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = {"average_mAP": average, "untrained_average_mAP": None, "seconds": 90}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_results_are_printed_and_drawn(tmp_path, capsys):
    runs = [write_run(tmp_path / "a" / "id0", 0.5), write_run(tmp_path / "b" / "id1", 0.75)]
    print_table(compare(runs, tmp_path / "c.png"))
    out = capsys.readouterr().out
    assert all(word in out for word in ("a/id0", "50.00", "b/id1", "75.00", "1.5"))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_results_is_named(tmp_path):
    with pytest.raises(CompareError, match="empty: is no run directory"):
        compare([tmp_path / "empty"], tmp_path / "c.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompareError, match=r"empty: holds no evaluation that can be read: .*result\.json"):
        compare([tmp_path / "empty"], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_runs_of_one_name_are_told_apart_and_none_is_drawn_twice(tmp_path, capsys, monkeypatch):
    for root, average in (("one", 0.5), ("two", 0.75)):
        write_run(tmp_path / root / "a" / "id0", average)
    drawn = []
    monkeypatch.setattr("adatad.report.compare.curve", lambda title, series, **looks: drawn.append(series) or Figure())
    monkeypatch.chdir(tmp_path)
    compare([Path("one/a/id0"), Path("two/a/id0"), Path("one/a/id0")], tmp_path / "c.png")
    assert list(drawn[0]) == ["one/a/id0", "two/a/id0"]
    monkeypatch.chdir(tmp_path / "one" / "a" / "id0")
    compare([Path()], tmp_path / "c.png")
    assert list(drawn[1]) == ["a/id0"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"average_mAP": "x"}', '{"average_mAP": 1, "seconds": 1e400}', "\0", "[" * 9999]
)
def test_a_result_that_cannot_be_read_is_named(tmp_path, text):
    run = write_run(tmp_path / "a" / "id0", 0.5)
    (run / "result.json").write_text(text)
    with pytest.raises(CompareError, match=r"id0: holds no evaluation that can be read: .*result\.json: "):
        compare([run], tmp_path / "c.png")


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
    compare([run], tmp_path / "c.png")
    assert f"metrics.jsonl: {len(bad)} lines can't be read or lack a key; left out" in capsys.readouterr().err


def test_names_are_no_markup_and_the_picture_never_replaces_a_run_s_file(tmp_path, capsys):
    run = write_run(tmp_path / "[red]a" / "[|bold]$x{$", 0.5)
    print_table(compare([run], tmp_path / "c.png"))
    assert "[red]a/[|bold]$x{$" in capsys.readouterr().out
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(FileError, match="is read here"):
        compare([run], run / "metrics.jsonl")
    assert (run / "metrics.jsonl").read_bytes() == before


def test_figures_of_one_group(tmp_path, capsys):
    run = write_run(tmp_path / "a" / "id0", 0.5)
    for path in (run / "metrics.jsonl", run / "result.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        groups = {"groups": {"night=true": {"average_mAP": 0.125, "mAP": {}, "instances": 3}}}
        path.write_text("\n".join(json.dumps({**line, **groups}) for line in lines))
    print_table(compare([run], tmp_path / "c.png", "night=true"))
    out = capsys.readouterr().out
    assert out.count("12.50") == 2  # of the untrained model too, whose line is that of step 0
    assert "50.00" not in out
    with pytest.raises(CompareError, match="id0: has no group 'night=false'; it has night=true"):
        compare([run], tmp_path / "d.png", "night=false")


def test_a_group_of_runs_without_groups(tmp_path):
    with pytest.raises(CompareError, match=r"none: set evaluate\.groups_by"):
        compare([write_run(tmp_path / "a" / "id0", 0.5)], tmp_path / "c.png", "night=true")
