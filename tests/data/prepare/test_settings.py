"""Settings derived from a data set: specs that load, windows that hold the instances, a reason beside each value."""

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.prepare.first_spec import SMALL, TINY, SpecPlace, settings_of, spec_text
from adatad.data.prepare.settings import (
    Because,
    Facts,
    grid_of,
    levels_of,
    plain,
    ranges_of,
    schedule_settings,
    yaml_text,
)
from adatad.spec import load
from adatad.spec.checks import cross_checks
from adatad.spec.schema import Spec

PLACE = SpecPlace("mine", "d/annotations.json", "d/classes.txt", "my videos", "{name}.mp4")


def facts_of(rates, video_seconds, instance_seconds, videos=40, instances=None):
    lengths, count = np.array(instance_seconds, float), instances or len(instance_seconds)
    return Facts(np.array(rates, float), np.array(video_seconds, float), 64, lengths, videos, count, most_instances=6)


@st.composite
def any_facts(draw):
    rates = draw(st.lists(st.floats(0.5, 240), min_size=2, max_size=5))
    videos = draw(st.lists(st.floats(0.5, 20_000), min_size=len(rates), max_size=len(rates)))
    instances = draw(st.lists(st.floats(1e-3, 20_000), min_size=1, max_size=30))
    pixels, most = draw(st.integers(1, 4000)), draw(st.integers(1, 100_000))
    return Facts(np.array(rates), np.array(videos), pixels, np.array(instances), draw(st.integers(1, 5000)),
                 draw(st.integers(1, 10**6)), most)  # fmt: skip


@given(any_facts(), st.sampled_from([TINY, SMALL]))
def test_whatever_the_data_the_spec_passes_all_checks(facts, preset):
    settings = settings_of(facts, PLACE, preset)
    text = yaml_text(settings)
    assert yaml.safe_load(text) == plain(settings)
    assert cross_checks(Spec.model_validate(yaml.safe_load(text))) == []
    assert max(map(len, text.splitlines())) < 200


def test_the_built_in_and_the_real_footage_get_what_was_set_by_hand():
    demo = grid_of(facts_of([8] * 3, [15, 25, 29.8], np.linspace(1.75, 4.9, 200)))
    assert (demo.stride, demo.size, levels_of(demo)) == (1, 128, 5)
    assert ranges_of(5) == [[0, 6], [4, 12], [8, 24], [16, 48], [32, 10000]]
    # 150 epochs of 24 steps by hand, for the harder set.
    hard = schedule_settings(facts_of([8], [20], [2], videos=48, instances=435))
    assert plain(hard)["schedule"] == {"warmup_epochs": 5, "epochs": 145}
    assert plain(hard)["train"]["global_batch"] == 2
    real = grid_of(facts_of([15, 20, 20, 25], [23, 34, 40, 45.9], np.geomspace(1.15, 7.2, 200)))
    assert (real.fps, real.has_one_rate, real.stride, real.size) == (20, False, 2, 256)


@pytest.mark.parametrize(("seconds", "fps"), [(0.3, 30), (2, 25), (12, 30), (60, 25), (600, 25)])
def test_windows_hold_long_instances_and_positions_resolve_short_ones(seconds, fps):
    lengths = np.geomspace(seconds / 2, seconds, 100)
    grid = grid_of(facts_of([fps] * 3, [3600] * 3, lengths))
    assert grid.size > 1.4 * grid.long
    assert grid.short >= 2
    # All but the last level end where a long instance does.
    assert 6 * 2 ** (levels_of(grid) - 2) >= grid.long or grid.long > 192


def test_rates_that_differ_are_read_at_one():
    settings = settings_of(facts_of([15, 25, 25], [30] * 3, [2, 3]), PLACE, TINY)
    assert settings["data"]["fps"].value == 25
    assert "15 to 25 frames a second" in settings["data"]["fps"].why
    assert "fps" not in settings_of(facts_of([29.97, 30, 30], [30] * 3, [2, 3]), PLACE, TINY)["data"]


def test_a_window_that_does_not_fit_the_gpu_is_halved_and_said(tmp_path):
    facts = facts_of([30] * 3, [3600] * 3, [12] * 50)

    def fit(settings):
        return "tile: 3.0 of 4.0 GiB" if settings["data"]["window"]["size_grid"] <= 256 else None

    text = spec_text(facts, PLACE, tmp_path / "spec.yaml", "labels.csv", fit)
    assert yaml.safe_load(text)["data"]["window"]["size_grid"] == 256
    assert "tile: 3.0 of 4.0 GiB; the data asks for windows of 384 positions, which don't fit" in text
    assert "nothing fits" in spec_text(facts, PLACE, tmp_path / "spec.yaml", "labels.csv", lambda _: None)


def test_names_with_signs_of_yaml_come_back(tmp_path):
    place = SpecPlace("x", "a: b/#c 'd' \"e\".json", "é 日.txt", "- [x]", "{name}.mp4")
    path = tmp_path / "spec.yaml"
    path.write_text(
        spec_text(facts_of([8] * 2, [20] * 2, [2, 3]), place, path, "odd\nname.csv", None), encoding="utf-8"
    )
    assert load(path, check_files=False).data.videos == "- [x]"
    assert load(path, check_files=False).data.annotations == "a: b/#c 'd' \"e\".json"


def test_a_reason_never_breaks_its_line():
    assert yaml.safe_load(yaml_text({"a": Because(1, "two\nlines"), "b": {"c": Because([1], "x" * 200)}})) == {
        "a": 1, "b": {"c": [1]},
    }  # fmt: skip
