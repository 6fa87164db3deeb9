"""An empty folder to work in, with the small data set's videos, and commands that run there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_data_set import INSTANCES, write_video


@pytest.fixture(scope="session")
def four_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of k0.mp4 to k3.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "k0.mp4")
    for name in list(INSTANCES)[1:]:
        shutil.copy(folder / "k0.mp4", folder / f"{name}.mp4")
    return folder


@pytest.fixture
def here(tmp_path: Path, four_videos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for v/ with the four videos, as working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(four_videos, tmp_path / "v")
    return tmp_path
