"""The goldens notice deliberate mistakes: see mutations.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_planted_mistake_is_caught():
    script = Path(__file__).with_name("mutations.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    caught, planted = map(int, re.search(r"(\d+) of (\d+) mistakes caught", run.stdout).groups())
    assert caught == planted >= 12
