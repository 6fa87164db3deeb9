"""--deepspeed and --engine on the command line."""

import argparse

import pytest

from adatad.spec import add_engine_arguments, add_spec_arguments, overrides_from


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
