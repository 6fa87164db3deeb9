"""The table of a sweep."""

from adatad.cluster import sweep


def test_a_result_that_came_while_the_table_was_written_is_in_it(tmp_path, monkeypatch):
    rows = tmp_path / "rates.txt"
    rows.write_text("# a comment\n\ntrain.seed=1\n")
    tables = iter(["one result\n", "two results\n", "two results\n"])
    monkeypatch.setattr(sweep, "table", lambda *arguments: next(tables))
    assert sweep.write_table(rows, tmp_path, 0) == "two results\n"
    assert (tmp_path / "sweep-rates.md").read_text() == "two results\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.txt", "sweep-rates.md"]
