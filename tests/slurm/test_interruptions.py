"""What a cluster does to a job, for real: time limits, preemption, lost nodes, errors, scancel. Jobs that may go on end
with the weights of one that was never interrupted: of as many ranks bit for bit.

Without --full only a time limit, a lost node and an array; what the supervisor decides is tested in tests/cluster."""

import json
import re

import pytest
from cluster import until
from jobs import ROOT, TWO_NODES, quick
from test_whole_jobs import assert_same

pytestmark = pytest.mark.slow
ONE_NODE = ("--nodes=1",)


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_time_limit(nodes, submit, cluster, request):
    """Slurm looks at time limits every 30 s: the warning comes somewhere in the first attempt, which waits for it; on a
    busy machine before the first step, and so in later attempts too, if they weren't given more time."""
    job = submit("train_g_1536.sh", options=(f"--nodes={nodes}", "--time=1", "--signal=USR1@30"), plant="hold:2")
    job.until(lambda: cluster.facts(job.id).get("Restarts") == "1", "requeued")
    cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=20")
    job.ends_as("COMPLETED")
    uninterrupted = request.getfixturevalue("one_process" if nodes == 1 else "two_nodes")
    assert_same(job.checkpoint(), uninterrupted if nodes == 1 else uninterrupted.checkpoint())
    ends = job.ended()
    assert re.fullmatch(r"requeued: stopped by SIGUSR1 at step [123]", ends[0])
    assert ends[-1] == "done"
    # One output of all attempts.
    assert f"attempt {job.id}-000" in job.log
    assert f"attempt {job.id}-001" in job.log
    assert f"== attempt {job.id}-000" in job.rank_log(nodes - 1)
    assert f"== attempt {job.id}-001" in job.rank_log(nodes - 1)


@pytest.mark.full
def test_preemption_with_more_signals_while_saving(submit, two_nodes, cluster):
    """Loader processes receive the signals too."""
    job = submit("train_g_1536.sh", "data.workers=1", plant="keep-holding:2")
    job.held(2)
    node = cluster.facts(job.id)["BatchHost"]
    high = cluster.run(
        "sbatch", "--parsable", "--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null",
        "--wrap=true",
    ).strip()  # fmt: skip
    job.until(lambda: "PreemptTime=20" in str(cluster.run("scontrol", "show", "job", "-o", job.id)), "preempted")
    for name in ("USR1", "TERM", "USR1"):
        cluster.run("scancel", "-s", name, job.id)
    job.go.touch()
    assert cluster.wait(high) == "COMPLETED"
    job.ends_as("COMPLETED")
    assert_same(job.checkpoint(), two_nodes.checkpoint())
    assert re.fullmatch(r"requeued: stopped by SIG(TERM|USR1) at step 3", job.ended()[0])
    assert "DataLoader worker" not in job.log


def test_a_node_that_is_cut_off_and_its_rank_that_does_not_know(submit, cluster, one_process):
    """The node is lost with the batch script. The rank there goes on working, and would write later."""
    job = submit("train_g_1536.sh", options=ONE_NODE, plant="keep-holding:2")
    job.held(1)
    lost = cluster.facts(job.id)["BatchHost"]
    try:
        cluster.cut(lost)
        job.until(lambda: cluster.facts(job.id).get("Restarts") == "1", "requeued by Slurm")
        job.ends_as("COMPLETED")
        assert cluster.facts(job.id)["BatchHost"] != lost
        # Now the forgotten rank comes on, and finds that the run isn't its own any more.
        written = {path: path.stat().st_mtime_ns for path in (job.run / "checkpoints").rglob("*")}
        job.go.touch()
        cause = until(lambda: re.search(r"rank 0 \| .*was opened by another process.*", job.log), "it was refused")
        assert "writes nothing more to it" in job.log[cause.start() :]
        assert {path: path.stat().st_mtime_ns for path in (job.run / "checkpoints").rglob("*")} == written
        assert cluster.is_in(job.id, "COMPLETED")
    finally:
        cluster.heal(lost)
        until(lambda: cluster.idle() == cluster.nodes, "the node is back")
    assert_same(job.checkpoint(), one_process)
    assert job.ended()[1] == "done"


@pytest.mark.full
def test_a_job_of_two_nodes_goes_on_without_its_first(submit, cluster, two_nodes):
    job = submit("train_g_1536.sh", plant="hold:2")
    job.held(2)
    lost = cluster.facts(job.id)["BatchHost"]
    try:
        cluster.cut(lost)
        job.ends_as("COMPLETED")
        assert cluster.facts(job.id)["BatchHost"] != lost
    finally:
        cluster.heal(lost)
        until(lambda: cluster.idle() == cluster.nodes, "the node is back")
    assert_same(job.checkpoint(), two_nodes.checkpoint())
    assert job.ended()[-1] == "done"


@pytest.mark.full
def test_a_rank_that_fails_fails_the_job_with_its_error_last(submit, cluster):
    """Under an --export that drops all else, also the path of commands; steps would inherit it."""
    exported = "--export=" + ",".join([*quick(), "PROGRAM", "PLANT", "PLANT_GO"])
    job = submit("train_g_1536.sh", options=(exported,), plant="fail:1:3")
    job.ends_as("FAILED")
    assert cluster.facts(job.id)["Restarts"] == "0"
    end = job.log[job.log.index("The first failing rank was rank 1 (") :].splitlines()
    assert re.fullmatch(r"rank 1 \| rank 1 on n\d+ \(pid \d+\): ValueError: planted in a step", end[1])
    assert "rank 1 | ValueError: planted in a step" in end
    assert end[-1].endswith(f"logs of each in {job.run}/slurm/logs")
    assert job.ended() == ["failed: exit code 1"]


