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
