"""Charts of a run: long ones are thinned without losing extremes, and what isn't a number is a gap."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folder import train_line, write_lines

from adatad.report.charts import BUCKETS, charts, running_mean, thinned
from adatad.report.run_files import MetricsReader, by_step, read_metrics

numbers = st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf)


@given(st.lists(numbers, max_size=30), st.integers(1, 60))
def test_thinning_keeps_order_ends_and_extremes(some, times):
    values = some * times
    places = list(thinned(values))
    assert places == sorted(set(places))
    assert len(places) <= 2 * BUCKETS + 2
    finite = [value for value in values if math.isfinite(value)]
    if values:
        assert {0, len(values) - 1} <= set(places)
    if finite:
        kept = [values[place] for place in places if math.isfinite(values[place])]
        assert (min(kept), max(kept)) == (min(finite), max(finite))


def test_a_page_of_twenty_thousand_steps_stays_small_and_says_what_it_leaves_out():
    lines = [train_line(step, memory_bytes=2**30, reserved_bytes=2**31, mfu=0.4) for step in range(1, 20_001)]
    made = charts(lines, [], predicted_bytes=1.5 * 2**30)
    assert len(json.dumps(made)) < 400_000
    assert made[0]["note"] == "of every 84 steps the least and the greatest value"
    memory = next(chart for chart in made if chart["title"] == "memory")
    assert [curve["name"] for curve in memory["curves"]] == [
        "tensors, peak",
        "held by the allocator, peak",
        "predicted",
    ]
    assert memory["curves"][2]["values"] == [1.5, 1.5]
    assert any(chart["title"] == "mfu" for chart in made)


def test_what_is_no_number_is_a_gap_and_skipped_steps_are_counted():
    lines = [train_line(1), train_line(2, class_loss=math.nan, gradient_norm=math.inf, applied=False), train_line(3)]
    made = {chart["title"]: chart for chart in charts(lines, [])}
    assert made["loss"]["curves"][0]["values"] == [1.0, None, pytest.approx(1 / 3, abs=1e-4)]
    assert made["gradient norm"]["curves"][0]["values"] == [2.0, None, 2.0]
    assert made["gradient norm"]["note"].startswith("1 step skipped")


def test_curves_that_coincide_are_one_under_both_names():
    lines = [train_line(step, lr={"a": step, "b": step, "c": 2 * step}) for step in (1, 2, 3)]
    rates = next(chart for chart in charts(lines, []) if chart["title"] == "learning rate")
    assert [curve["name"] for curve in rates["curves"]] == ["a, b", "c"]
    assert [curve["values"] for curve in rates["curves"]] == [[1, 2, 3], [2, 4, 6]]


def test_tious_and_groups_that_come_and_go_are_drawn_where_they_are():
    lines = [
        {"step": 1, "average_mAP": 0.1, "mAP": {"0.3": 0.2}},
        {"step": 2, "average_mAP": 0.2, "mAP": {"0.3": 0.3, "0.5": 0.1}, "groups": {"g": {"average_mAP": 0.5}, "x": 3}},
    ]
    scores, groups = charts([], lines)
    assert [curve["values"] for curve in scores["curves"]] == [[10, 20], [20, 30], [None, 10]]
    assert groups["curves"] == [{"name": "g", "steps": [2], "values": [50]}]


def test_a_running_mean_of_a_constant_is_that_constant():
    assert running_mean([math.nan, 3.0, math.nan, 3.0, math.inf])[1:] == pytest.approx([3, 3, 3, 3])


def test_a_repeated_step_counts_once_the_later_one(tmp_path):
    write_lines(tmp_path, [train_line(4), train_line(5), train_line(4, class_loss=0.25)])
    steps = by_step(read_metrics(tmp_path / "metrics.jsonl", ["class_loss"]).train)
    assert [(line["step"], line["class_loss"]) for line in steps] == [(4, 0.25), (5, 0.2)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.booleans())
def test_a_file_that_grows_by_any_pieces_is_read_as_one_that_is_whole(tmp_path_factory, sizes, ends):
    path = tmp_path_factory.mktemp("growing") / "metrics.jsonl"
    lines = [json.dumps(train_line(step)) for step in (1, 2)] + ["{broken", json.dumps({"kind": "\u00e9"})]
    content = ("\n".join([*lines, json.dumps(train_line(3))]) + "\n" * ends).encode()
    reader = MetricsReader(path, ("class_loss",), ())
    for piece in range(0, len(content), 1 + sum(sizes)):
        path.write_bytes(content[: piece + 1 + sum(sizes)])
        grown = reader.read()
    assert grown == read_metrics(path, ("class_loss",), ())
    assert grown.left_out == 1
    path.write_bytes(b"")
    assert reader.read().train == []


def test_lines_that_lack_a_key_are_counted(tmp_path):
    write_lines(tmp_path, [[], {"kind": "train", "step": 9}, {"kind": "another", "step": 9}, train_line(3)])
    write_lines(tmp_path, [{"kind": "evaluation", "step": 9, "average_mAP": 1, "mAP": 3}], "a")
    lines = read_metrics(tmp_path / "metrics.jsonl", ("class_loss",), ("average_mAP", "mAP"))
    assert lines.note("x") == "x: 3 lines can't be read or lack a key; left out"


def test_losses_have_one_name_also_in_lines_of_earlier_versions(tmp_path):
    write_lines(tmp_path, [{"kind": "train", "step": 1, "cost": 3.0, "cls_loss": 1.0, "reg_loss": 2.0, "lr": {}}])
    lines = read_metrics(tmp_path / "metrics.jsonl", ("loss", "class_loss", "segment_loss", "lr")).train
    loss = charts(lines, [])[0]
    assert [(curve["name"], curve["values"]) for curve in loss["curves"]] == [
        ("loss", [3.0]), ("class loss", [1.0]), ("segment loss", [2.0])
    ]  # fmt: skip
