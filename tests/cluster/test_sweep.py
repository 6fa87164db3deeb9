"""The table of a sweep."""

import json

from adatad.cluster import sweep


def test_a_result_that_came_while_the_table_was_written_is_in_it(tmp_path, monkeypatch):
    rows = tmp_path / "rates.txt"
    rows.write_text("# a comment\n\ntrain.seed=1\n")
    tables = iter(["one result\n", "two results\n", "two results\n"])
    monkeypatch.setattr(sweep, "table", lambda *arguments: next(tables))
    assert sweep.write_table(rows, tmp_path, 0) == "two results\n"
    assert (tmp_path / "sweep-rates.md").read_text() == "two results\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.txt", "sweep-rates.md"]


def test_a_result_that_cannot_be_read_is_said_to_be_and_the_others_stay(tmp_path):
    results = {"id0": json.dumps({"average_mAP": 0.5, "best_average_mAP": 0.75, "epochs": 3}), "id1": "{", "id3": "[]"}
    for name, text in results.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    (tmp_path / "id2" / "result.json").mkdir(parents=True)
    (tmp_path / "id5").mkdir()
    (tmp_path / "id5" / "result.json").write_text('{"average_mAP": 0.5}')
    rows = ["a=1", "b=x|y", "c=\x1b[2J", "d", "e", "f"]
    lines = sweep.table(rows, tmp_path, 0).splitlines()[2:]
    assert lines == [
        "| 0 | a=1 | 50.00 | 75.00 | 3 |",
        "| 1 | b=x&#124;y | - | - | result.json can't be read |",
        "| 2 | c=\\x1b[2J | - | - | result.json can't be read |",
        "| 3 | d | - | - | result.json can't be read |",
        "| 4 | e | - | - | no result yet |",
        "| 5 | f | 50.00 | - | - |",
    ]
