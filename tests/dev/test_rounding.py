"""The suite that compares rounding under tile with that of autocast."""

from adatad.dev.benchmarks import rounding_suite


def test_tile_rounds_about_as_autocast_does_and_an_error_is_seen(monkeypatch):
    (found,) = rounding_suite.run((2,))
    assert 0.5 < found.value < 2
    exact = rounding_suite.gradients
    planted = iter([1.0, 1.1, 1.0])
    monkeypatch.setattr(
        rounding_suite,
        "gradients",
        lambda b: {n: next_factor * g for next_factor in [next(planted)] for n, g in exact(b).items()},
    )
    assert rounding_suite.run((2,))[0].value > 2
