"""Jobs that nothing interrupts, on a real Slurm: they train what one process trains, under every launcher."""

import json
import re

import pytest
import torch
from jobs import LAST_STEP, NODE_DISK

pytestmark = [pytest.mark.slow, pytest.mark.full]


def relative_change(ours, theirs) -> float:
    """Return the change relative to the joint norm of all trained weights and averages."""
    names = list(theirs.parameters)
    difference = sum(float((ours.parameters[n].double() - theirs.parameters[n]).pow(2).sum()) for n in names)
    return (difference / sum(float(theirs.parameters[n].double().pow(2).sum()) for n in names)) ** 0.5


def test_two_nodes_train_what_one_process_trains(two_nodes, one_process):
    assert relative_change(two_nodes.checkpoint(), one_process) < 1e-5
    assert two_nodes.ended() == ["done"]
    assert f"done, step {LAST_STEP}" in two_nodes.log


def test_every_rank_has_a_file_and_the_merged_one_names_ranks(two_nodes):
    assert re.search(r"^rank 0 \| \d\d:\d\d:\d\d run ", two_nodes.log, re.MULTILINE)
    assert "trained in all" in two_nodes.rank_log(0)
    assert "trained in all" not in two_nodes.rank_log(1)
    assert two_nodes.rank_log(1).startswith("== attempt ")
    assert "The first failing rank" not in two_nodes.log


def test_nodes_were_looked_at_before(two_nodes):
    reports = [json.loads(file.read_text()) for file in (two_nodes.run / "slurm" / "health").glob("*/*.json")]
    assert sorted(report["host"] for report in reports) == sorted(
        two_nodes.cluster.run(
            "scontrol", "show", "hostnames", two_nodes.cluster.facts(two_nodes.id)["NodeList"]
        ).split()
    )
    for report in reports:
        assert report["problems"] == []
        assert report["gbit_per_second"] > 0
        assert abs(report["clock_offset_seconds"]) < 5
        assert report["product_ms"] > 0


def test_videos_were_copied_to_every_node(two_nodes):
    for report in (two_nodes.run / "slurm" / "health").glob("*/*.json"):
        listed = two_nodes.cluster.on_node(report.stem, "ls", NODE_DISK).split()
        assert len(listed) == 8
    assert two_nodes.log.count(f"{NODE_DISK}: 8 videos copied, 0 left as they are") == 2
    assert "0 videos copied, 8 left as they are" in two_nodes.rank_log(0)


def assert_same(ours, theirs) -> None:
    """Bit for bit."""
    for mine, other in ((ours.parameters, theirs.parameters), (ours.ema, theirs.ema)):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in other)
