"""What the suite of clip parallelism counts."""

import pytest

from adatad.dev.benchmarks.clip_suite import planner, sizes_of, spec_of


@pytest.mark.parametrize("clip", [1, 4])
def test_a_window_is_one_window(clip):
    assert planner(spec_of(clip)).costs.windows == 1


def test_the_work_of_a_window_is_about_that_of_a_step_that_recomputes_every_block():
    sizes = sizes_of(spec_of(1))
    # docs/clip-parallel.md derives all seconds from it: 1,067 TFLOP.
    assert (sizes.backbone + sizes.detector) / 1e12 == pytest.approx(1067, rel=0.01)
