"""Nodes looked at before training: what is found on one, and who is judged bad."""

import os

import pytest
from ranks import run_ranks

from adatad.cluster import node_check
from adatad.cluster.node_check import Report, examine, exchange, judge


def write(folder, *reports: Report) -> list[str]:
    for report in reports:
        report.write(folder)
    return [report.host for report in reports]


def judged(folder, hosts, slow_factor=1.5, min_gbit=0.0) -> dict[str, str]:
    return judge(folder, hosts, slow_factor, min_gbit)


def test_a_healthy_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n9")
    report = examine(tmp_path, 0.001)
    assert report.problems == []
    assert report.product_ms > 0
    assert report.line().startswith("n9: no GPU, ")
    assert not list(tmp_path.iterdir())


def test_what_can_be_wrong_with_one(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    problems = examine(tmp_path / "file", 1e9).problems
    assert any("GiB of memory of the machine are free" in text for text in problems)
    assert any("can't be written" in text for text in problems)
    monkeypatch.setattr(node_check.os, "urandom", lambda count: b"written")
    monkeypatch.setattr(node_check.Path, "read_bytes", lambda path: b"read")
    assert any("what is read isn't what was written" in text for text in examine(tmp_path, 0.001).problems)


def test_gpus_that_are_missing(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert "0 GPUs can be used of the job's 2" in examine(tmp_path, 0.001).problems


def test_bad_hosts_are_named(tmp_path):
    hosts = write(
        tmp_path, Report("a", product_ms=1.0), Report("b", product_ms=1.1), Report("c", product_ms=1.7),
        Report("d", ["its disk"], product_ms=1.0),
    )  # fmt: skip
    bad = judged(tmp_path, [*hosts, "e"])
    assert set(bad) == {"c", "d", "e"}
    assert bad["c"].startswith("slow: a matrix product takes 1.70 ms, elsewhere 1.00")
    assert bad["e"] == "didn't answer"
    assert judged(tmp_path, ["a", "b"]) == {}
    (tmp_path / "b.json").write_text('{"host": "b", "prob')
    assert judged(tmp_path, ["a", "b"]) == {"b": "didn't answer"}


def test_of_two_the_slower_one_is_judged_by_the_other(tmp_path):
    assert list(judged(tmp_path, write(tmp_path, Report("a", product_ms=9.0), Report("b", product_ms=1.0)))) == ["a"]


def test_what_is_nobodys_own_fault_names_no_host(tmp_path):
    hosts = write(tmp_path, Report("a", gbit_per_second=3.0), Report("b", exchange_error="timed out"))
    assert judged(tmp_path, hosts)[""].endswith("b: timed out")
    hosts = write(tmp_path, Report("a", gbit_per_second=3.0), Report("b", gbit_per_second=5.0))
    assert "slower than 4 Gbit/s" in judged(tmp_path, hosts, min_gbit=4)[""]
    assert judged(tmp_path, hosts, min_gbit=2) == {}


def test_a_node_that_dies_in_the_exchange_is_not_taken_for_well(tmp_path, monkeypatch):
    """NCCL, for one, ends a process that waits too long."""
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURMD_NODENAME", "a")
    monkeypatch.setattr(
        node_check.sys, "argv", ["node_check", str(tmp_path), "--disk", str(tmp_path), "--min-free-gib", "0"]
    )

    def die(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(node_check, "exchange", die)
    with pytest.raises(KeyboardInterrupt):
        node_check.main()
    assert judged(tmp_path, ["a"])[""].endswith("a: didn't come back from it")
    monkeypatch.setattr(node_check, "exchange", lambda *arguments: None)
    node_check.main()
    assert judged(tmp_path, ["a"]) == {}


def meet(ill: int | None) -> Report:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    report = Report(f"n{rank}", ["ill"] if rank == ill else [])
    exchange(report, rank, world, 60)
    return report


@pytest.mark.parametrize("ill", [None, 1])
def test_nodes_meet_unless_one_is_ill(ill):
    for report in run_ranks(2, meet, ill):
        if ill is None:
            assert report.gbit_per_second > 0
            assert abs(report.clock_offset_seconds) < 5
        else:
            assert report.gbit_per_second is None
