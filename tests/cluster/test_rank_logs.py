"""Output of many ranks sorted: a file each, prefixes, and whose error comes first."""

import io

import pytest

from adatad.cluster.rank_logs import RankLogs


def sorted_lines(tmp_path, text: str, one_task_a_rank: bool = True) -> tuple[list[str], RankLogs]:
    out = io.StringIO()
    logs = RankLogs(tmp_path, out, "== attempt 7-000 ==", one_task_a_rank)
    for line in text.splitlines():
        logs.take_and_flush(line)
    logs.repeat_first_error()
    return out.getvalue().splitlines(), logs


def test_every_rank_has_a_file_and_a_prefix(tmp_path):
    lines, _ = sorted_lines(tmp_path, " 0: one: two\n10: three\nsrun: job 7 queued\n 0:   indented\n")
    assert lines == ["rank 0 | one: two", "rank 10 | three", "srun: job 7 queued", "rank 0 |   indented"]
    assert (tmp_path / "rank-0.log").read_text() == "== attempt 7-000 ==\none: two\n  indented\n"
    assert (tmp_path / "rank-10.log").read_text() == "== attempt 7-000 ==\nthree\n"


def test_ranks_behind_one_task_are_told_apart_where_they_say_who_they_are(tmp_path):
    lines, _ = sorted_lines(tmp_path, "1: [rank3]: from three\n1: the launcher\n", one_task_a_rank=False)
    assert lines == ["rank 3 | from three", "node 1 | the launcher"]


@pytest.mark.parametrize("named", [True, False])
def test_the_rank_that_the_others_name_comes_before_the_one_that_was_heard_first(named, tmp_path):
    first = "rank 1 on n2 (pid 9): KeyError: 'x'"
    text = ["0: Traceback (most recent call last):", "0:   File x", "0: RuntimeError: gloo: peer closed"]
    text += [f"0: {first}", "0: rank 0 on n1 (pid 8): RuntimeError: gloo (after the other)"] if named else []
    text += ["1: Traceback (most recent call last):", "1:   File y", "1: KeyError: 'x'"]
    lines, _ = sorted_lines(tmp_path, "\n".join(text) + "\n")
    end = lines[lines.index("") + 1 :]
    who = "rank 1" if named else "rank 0"
    assert end[0].startswith(f"The first failing rank was {who} (")
    expected = ["rank 1 | KeyError: 'x'"] if named else ["rank 0 | RuntimeError: gloo: peer closed"]
    assert end[-1:] == expected
    assert (f"rank 1 | {first}" in end) == named


def test_a_rank_that_died_without_a_word_is_told_by_srun(tmp_path):
    lines, logs = sorted_lines(tmp_path, "0: a\n1: last words\nsrun: error: n2: task 1: Segmentation fault\n")
    assert logs.first.name == "rank 1"
    assert lines[-1] == "rank 1 | last words"


def test_a_disk_that_takes_nothing_does_not_end_the_sorting(tmp_path):
    (tmp_path / "file").touch()
    lines, _ = sorted_lines(tmp_path / "file", "0: one\n0: ValueError: two\n")
    assert lines[:2] == ["rank 0 | one", "rank 0 | ValueError: two"]
    assert lines[-1] == "rank 0 | ValueError: two"


def test_a_long_error_keeps_its_beginning_and_its_end(tmp_path):
    frames = "".join(f"0:   frame {n}\n" for n in range(100))
    lines, _ = sorted_lines(tmp_path, f"0: Traceback (most recent call last):\n{frames}0: ValueError: at last\n")
    end = lines[lines.index("") + 2 :]
    assert end[0] == "rank 0 | Traceback (most recent call last):"
    assert end[-1] == "rank 0 | ValueError: at last"
    assert len(end) == 41


def test_output_that_cannot_be_written_does_not_end_the_ranks(tmp_path):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    RankLogs(tmp_path, Full(), "== attempt ==").take_and_flush("0: one")
