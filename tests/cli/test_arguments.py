"""--deepspeed and --engine on the command line."""

import argparse

import pytest

from adatad.cli.arguments import add_engine_arguments, add_spec_arguments, overrides_from, spec_path
from adatad.spec import load


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--engine", "fsdp"], ["parallel.engine=fsdp"]),
        (
            ["--deepspeed", "ds_configs/zero2_offload.json"],
            ["parallel.deepspeed=ds_configs/zero2_offload.json", "parallel.engine=zero2"],
        ),
        (
            ["--local_rank=1", "--engine", "zero1", "--deepspeed", "ds_configs/zero3.json"],
            ["parallel.deepspeed=ds_configs/zero3.json", "parallel.engine=zero1"],
        ),
    ],
)
def test_the_engine_is_that_of_the_files_stage_unless_it_is_named(arguments, overrides):
    parser = argparse.ArgumentParser()
    add_spec_arguments(parser)
    add_engine_arguments(parser)
    assert overrides_from(parser.parse_args(["spec.yaml", *arguments])) == overrides


@pytest.mark.parametrize("file", ["null", "a: b.json", "[x].json", "1", "a #b.json", "plain.json", 'a"b.json'])
def test_the_name_of_a_deepspeed_file_stays_a_name(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text('{"zero_optimization": {"stage": 2}}')
    parser = argparse.ArgumentParser()
    add_spec_arguments(parser)
    add_engine_arguments(parser)
    overrides = overrides_from(parser.parse_args(["spec.yaml", "--deepspeed", file]))
    (tmp_path / "spec.yaml").write_text("data: {annotations: a, videos: v}\nmodel: {backbone: {mode: frozen}}\n")
    assert load("spec.yaml", overrides, check_files=False).parallel.deepspeed == file


def test_a_row_may_be_named_instead_of_its_file(capsys):
    for name in ("thumos-s-768", "thumos/s_768x160_adapter", "e2e_thumos_videomae_s_768x1_160_adapter.py"):
        assert spec_path(name) == "configs/thumos/s_768x160_adapter.yaml"
        assert f"note: {name} is " in capsys.readouterr().err
    assert spec_path("demo/tia") == "configs/demo/tia.yaml"
    assert "the shipped" in capsys.readouterr().err
    for name in ("configs/demo/tia.yaml", "nowhere.yaml", "s-768", "", "configs"):
        assert spec_path(name) == name
    assert capsys.readouterr().err == ""
