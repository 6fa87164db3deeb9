"""Host memory within the bounds of jobs and containers."""

import psutil
import pytest

from adatad.training import host_memory


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(groups of the process, files of groups): what is available there, of 1000 bytes."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Ram", (), {"available": 1000})())
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(host_memory, "OWN_GROUPS", tmp_path / "own")

    def available(own: str | None, files: dict[str, str]) -> int:
        if own is not None:
            (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return host_memory.available_bytes()

    return available


def test_without_groups_it_is_the_machine_s(machine):
    assert machine(None, {}) == 1000
    assert machine("0::/job\n", {"job/memory.max": "max\n", "job/memory.current": "7\n"}) == 1000


def test_the_bound_of_a_job_above_the_step_counts_but_its_file_cache_doesn_t(machine):
    files = {
        "job/step/memory.max": "max", "job/step/memory.current": "3", "job/step/memory.stat": "anon 3",
        "job/memory.max": "500", "job/memory.current": "300", "job/memory.stat": "anon 200\ninactive_file 100\n",
    }  # fmt: skip
    assert machine("0::/job/step\n", files) == 300


def test_the_older_groups_whose_path_a_container_doesn_t_show(machine):
    files = {
        "memory/memory.limit_in_bytes": "600", "memory/memory.usage_in_bytes": "650",
        "memory/memory.stat": "total_inactive_file 20\ninactive_file 10",
    }  # fmt: skip
    assert machine("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n", files) == 0
