"""What a user types, on a real Slurm: the README's cluster section, and every script of slurm/ as sbatch sees it."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from cluster import until
from jobs import ROOT, quick

pytestmark = pytest.mark.slow
SUBMITTED = sorted(path.name for path in (ROOT / "slurm").glob("*.sh") if "#SBATCH" in path.read_text())


def readme_commands() -> list[list[str]]:
    """Words of the commands of the README's block that submits jobs."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text().replace("\\\n", " "), re.DOTALL)
    block = next(block for block in blocks if "sbatch" in block)
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def test_sbatch_takes_every_script_as_it_is(cluster):
    for name in SUBMITTED:
        array = ["--array=0-1"] if name in ("sweep.sh", "detect.sh") else []
        said = cluster.run("sbatch", "--test-only", *array, f"slurm/{name}", "spec.yaml", check=False, cwd=ROOT)
        assert "to start at" in said, (name, said)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A clone as a user has it, with its environment."""
    folder = tmp_path / "clone"
    for name in ("adatad", "configs", "ds_configs", "slurm", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*", "*.tmp.*"))
    shutil.copy(ROOT / "setup.cfg", folder)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def test_the_commands_of_the_readme(cluster, checkout, tiny):
    """They run as they stand there, with a tiny model. The second job is submitted while the first one runs."""
    # The environment here may hold another checkout's package.
    settings = {k: v for k, v in quick().items() if k != "VENV"} | {"PYTHONPATH": str(checkout)}
    jobs = []
    for words in readme_commands():
        if words[0] == "sbatch":
            if "test.sh" in " ".join(words):
                assert cluster.wait(jobs[-1]) == "COMPLETED", logs(checkout)
            small = ["--parsable", "--cpus-per-task=1", "--ntasks-per-node=1"]
            said = cluster.run(words[0], *small, *words[1:], *tiny, cwd=checkout, **settings)
            jobs.append(said.strip())
        elif "submit" in words:
            # Two ranks in the place of four: each costs seconds of imports.
            small = ["--sbatch=--ntasks-per-node=1", "--sbatch=--gpus-per-node=1"]
            said = cluster.run(*python(words), *small, *tiny, cwd=checkout, **settings)
            jobs.append(re.match(r"job (\d+); adatad status \S+/id1 --watch", said)[1])
        else:
            metrics = checkout / words[-1] / "metrics.jsonl"
            until(lambda file=metrics: file.exists() and "\n" in file.read_text(), f"a step in {metrics}")
            said = cluster.run(*python(words), cwd=checkout, **settings)
            assert re.search(r"step +\d of 6, loss \d", said), said
            assert re.search(rf"job {jobs[-1]} +RUNNING, \S+ left on n", said), said
            assert f"attempt     {jobs[-1]}-000 from " in said
    for job in jobs:
        assert cluster.wait(job) == "COMPLETED", logs(checkout)
    for number in (0, 1):
        folder = checkout / "runs" / "thumos" / "g_1536x224_adapter" / f"id{number}"
        assert (folder / "checkpoints" / "step-00000006").is_dir()
    # The test of the checkpoint that the second job made says what that job's last evaluation said.
    assert "average mAP" in logs(checkout)
    status = cluster.run(sys.executable, "-m", "adatad", "status", str(folder), cwd=checkout, **settings)
    assert re.search(rf"attempt +{jobs[1]}-000 .* on n\[\d-\d\] at the beginning: done", status), status


def python(words: list[str]) -> list[str]:
    assert words[0] == "adatad"
    return [".venv/bin/python", "-m", *words]


def logs(checkout: Path) -> str:
    files = [*(checkout / "slurm" / "logs").glob("*.log"), *(checkout / "runs").rglob("job-*.log")]
    return "\n".join(f"== {file}\n{file.read_text()[-6000:]}" for file in files)


def test_a_script_with_carriage_returns_or_of_too_many_nodes_is_refused_before_it_waits(cluster, tmp_path):
    (tmp_path / "dos.sh").write_bytes((ROOT / "slurm" / "train.sh").read_bytes().replace(b"\n", b"\r\n"))
    assert "line breaks" in cluster.run("sbatch", "--test-only", tmp_path / "dos.sh", check=False)
    said = cluster.run("sbatch", "--test-only", "--nodes=99", "slurm/train.sh", check=False, cwd=ROOT)
    assert "not available" in said