@pytest.mark.full
def test_scancel_is_final_yet_a_checkpoint_is_made(submit, cluster):
    job = submit("train_g_1536.sh", plant="hold:2")
    job.held(2)
    cluster.run("scancel", job.id)
    job.ends_as("CANCELLED")
    until(lambda: job.ended()[0], "the batch script has left its word")
    assert re.fullmatch(r"ended: stopped by SIGTERM at step 3, the job was (COMPLETING|CANCELLED)", job.ended()[0])
    # What would bring it back would have done so by the time that another job has come and gone.
    cluster.run("srun", "--nodes=4", "true")
    assert cluster.is_in(job.id, "CANCELLED")
    assert [path.name for path in sorted((job.run / "checkpoints").glob("step-*"))][-1] == "step-00000003"


@pytest.mark.full
def test_a_job_that_may_not_be_requeued_says_how_to_go_on(submit, cluster):
    job = submit("train_g_1536.sh", options=("--no-requeue",), plant="hold:2")
    job.held(2)
    cluster.run("scancel", "-s", "USR1", job.id)
    job.ends_as("FAILED")
    assert "may not be requeued: submit it again" in job.log
    assert cluster.facts(job.id)["ExitCode"] == "75:0"


@pytest.mark.full
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_another_launcher_stops_and_resumes_in_the_same_way(launcher, submit, cluster, two_nodes):
    job = submit("train_g_1536.sh", "--launcher", launcher, plant="hold:2")
    job.held(2)
    cluster.run("scancel", "-s", "USR1", job.id)
    job.ends_as("COMPLETED")
    assert job.ended() == ["requeued: stopped by SIGUSR1 at step 3", "done"]
    assert_same(job.checkpoint(), two_nodes.checkpoint())
    if launcher == "torchrun":
        assert "trained in all" in job.rank_log(0)
        assert "trained in all" not in job.rank_log(1)


@pytest.mark.full
def test_a_bad_node_is_named_left_out_and_the_job_goes_on_without_it(submit, cluster):
    bad = "n1"
    cluster.on_node(bad, "touch", "/dev/shm/scratch")
    try:
        job = submit("train_g_1536.sh", HEALTH_CHECK="1", SLOW_FACTOR="1000", LOCAL_DISK="/dev/shm/scratch")
        job.ends_as("COMPLETED")
    finally:
        cluster.on_node(bad, "rm", "/dev/shm/scratch")
    assert f"health check: {bad}: /dev/shm/scratch can't be written: " in job.log
    assert job.ended() == [f"requeued: bad node {bad}", "done"]
    assert cluster.facts(job.id)["ExcNodeList"] == bad
    starts = sorted((job.run / "slurm" / "attempts").glob("*.start"))
    assert [json.loads(file.read_text())["nodes"] for file in starts] == ["n[1-2]", "n[2-3]"]


def test_a_task_of_an_array_comes_back_alone(submit, cluster, tmp_path, tiny):
    """The one whose number is the array's own, which scontrol would take for all of them."""
    rows = tmp_path / "rates.txt"
    rows.write_text(
        "# two rates\noptimizer.backbone.custom.0.lr=1e-4\n\noptimizer.backbone.custom.0.lr=2e-3 train.seed=7\n"
    )
    go = tmp_path / "go"
    plant = {"PROGRAM": str(ROOT / "tests/slurm/planted.py"), "PLANT": "hold:2", "PLANT_GO": str(go)}
    runs = tmp_path / "runs"
    array = cluster.run(
        "sbatch", "--parsable", "--array=0-1", *TWO_NODES, *ONE_NODE, f"--output={tmp_path}/%A_%a.log",
        "slurm/sweep.sh", str(rows), "configs/thumos/g_1536x224_adapter.yaml", *tiny, f"run.root={runs}",
        cwd=ROOT, **{**quick(), **plant},
    ).strip()  # fmt: skip

    def both_run() -> bool:
        assert not any(cluster.is_in(f"{array}_{task}", "FAILED") for task in (0, 1)), logs()
        return (tmp_path / "go.held-0").exists() and len(list(runs.rglob("*.start"))) == 2

    def logs() -> str:
        return "\n".join(log.read_text() for log in tmp_path.glob("*.log"))

    until(both_run, "both run")
    own = next(t for t in (0, 1) if cluster.facts(f"{array}_{t}")["JobId"] == array)
    cluster.run("scancel", "-s", "USR1", f"{array}_{own}")
    until(lambda: cluster.facts(f"{array}_{own}").get("Restarts") == "1", "it came back")
    go.touch()
    for task in (0, 1):
        assert cluster.wait(f"{array}_{task}") == "COMPLETED", (tmp_path / f"{array}_{task}.log").read_text()
    assert cluster.facts(f"{array}_{1 - own}")["Restarts"] == "0"
    table = (runs / "thumos" / "g_1536x224_adapter" / "sweep-rates.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["0", "1"]
    assert "2e-3 train.seed=7" in table[3]
    last = max((tmp_path / f"{array}_{task}.log" for task in (0, 1)), key=lambda log: log.stat().st_mtime)
    assert table[3] in last.read_text()
