"""What tests of the documentation share: the site, built once."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `bash launch/docs.sh` builds it."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    subprocess.run(["bash", ROOT / "launch" / "docs.sh", "--output", folder], check=True)
    return folder
