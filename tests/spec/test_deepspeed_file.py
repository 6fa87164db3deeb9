"""DeepSpeed's JSON file: what can't be read, and values of a wrong kind, are named."""

import pytest

from adatad.spec import load
from adatad.spec.deepspeed_file import DeepSpeedFileError, deepspeed_problems, engine_of

ZERO = '{"zero_optimization": {"stage": 2, %s}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"), ("[]", "zero_optimization.stage: expected 1, 2 or 3"), ("3", "stage: expected 1, 2 or 3"),
        ('{"zero_optimization": [2]}', "stage: expected"),
        ('{"zero_optimization": {"stage": true}}', "stage: expected"),
        ('{"zero_optimization": {"stage": 1e308}}', "stage: expected"), ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "'a' stands twice"), ("{", "is not readable as JSON"),
        ('{"a": ' + "9" * 5000 + "}", "JSON"),
        ('{"a": "\\ud800"}', "half of a character"), ("\xff", "no text in UTF-8"),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_what_is_no_deepspeed_file_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "ds.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(DeepSpeedFileError, match=r"ds\.json: ") as caught:
        engine_of(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ('"reduce_bucket_size": 1e308', "expected a whole number from 0 to 10^15, got 1e+308"),
        ('"reduce_bucket_size": Infinity', "got inf"),
        ('"reduce_bucket_size": true', "got True"),
        ('"reduce_bucket_size": ' + "9" * 4000, "got 9999"),
        ('"overlap_comm": [true]', "expected true or false, got [True]"),
        ('"offload_optimizer": "cpu"', "expected an object with a device, got 'cpu'"),
        ('"offload_optimizer": {"device": []}', "offload_optimizer.device: expected cpu or none, got []"),
        ('"' + "x" * 5000 + '": 1', "would be without effect"),
        ('"a\\nb": 1', "zero_optimization.a\\nb would be without effect"),
    ],
    ids=lambda text: text[:30],
)
def test_values_of_a_wrong_kind_are_named_in_a_short_line(tmp_path, pair, said):
    path = tmp_path / "ds.json"
    path.write_text(ZERO % pair)
    [line] = deepspeed_problems(path, load("configs/demo/tia.yaml", ["parallel.engine=zero2"], check_files=False))
    assert said in line
    assert line.isprintable()
    assert len(line) < 500
