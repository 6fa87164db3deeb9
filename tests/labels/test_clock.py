"""Times as tables write them."""

import pytest

from adatad.labels.clock import read_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3.2", 3.2), ("3,2", 3.2), (" 3.2 ", 3.2), ("+3.2", 3.2), ("-1", -1.0), ("0", 0.0), (".5", 0.5), ("3.", 3.0),
        ("1e1", 10.0), ("3.2s", 3.2), ("3.2 s", 3.2), ("3200 ms", 3.2), ("3,2\u00a0s", 3.2), ("1.5 min", 90.0),
        ("0:03.2", 3.2), ("0:03,2", 3.2), ("1:02", 62.0), ("01:02", 62.0), ("75:30", 4530.0), ("1:02:03.25", 3723.25),
        ("00:00:03,200", 3.2), ("0 days 00:00:03.200000", 3.2), ("0:00:03", 3.0),
    ],
)  # fmt: skip
def test_forms_of_seconds(text, seconds):
    assert read_time(text, "seconds").value == seconds


def test_numbers_without_their_own_unit_have_the_column_s():
    assert read_time("3200", "milliseconds").value == 3.2
    assert read_time("0:03.2", "milliseconds").value == 3.2
    assert read_time("1.5", "minutes").value == 90
    assert read_time("96", "frames").value == 96
    assert read_time("96.0", "frames").value == 96


@pytest.mark.parametrize(
    "text",
    [
        "", "soon", "nan", "inf", "1_000", "1.234,5", "1,234.5", "1 000", "0:3", "0:75", "1:2:03", "1:60:03",
        "00:00:03:12", "3:05 AM", "03. Feb", "2024-01-01 00:00:03", "0x10", "1" * 40, "\u0663", "\u00b2", "3.2 bananas",
        "1e999", "--3", "3..2",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="seconds, or m:ss or h:mm:ss"):
        read_time(text, "seconds")


@pytest.mark.parametrize("text", ["3.5", "0:03", "3 s", "3,2"])
def test_what_is_no_frame_is_refused(text):
    with pytest.raises(ValueError, match="whole numbers of frames"):
        read_time(text, "frames")


def test_numbers_that_may_be_thousands_are_known():
    assert read_time("3,200", "seconds").is_ambiguous
    assert read_time("3.200", "seconds").is_ambiguous
    assert not read_time("3,2", "seconds").is_ambiguous
    assert not read_time("0:03,200", "seconds").is_ambiguous
