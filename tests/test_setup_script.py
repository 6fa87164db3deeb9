"""launch/setup.sh, with programs that only note how they are called in the place of Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_PIP = "#!/bin/sh\nexit 1\n"
WITH_PIP = '#!/bin/sh\necho ".venv $*" >> calls\n'
PYTHON = f"""#!/bin/sh
echo "python $*" >> calls
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p .venv/bin
  printf '%s' '{WITH_PIP}' > .venv/bin/python
  chmod +x .venv/bin/python
fi
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("there", "made"), [(None, True), (WITHOUT_PIP, True), (WITH_PIP, False)])
def test_an_environment_without_pip_is_made_again(tmp_path, there, made):
    for name in ("setup.cfg", "constraints.txt", "launch/setup.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    if there:
        program(tmp_path / ".venv" / "bin" / "python", there)
    environment = {**os.environ, "PYTHON": str(program(tmp_path / "python", PYTHON))}
    command = ["bash", str(tmp_path / "launch" / "setup.sh"), "dev"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    calls = (tmp_path / "calls").read_text()
    assert ("python -m venv" in calls) == made
    assert ".venv -m pip install" in calls
    assert (tmp_path / ".venv" / "installed" / "dev").is_file()
