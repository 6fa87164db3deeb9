"""What a key of a spec means, as text."""

import pytest

from adatad.errors import UserError
from adatad.spec import explain_key
from adatad.spec.keys import all_keys


def test_a_key_has_type_default_meaning_and_the_shipped_specs_that_set_it():
    lines = explain_key("train.global_batch").splitlines()
    assert lines[0] == "train.global_batch"
    assert lines[1].split(maxsplit=1) == ["type", "whole number >= 1, <= 1e+09"]
    assert lines[2].split() == ["default", "2"]
    assert any("Windows of one optimizer step" in line for line in lines)
    assert "configs/base/thumos.yaml: 2" in {line.strip() for line in lines}


def test_a_section_lists_its_keys():
    text = explain_key("optimizer.backbone")
    assert "optimizer.backbone.custom" in text
    assert "default" not in text


def test_every_key_can_be_explained(monkeypatch, tmp_path):
    monkeypatch.setattr("adatad.spec.key_help.CONFIGS", tmp_path)
    for key in all_keys():
        assert explain_key(key).startswith(key)


@pytest.mark.parametrize(
    ("name", "here"),
    [("solver.train.batch_size", "train.global_batch"), ("workflow.end_epoch", "schedule.end_epoch")],
)
def test_a_name_of_opentad_is_explained_as_the_key_here(name, here):
    assert f"\n{here}\n" in explain_key(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [("trian.global_batch", "train.global_batch"), ("global_batch", "train.global_batch"), ("lr", "optimizer.lr"),
     ("memory.polcy", "memory.policy"), ("nothing.like.it", "a spec has")],
)  # fmt: skip
def test_a_wrong_name_is_refused_with_near_ones(name, near):
    with pytest.raises(UserError, match=near):
        explain_key(name)
