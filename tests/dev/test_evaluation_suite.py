"""The evaluation suite: the reference's check values on the smallest of its inputs, and small ones of its own."""

from adatad.dev.benchmarks import evaluation_suite as evaluation
from adatad.dev.benchmarks.evaluation_suite import map_input
from adatad.dev.benchmarks.tables import verdict

SMALL = evaluation.MapCase("small", (5, 30, 600, 3, (30.0, 400.0), 1), (0.3, 0.7), (0.0, 0.0), 1e9, 1e9)


def test_soft_nms_gives_the_reference_s_sums():
    time, error = evaluation.run(evaluation.NMS_CASES[:1], (), nms_rounds=2)
    assert time.value > 0
    assert (time.bar, error.bar) == (0.17, 1.0)
    assert error.passed


def test_wrong_results_fail_however_fast(capsys):
    time, error = evaluation.run((), (SMALL,), map_rounds=2)
    assert time.passed
    assert not error.passed
    assert verdict([time, error]) == 1
    assert "error / 1e-6" in capsys.readouterr().out


def test_made_up_detections_are_files_that_can_be_scored():
    truth, found = map_input(*SMALL.size)
    result = evaluation.evaluate(truth, found, "test", SMALL.tious)
    assert (result.num_ground_truth, result.num_detections) == (30, 600)
    assert 0.05 < result.mAP[0.7] < result.mAP[0.3] < 1.0
    assert result.other_videos == ()
    assert sorted(result.ap_per_class) == ["class_000", "class_001", "class_002"]
