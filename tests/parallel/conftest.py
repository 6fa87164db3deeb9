"""What tests of engines share: a spec, and what one process makes of it, which is the truth for all engines."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import run_ranks
from steps import Outcome, train_steps, zero3_settings
from tiny_spec import TINY_SPEC

Truth = Callable[[list[str], int], Outcome]


@pytest.fixture(scope="session")
def rateless_spec(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """TINY_SPEC without rates of its own for parts of the backbone, which every mode here has or lacks."""
    text = TINY_SPEC.format(data=tiny_data, runs=tiny_data.parent / "runs").splitlines()
    path = tmp_path_factory.mktemp("rateless") / "tiny.yaml"
    path.write_text("\n".join(line for line in text if "custom" not in line))
    return str(path)


@pytest.fixture(scope="session")
def truth(rateless_spec: str, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """truth(overrides, steps): one process of engine ddp trains `rateless_spec` so many steps.

    Each is made once for all processes that run tests: the data is the same in each of them.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "truths"
    folder.mkdir(exist_ok=True)

    def of(overrides: list[str], steps: int) -> Outcome:
        path = folder / hashlib.sha256(json.dumps([overrides, steps]).encode()).hexdigest()
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                path.write_bytes(pickle.dumps(run_ranks(1, train_steps, rateless_spec, overrides, steps)[0]))
        return pickle.loads(path.read_bytes())

    return of


@pytest.fixture(scope="session")
def engine_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Overrides for each engine; zero3 with limits that keep none of so small a model whole."""
    plain = ("ddp", "fsdp", "zero1", "zero2", "fairscale")
    return {engine: [f"parallel.engine={engine}"] for engine in plain} | {
        "zero3": zero3_settings(tmp_path_factory.mktemp("deepspeed"))
    }
