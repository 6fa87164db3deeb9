"""A launcher's variables that don't fit together: refused in a line, before anything waits for anybody."""

import socket
from dataclasses import replace

import pytest
import torch
from ranks import run_ranks

from adatad.parallel.processes import ProcessesError, is_first_rank, launched_rank, start_processes

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
HERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def set_variables(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def set_all(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE are set, MASTER_ADDR isn't: start .* torchrun .*unset"),
        ({"RANK": ""}, "RANK is set but empty: unset it"),
        ({"WORLD_SIZE": " "}, "WORLD_SIZE is set but empty: unset it"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is set but empty: unset it"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": ""}, "MASTER_ADDR is set but empty: unset it"),
        ({"RANK": "0", "WORLD_SIZE": "2", **HERE, "MASTER_PORT": ""}, "MASTER_PORT is set but empty: unset it"),
        ({"RANK": "", "WORLD_SIZE": "2", **HERE}, "RANK is set but empty: unset it"),
        ({"RANK": "x", "WORLD_SIZE": "2", **HERE}, "RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2", **HERE}, "RANK is 2, and WORLD_SIZE 2"),
        ({"RANK": "-1", "WORLD_SIZE": "2", **HERE}, "RANK is '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, RANK isn't"),
        ({"RANK": "1"}, "RANK is set, WORLD_SIZE isn't"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT isn't"),
        ({"RANK": "0", "WORLD_SIZE": "2", **HERE, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"RANK": "0", "WORLD_SIZE": "2", **HERE, "MASTER_PORT": "70000"}, "a port from 1 to 65535"),
        ({"LOCAL_RANK": "first"}, "LOCAL_RANK is 'first'"),
    ],
)
def test_variables_that_do_not_fit_are_named_with_the_cure(set_variables, variables, says):
    set_variables(variables)
    with pytest.raises(ProcessesError, match=says), start_processes(1):
        pass


@pytest.mark.parametrize("variables", [{}, {"RANK": "0"}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_a_process_alone_needs_no_address(set_variables, variables):
    set_variables(variables)
    assert (launched_rank().rank, launched_rank().world) == (0, 1)
    assert is_first_rank()


def test_a_port_in_use_is_said_with_the_cure(set_variables):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        set_variables({"RANK": "0", "WORLD_SIZE": "2", **HERE, "MASTER_PORT": str(taken.getsockname()[1])})
        with pytest.raises(ProcessesError, match=r"is in use by another program.*--master-port"), start_processes(1):
            pass


def counts_beside_a_device() -> tuple[int, list[float], bool]:
    """Counts of a rank whose device isn't the CPU: a group of CPU tensors alone has no way to exchange what lies
    there."""
    with start_processes() as processes:
        processes = replace(processes, device=torch.device("meta"))
        return processes.sum(processes.rank + 1), processes.sum_floats([0.5, 1.0]), processes.any(processes.rank == 1)


@pytest.mark.slow
def test_counts_and_flags_of_the_host_stay_in_host_memory():
    assert run_ranks(2, counts_beside_a_device) == [(3, [1.0, 2.0], True)] * 2
