"""The record of a model file: what is written is read back, whatever the names, and any change of numbers is seen."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adatad.training.model_facts import CheckpointError
from adatad.training.model_record import (
    DTYPES,
    RECORD,
    ModelRecord,
    ModelScores,
    StoredThreshold,
    StoredThresholds,
    fingerprint_of,
    record_in_header,
)

shares = st.floats(0, 1)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
one = st.builds(StoredThreshold, threshold=st.floats(-1e9, 1e9), precision=shares, recall=shares, f1=shares)


@st.composite
def records(draw):
    by_class = draw(st.dictionaries(names, one, max_size=4))
    thresholds = StoredThresholds(
        tiou=draw(st.floats(0.01, 1)), overall=draw(one), by_class=by_class, from_overall=tuple(sorted(by_class)[:2])
    )
    return ModelRecord(
        adatad_version=draw(names),
        fingerprint="0" * 64,
        dtype=draw(st.sampled_from([*DTYPES])),
        chosen="best",
        checkpoint=draw(names),
        licence=draw(names),
        scores=draw(st.none() | st.builds(ModelScores, average_mAP=shares, by_tiou=st.dictionaries(names, shares))),
        thresholds=draw(st.none() | st.just(thresholds)),
    )


@given(records())
def test_a_record_is_read_back_as_it_was_written(record):
    assert record_in_header({RECORD: record.model_dump_json()}, "file") == record


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fingerprint", "short"), ("dtype", "float64"), ("chosen", "luck"), ("epoch", -1), ("epoch", True),
        ("training_fps", 0), ("scores", {"average_mAP": 2, "by_tiou": {}}), ("licence", None), ("more", 1),
        ("thresholds", {"tiou": 0.5, "overall": None, "by_class": {}}),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused_by_their_key(key, value):
    content = {
        "adatad_version": "0", "fingerprint": "0" * 64, "dtype": "float32", "chosen": "best", "checkpoint": "c",
        "licence": "unknown", key: value,
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=rf"^file: model: {key}"):
        record_in_header({RECORD: json.dumps(content)}, "file")


def test_a_fingerprint_is_of_names_shapes_dtypes_and_values():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0)}
    same = {"b": torch.tensor(1.0), "a": torch.arange(6.0).view(3, 2).T.contiguous().view(2, 3) * 0 + tensors["a"]}
    assert fingerprint_of(same) == fingerprint_of(tensors)
    changed = [
        {**tensors, "b": torch.tensor(1.0000001)},
        {**tensors, "a": tensors["a"].view(3, 2)},
        {**tensors, "b": torch.tensor(1.0, dtype=torch.bfloat16)},
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"]},
    ]
    assert len({fingerprint_of(one) for one in [tensors, *changed]}) == 1 + len(changed)
