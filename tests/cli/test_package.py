"""The package as pip builds and installs it, used from an empty folder; and that setup.cfg lists all of it."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import adatad

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
IN_CHECKOUT_ALONE = "adatad.dev"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages with this one in it, out of a wheel."""
    # Building leaves files behind: not in the checkout.
    source = tmp_path_factory.mktemp("source")
    for name in ("adatad", "configs", "ds_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    site = source / "site"
    subprocess.run([*PIP, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "dist"], cwd=source, check=True)
    (wheel,) = (source / "dist").iterdir()
    subprocess.run([*PIP, "install", "--no-deps", "--no-compile", "--target", str(site), str(wheel)], check=True)
    return site


COMMANDS = """
import sys
from pathlib import Path
# Of a checkout that is installed for editing: it would find in the checkout what the wheel lacks.
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
import adatad
from adatad.cli.main import main
assert Path(adatad.__file__).is_relative_to(sys.argv[1]), adatad.__file__
assert main(["spec", "thumos/s_768x160_adapter"]) == 0
assert main(["spec", "--copy", "demo/plain"]) == 0
assert main(["spec", "plain.yaml"]) == 0
assert main(["weights", "where", "thumos/s_768x160_adapter"]) == 0
assert main(["dev", "benchmark", "memory"]) == 2
assert main(["data", "summary", "demo/tia"]) == 2
from adatad.parallel.deepspeed.config import deepspeed_file
from adatad.spec import load
spec = load("plain.yaml", ["parallel.engine=zero2"], check_files=False)
assert Path(spec.model.backbone.weights).is_file()
assert deepspeed_file(spec).is_file()
"""


def test_an_installed_package_works_from_an_empty_folder(site, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    version = subprocess.run([sys.executable, str(site / "bin" / "adatad"), "--version"], **run)
    assert (version.returncode, version.stdout) == (0, f"adatad {adatad.__version__}\n"), version.stderr
    done = subprocess.run([sys.executable, "-c", COMMANDS, str(site)], **run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preset: small" in done.stdout
    assert "adatad dev needs a checkout" in done.stderr
    assert "data/demo/annotations.json: can't be read" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plain.yaml"]


def test_the_wheel_holds_what_is_shipped_and_no_tools_of_development(site):
    assert not (site / "adatad" / "dev").exists()
    for folder in ("configs", "ds_configs"):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {path for path in files if not (site / "adatad" / path).is_file()} == set()
    assert (site / "adatad" / "report" / "data_check.html").is_file()
    for package in ("detect", "report"):
        page_files = Path("adatad", package, "page_files")
        assert {path.name for path in (site / page_files).iterdir()} == {
            path.name for path in (ROOT / page_files).iterdir()
        }
    assert {path.name for path in site.iterdir() if "dist-info" not in path.name} == {"adatad", "bin"}


def test_setup_cfg_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split()) - {"adatad.configs", "adatad.ds_configs"}
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "adatad").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert listed == {name for name in packages if not name.startswith(IN_CHECKOUT_ALONE)}
