"""Sizes, rates and time limits on a command line."""

import argparse

import pytest

from adatad.quantities import gib, number, time_limit


@pytest.mark.parametrize(
    ("text", "value"),
    [("24", 24), ("24GB", 24), ("24 GiB", 24), ("23.5g", 23.5), ("24576MB", 24), ("1tb", 1024), ("1e2", 100)],
)
def test_sizes_are_gib_with_any_unit(text, value):
    assert gib(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "GB", "24XB", "1e9", "2 4", "1..2", "9" * 400, "1e400"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as 24, 24GB"):
        gib(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "x", "1e7", "1e400"])
def test_numbers_outside_of_their_range_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a number from 0\.001 to 1e\+06, got "):
        number(1e-3, 1e6)(text)
    assert number(1e-3, 1e6)("60") == 60


@pytest.mark.parametrize("text", ["30", "30:00", "24:00:00", "2-12", "2-12:30", "2-12:30:59", "UNLIMITED"])
def test_time_limits_have_slurms_forms(text):
    assert time_limit(text) == text


@pytest.mark.parametrize("text", ["", "nonsense", "24h", "1d", "-1", "1:2:3:4", "1-2-3", "24:00:00\n", "٢"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 24:00:00 or 2-12"):
        time_limit(text)
