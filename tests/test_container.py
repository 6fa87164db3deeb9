"""The recipe of the container: sound by a linter, and built as far as it goes without a network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "Containerfile"
LINTER = Path(sys.executable).with_name("hadolint")


def test_the_linter_finds_nothing():
    done = subprocess.run([LINTER, RECIPE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_takes_what_the_package_is_made_of():
    copied = {name for line in re.findall(r"^COPY ([^-].*) \S+$", RECIPE.read_text(), re.M) for name in line.split()}
    assert {name for name in copied if not (ROOT / name).exists()} == set()
    assert copied == {
        "setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "adatad", "configs", "ds_configs"
    }  # fmt: skip


def test_torch_is_the_one_that_the_set_up_pins():
    (pinned,) = set(re.findall(r"torch==\S+", RECIPE.read_text()))
    assert pinned in (ROOT / "launch" / "setup.sh").read_text()


def builder() -> str:
    for name in ("podman", "docker"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    pytest.skip("no builder of containers runs here")


def test_the_files_are_gathered_without_a_network(tmp_path):
    name, empty = builder(), tmp_path / "empty.tar"
    (tmp_path / "nothing").touch()
    subprocess.run(["tar", "-cf", empty, "-C", tmp_path, "nothing"], check=True)
    image = "localhost/adatad-empty"
    subprocess.run([name, "import", empty, image], check=True, capture_output=True)
    command = [name, "build", "--network", "none", "--pull=false", "--build-arg", f"BASE={image}", "--target", "source"]
    done = subprocess.run([*command, "--file", RECIPE, ROOT], capture_output=True, text=True)
    subprocess.run([name, "rmi", image], capture_output=True)
    assert done.returncode == 0, done.stderr
