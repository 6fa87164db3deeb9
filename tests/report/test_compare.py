"""Runs side by side."""

import json

import pytest

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
    compare(runs, tmp_path / "c.png")
    out = capsys.readouterr().out
    assert all(word in out for word in ("a/id0", "50.00", "b/id1", "75.00", "1.5"))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_results_is_named(tmp_path):
    with pytest.raises(CompareError, match="empty: holds no evaluation"):
        compare([tmp_path / "empty"], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_figures_of_one_group(tmp_path, capsys):
    run = write_run(tmp_path / "a" / "id0", 0.5)
    for path in (run / "metrics.jsonl", run / "result.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        groups = {"groups": {"night=true": {"average_mAP": 0.125, "mAP": {}, "instances": 3}}}
        path.write_text("\n".join(json.dumps({**line, **groups}) for line in lines))
    compare([run], tmp_path / "c.png", "night=true")
    out = capsys.readouterr().out
    assert out.count("12.50") == 2  # of the untrained model too, whose line is that of step 0
    assert "50.00" not in out
    with pytest.raises(CompareError, match="id0: has no group 'night=false'; it has night=true"):
        compare([run], tmp_path / "d.png", "night=false")


def test_a_group_of_runs_without_groups(tmp_path):
    with pytest.raises(CompareError, match=r"none: set evaluate\.groups_by"):
        compare([write_run(tmp_path / "a" / "id0", 0.5)], tmp_path / "c.png", "night=true")
