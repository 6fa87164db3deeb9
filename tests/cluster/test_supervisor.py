"""What the supervisor of a job decides upon what srun and scontrol say; both, and the clock, are stand-ins here."""

import contextlib
import io
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from adatad.cli.job import main as job_main
from adatad.cluster import code_snapshot
from adatad.cluster.allocation import System, job_environment
from adatad.cluster.job import JobError
from adatad.cluster.node_check import Report
from adatad.cluster.supervisor import Supervisor, read_settings, take_launcher

ROOT = Path(__file__).parents[2]


class FakeSystem(System):
    """A cluster that does what a test says: srun(command, environment) gives a step's exit code and its lines."""

    def __init__(self, srun, state: str, excluded: str, busy: int, refuses: int):
        self.srun, self.state, self.excluded, self.busy, self.refuses = srun, state, excluded, busy, refuses
        self.steps, self.control, self.received = [], [], []
        self.slept = 0.0
        self.environment = {}

    def call(self, command, environment):
        code, lines = self.run(command, environment)
        print("\n".join(lines))
        return code

    def read(self, command, environment):
        code, lines = self.run(command, environment)
        return code, "\n".join(lines)

    def stream(self, command, environment, take):
        code, lines = self.run(command, environment)
        for line in lines:
            take(line)
        return code

    def sleep(self, seconds):
        self.slept += seconds

    def run(self, command, environment):
        self.environment = dict(environment)
        match command:
            case ["srun", *_]:
                self.steps.append(command)
                return self.srun(command, environment)
            case ["scontrol", "show", "hostnames", nodes]:
                return 0, nodes.split(",")
            case ["scontrol", "show", "job", *_]:
                self.busy -= 1
                if self.busy >= 0:
                    return 1, []
                return 0, [f"JobId=7 JobState={self.state} ExcNodeList={self.excluded} Command=x"]
            case ["scontrol", verb, *words]:
                self.control.append(" ".join([verb, *words]))
                self.refuses -= 1
                if verb == "requeue" and self.refuses < 0:
                    self.received.append(signal.SIGTERM)
                return (1 if self.refuses >= 0 else 0), []
            case ["env", "--block-signal=TERM,USR1", "true"]:
                return 0, []
            case [_, "-m", "adatad.cli.job", "snapshot", *arguments]:
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    try:
                        code = job_main(["snapshot", *arguments])
                    except SystemExit as left:
                        code = left.code
                return code, out.getvalue().splitlines()
        raise AssertionError(f"not expected: {command}")


@dataclass
class Outcome:
    code: int
    out: str
    steps: list[list[str]]
    control: list[str]
    environment: dict[str, str]
    slept: float


def stopped(command, environment):
    Path(environment["ADATAD_ATTEMPT"] + ".stopped").write_text("SIGUSR1 at step 3\n")
    return 75, ["0: saved"]


def done(command, environment):
    Path(environment["ADATAD_ATTEMPT"] + ".done").write_text("step 9\n")
    return 0, []


def leaves(code, *lines):
    return lambda command, environment: (code, list(lines))


@pytest.fixture
def job(tmp_path, tiny_spec, monkeypatch, capsys):
    """job(what srun does, *arguments) runs one attempt of a job of tiny_spec to its end."""
    checkout = tmp_path / "checkout"
    for name in ("adatad", "tools", "slurm"):
        (checkout / name).mkdir(parents=True)
    monkeypatch.setattr(code_snapshot, "ROOT", checkout)
    monkeypatch.chdir(checkout)

    def run(
        srun, *arguments, verb="train", first=(), state="RUNNING", excluded="(null)", busy=0, refuses=0, **environment
    ):
        system = FakeSystem(srun, state, excluded, busy, refuses)
        variables = {
            "PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "3", "HEALTH_CHECK": "0", **environment,
        }  # fmt: skip
        with monkeypatch.context() as patch:
            for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "ADATAD_CODE"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            supervisor = Supervisor(variables, system, system.received)
            code = getattr(supervisor, verb)([*first, str(tiny_spec), *arguments])
        return Outcome(code, capsys.readouterr().out, system.steps, system.control, system.environment, system.slept)

    run.folder = tmp_path / "runs" / "tiny" / "id0" / "slurm"
    run.end = lambda name="7-000": (run.folder / "attempts" / f"{name}.end").read_text()
    return run


@pytest.mark.parametrize("code", [75, 1, 137])
def test_a_stopped_attempt_is_requeued_whatever_the_launcher_returns(job, code):
    ended = job(lambda *step: (code, stopped(*step)[1]))
    assert (ended.code, ended.control) == (75, ["requeue 7"])
    assert "rank 0 | saved" in ended.out
    assert "stopped by SIGUSR1 at step 3: requeueing the job" in ended.out
    assert job.end() == "requeued: stopped by SIGUSR1 at step 3\n"
    assert (job.folder / "logs" / "rank-0.log").read_text().startswith("== attempt 7-000, ")
    # Slurm ended it at once: there was nothing to wait for.
    assert ended.slept == 0


def test_an_attempt_waits_for_the_signal_that_ends_it(job, monkeypatch):
    monkeypatch.setattr(FakeSystem, "received", property(lambda self: [], lambda self, value: None), raising=False)
    assert job(stopped).slept == pytest.approx(60)


def test_an_array_task_is_requeued_by_its_own_name(job):
    assert job(stopped, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2").control == ["requeue 7_2"]


def test_a_controller_that_does_not_answer_is_asked_again(job):
    ended = job(stopped, busy=3)
    assert (ended.control, ended.slept) == (["requeue 7"], 3)
    assert job(stopped, busy=99).out.count("the job is unknown to Slurm: not requeued") == 1


def test_a_job_that_may_not_be_requeued_says_how_to_go_on(job):
    ended = job(stopped, refuses=9)
    assert (ended.code, ended.control) == (75, ["requeue 7", "requeue 7"])
    assert "may not be requeued: submit it again" in ended.out
    assert job.end() == "failed: stopped by SIGUSR1 at step 3, and Slurm refused to requeue\n"
    assert job(stopped, refuses=1).control == ["requeue 7", "requeue 7"]


def test_a_requeue_that_ends_scontrol_amid_its_answer_is_no_refusal(job, monkeypatch):
    real = FakeSystem.run

    def run(self, command, environment):
        code, lines = real(self, command, environment)
        if command[:2] == ["scontrol", "requeue"]:
            self.state, code = "PENDING", 143
        return code, lines

    monkeypatch.setattr(FakeSystem, "run", run)
    ended = job(stopped)
    assert ended.control == ["requeue 7"]
    assert job.end() == "requeued: stopped by SIGUSR1 at step 3\n"


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_job_that_is_being_ended_is_not_brought_back(job, state):
    ended = job(stopped, state=state)
    assert (ended.code, ended.control) == (75, [])
    assert job.end() == f"ended: stopped by SIGUSR1 at step 3, the job was {state or 'unknown'}\n"


def test_exit_code_75_without_the_marker_is_a_failure(job):
    """One rank fails, the others answer a signal with 75: a launcher may pass on either code."""
    ended = job(leaves(75, "1: ValueError: broken"))
    assert (ended.code, ended.control) == (75, [])
    assert "The first failing rank was rank 1" in ended.out
    assert job.end() == "failed: exit code 75\n"


def test_a_launcher_that_started_nobody_is_a_failure(job):
    assert job(leaves(0)).code == 1
    ended = job(done)
    assert ended.code == 0
    assert "job: done, step 9" in ended.out
    assert job.end() == "done\n"
    assert "first failing rank" not in ended.out


def test_markers_of_an_earlier_attempt_of_the_same_name_do_not_count(job):
    """Numbers of jobs come again, and train.sh may run twice in one allocation."""
    assert job(done).code == 0
    assert job(leaves(3)).code == 3
    assert job.end() == "failed: exit code 3\n"


def test_restarts_without_progress_end_the_job(job):
    for restarts in range(2):
        assert job(stopped, SLURM_RESTART_COUNT=str(restarts), MAX_IDLE_RESTARTS="2").control == ["requeue 7"]
    with pytest.raises(JobError, match="2 restarts in a row without progress, still at no checkpoint at all"):
        job(stopped, SLURM_RESTART_COUNT="2", MAX_IDLE_RESTARTS="2")
    assert "without progress" in job.end("7-002")
    (job.folder.parent / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert job(stopped, SLURM_RESTART_COUNT="3", MAX_IDLE_RESTARTS="2").control == ["requeue 7"]


def test_a_later_attempt_uses_the_code_and_the_spec_of_the_first(job, tiny_spec):
    job(stopped)
    tiny_spec.write_text("nonsense: true")
    step = " ".join(job(stopped, SLURM_RESTART_COUNT="1").steps[0])
    assert f"{job.folder}/code-7/tools/train.py {job.folder}/spec-7.yaml --resume auto" in step
    assert f"bash {job.folder}/code-7/slurm/rank.sh" in step
    ended = job(stopped)
    assert (ended.code, ended.steps) == (2, [])


def test_a_submitted_job_uses_the_code_that_was_copied_for_it(job, tmp_path, tiny_spec):
    step = " ".join(job(stopped, ADATAD_CODE=f"{tmp_path}/kept").steps[0])
    assert f"{tmp_path}/kept/tools/train.py {tiny_spec} --resume auto" in step
    assert not list(job.folder.glob("code-*"))


def test_a_disk_that_takes_no_more_still_has_the_job_requeued(job, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Supervisor, "markers", property(lambda self: Unwritable(self.folder / "attempts" / "7-000")))
    assert job(stopped).control == ["requeue 7"]


class Unwritable(type(Path())):
    def write_text(self, *arguments, **options):
        raise OSError(28, "No space left on device")


# --- nodes and videos before training --------------------------------------------------------------------


def reports(*problems):
    """A step that writes the reports of nodes n1, n2, ...; None for a node that doesn't answer."""

    def look(command, environment):
        if "adatad.cluster.node_check" not in command:
            return stopped(command, environment)
        folder = Path(command[command.index("adatad.cluster.node_check") + 1])
        for number, problem in enumerate(problems, 1):
            if problem is not None:
                report = Report(f"n{number}", [problem] if problem else [], product_ms=1.0)
                report.write(folder)
        return 1 if any(problems) else 0, []

    return look


def test_a_bad_node_is_left_out_beside_those_that_were_before(job):
    nodes = {"HEALTH_CHECK": "1", "SLURM_JOB_NODELIST": "n1,n2", "SLURM_JOB_NUM_NODES": "2", "LOCAL_DISK": "/d"}
    ended = job(reports("its disk", ""), **nodes, excluded="n8,n9")
    assert len(ended.steps) == 1
    look = " ".join(ended.steps[0])
    assert " --cpus-per-task=6 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=180 timeout" in look
    assert " timeout --kill-after=10 180 " in look
    assert " --disk /d --min-free-gib 2.0 " in look
    assert "health check: n1: its disk" in ended.out
    assert ended.control == ["requeue 7", "update JobId=7 ExcNodeList=n8,n9,n1"]
    assert job.end() == "requeued: bad node n1\n"
    ended = job(reports("", None), **nodes)
    assert "health check: n2: didn't answer" in ended.out
    assert ended.control[1:] == ["update JobId=7 ExcNodeList=n2"]


def test_nodes_are_excluded_as_soon_as_slurm_takes_it(job, monkeypatch):
    """It refuses while the job runs."""
    answers = iter([0, 1, 1, 0])
    real = FakeSystem.run

    def run(self, command, environment):
        code, lines = real(self, command, environment)
        return (
            (next(answers), lines)
            if command[:2] in (["scontrol", "requeue"], ["scontrol", "update"])
            else (code, lines)
        )

    monkeypatch.setattr(FakeSystem, "run", run)
    ended = job(reports("bad"), HEALTH_CHECK="1")
    assert ended.control == ["requeue 7", *["update JobId=7 ExcNodeList=n1"] * 3]


def test_too_many_bad_nodes_end_the_job(job):
    ended = job(reports("bad"), HEALTH_CHECK="1", MAX_EXCLUDED_NODES="2", excluded="n8,n9")
    assert (ended.code, ended.control) == (1, [])
    assert "3 nodes would be left out (n8,n9,n1), more than MAX_EXCLUDED_NODES: giving up" in ended.out
    assert job.end() == "failed: bad node n1\n"
    ended = job(reports("bad"), HEALTH_CHECK="1", MAX_EXCLUDED_NODES="3", excluded="n8,n9")
    assert ended.control[-1] == "update JobId=7 ExcNodeList=n8,n9,n1"


def test_good_nodes_go_on_to_training_and_what_is_no_nodes_fault_fails_the_job(job, monkeypatch):
    ended = job(reports(""), HEALTH_CHECK="1")
    assert len(ended.steps) == 2
    assert ended.control == ["requeue 7"], "by the stopped ranks"
    monkeypatch.setattr("adatad.cluster.supervisor.judge", lambda *arguments: {"": "no route"})
    ended = job(reports(""), HEALTH_CHECK="1")
    assert (ended.code, len(ended.steps), ended.control) == (1, 1, [])
    assert "health check: network: no route" in ended.out
    assert job.end() == "failed: health check\n"


@pytest.mark.parametrize("code", [143, 138])
def test_a_signal_in_the_health_check_is_no_nodes_fault(job, code):
    ended = job(leaves(code), HEALTH_CHECK="1")
    assert (ended.code, ended.control) == (75, ["requeue 7"])
    assert job.end() == "requeued: a signal during the health check\n"


def test_interrupted_staging_is_requeued_and_failed_staging_is_not(job):
    staged = ("--set", "data.stage_to=/nowhere")
    ended = job(leaves(143), *staged)
    assert ended.control == ["requeue 7"]
    assert f"{job.folder}/code-7/tools/stage.py" in " ".join(ended.steps[0])
    ended = job(leaves(2), *staged)
    assert (ended.code, len(ended.steps), ended.control) == (1, 1, [])
    assert "videos couldn't be copied to /nowhere" in ended.out
    assert job.end() == "failed: staging\n"


# --- what is started -------------------------------------------------------------------------------------


def test_ranks_meet_on_the_first_node_of_this_attempt_and_outlive_one_that_fails(job):
    for restarts, nodes in enumerate(("n1,n2", "n3,n2")):
        ended = job(stopped, SLURM_JOB_NODELIST=nodes, SLURM_RESTART_COUNT=str(restarts))
        assert (ended.environment["MASTER_ADDR"], ended.environment["MASTER_PORT"]) == (nodes[:2], "15007")
        step = " ".join(ended.steps[0])
        # A kill's own exit code would hide that of the first failure.
        assert step.startswith("srun --label --cpus-per-task=3 --kill-on-bad-exit=0 --wait=60 env --block-signal=")


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_other_launchers_run_once_on_every_node(job, launcher):
    two = {"SLURM_JOB_NODELIST": "n1,n2", "SLURM_JOB_NUM_NODES": "2"}
    ended = job(leaves(1, "0: [rank3]: KeyError: 'x'"), "--launcher", launcher, **two)
    [step] = ended.steps
    assert step[2:5] == ["--cpus-per-task=6", "--ntasks=2", "--ntasks-per-node=1"]
    assert "The first failing rank was rank 3" in ended.out
    if launcher == "torchrun":
        assert {"--nnodes=2", "--nproc-per-node=2", "--rdzv-endpoint=n1:15007"} <= set(step)
        assert ended.environment["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] == "[rank${rank}]:"
    else:
        hosts = next(word for word in step if word.startswith("--hostfile=")).partition("=")[2]
        assert Path(hosts).read_text() == "n1 slots=2\nn2 slots=2\n"
        # What each task runs, with its node's number between the launcher's options and the program.
        shell = step[step.index("bash") :]
        shell[2] = shell[2].replace("exec", "printf '%s\\n'")
        shown = subprocess.run(shell, env={"SLURM_NODEID": "1"}, capture_output=True, text=True).stdout.splitlines()
        assert shown[shown.index("--node_rank=1") - 1] == "--log_level=warning"
        assert shown[shown.index("--node_rank=1") + 1].endswith("tools/train.py")


def test_another_program_and_a_container(job):
    step = " ".join(job(stopped, PROGRAM="/p.py").steps[0])
    assert f"{sys.executable} /p.py {job.folder}/spec-7.yaml" in step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeSystem, "run", in_container(FakeSystem.run))
        step = " ".join(job(stopped, CONTAINER="/image.sif").steps[0])
    assert "slurm/rank.sh apptainer exec --nv /image.sif python3 " in step


def in_container(real):
    def run(self, command, environment):
        inner = ["apptainer", "exec", "--nv", "/image.sif", "python3"]
        return real(self, ["python3", *command[5:]] if command[:5] == inner else command, environment)

    return run


def test_signals_wait_for_the_trainer_also_where_env_cannot_hold_them(job, monkeypatch):
    real = FakeSystem.run
    monkeypatch.setattr(FakeSystem, "run", lambda self, c, e: (125, []) if c[0] == "env" else real(self, c, e))
    step = job(stopped).steps[0]
    held = step[step.index("--wait=60") + 1 : step.index("bash")]
    status = subprocess.run([*held, "cat", "/proc/self/status"], capture_output=True, text=True).stdout
    blocked = int(re.search(r"^SigBlk:\s*([0-9a-f]+)$", status, re.MULTILINE)[1], 16)
    assert blocked == 1 << (signal.SIGTERM - 1) | 1 << (signal.SIGUSR1 - 1)


def test_what_the_user_has_set_stays_in_the_environment_of_steps():
    outside = {"SLURM_JOB_ID": "20009", "SLURM_EXPORT_ENV": "VENV,HOME", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": ""}
    inside = job_environment(outside, "n1")
    assert "SLURM_EXPORT_ENV" not in inside, "steps would drop what is set here"
    assert (inside["NCCL_DEBUG"], inside["OMP_NUM_THREADS"], inside["MASTER_PORT"]) == ("INFO", "1", "15009")
    assert inside["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in job_environment({**outside, "PYTORCH_ALLOC_CONF": "backend:native"}, "n1")
    assert job_environment({**outside, "PYTORCH_CUDA_ALLOC_CONF": ""}, "n1")["PYTORCH_CUDA_ALLOC_CONF"] == ""


# --- test and sweep --------------------------------------------------------------------------------------


def test_a_test_job_that_a_preemption_ends_is_requeued(job):
    ended = job(leaves(143), verb="test")
    assert (ended.code, ended.control) == (143, ["requeue 7"])
    assert "--block-signal" not in " ".join(ended.steps[0]), "nobody here stops in good order: a signal ends the ranks"
    for code, state in ((143, "COMPLETING"), (2, "RUNNING"), (0, "RUNNING")):
        ended = job(leaves(code), verb="test", state=state)
        assert (ended.code, ended.control) == (code, [])


def test_a_task_of_a_sweep_takes_its_line_and_refuses_one_that_cannot_be_read(job, tmp_path, monkeypatch):
    rows = tmp_path / "rows.txt"
    rows.write_text("# rows\r\ntrain.seed=3 'run.name=a b'\r\n\ntrain.seed=4 'run.name=a\n")
    array = {"SLURM_ARRAY_JOB_ID": "7", "verb": "sweep", "first": [str(rows)]}
    for task, text in ((1, "line 1 \\(from 0\\): train.seed=4 'run.name=a: can't be read"), (2, "has 2 lines")):
        with pytest.raises(JobError, match=text):
            job(stopped, SLURM_ARRAY_TASK_ID=str(task), **array)
    with pytest.raises(JobError, match="usage: sbatch --array=0-N"):
        job(stopped, verb="sweep", first=[str(rows)])
    rows.write_text("train.seed=3 'schedule={warmup_epochs: 1, epochs: 2}'\r\n")
    tables = []
    real = FakeSystem.run

    def run(self, command, environment):
        if command[3:4] != ["table"]:
            return real(self, command, environment)
        tables.append(command[4:])
        return 0, []

    monkeypatch.setattr(FakeSystem, "run", run)
    job.folder = job.folder.parents[1] / "id5" / "slurm"
    assert job(stopped, SLURM_ARRAY_TASK_ID="0", FIRST_ID="5", **array).code == 75
    assert tables == [], "only a task that is done writes the table"
    assert job(done, SLURM_ARRAY_TASK_ID="0", FIRST_ID="5", **array).code == 0
    assert [words[:2] for words in tables] == [[str(rows), "5"]]
    spec = (job.folder / "spec-7_0.yaml").read_text()
    assert re.search(r"seed: 3$", spec, re.MULTILINE)
    assert re.search(r" epochs: 2\b", spec)


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--launcher", "ssh"], "--launcher is 'ssh'; expected srun, torchrun or deepspeed"),
        (["--launcher=ssh"], "--launcher is 'ssh'"),
        (["--launcher"], "--launcher is ''"),
        (["--force"], "isn't for jobs"),
        (["--resume", "auto"], "isn't for jobs"),
    ],
    ids=["word", "equals", "empty", "force", "resume"],
)
def test_arguments_that_are_not_for_jobs_are_refused(arguments, text):
    with pytest.raises(JobError, match=text):
        take_launcher(arguments, "srun")


def test_the_launcher_is_taken_out_of_the_arguments():
    assert take_launcher(["a", "--launcher", "torchrun", "--set", "b=1"], "srun") == ("torchrun", ["a", "--set", "b=1"])
    assert take_launcher(["--launcher=deepspeed"], "srun") == ("deepspeed", [])
    with pytest.raises(JobError, match="expected srun"):
        take_launcher([], "ssh")


@pytest.mark.parametrize("setting", ["MAX_IDLE_RESTARTS=many", "LEAVE_SECONDS=-1", "MIN_GBIT=nan", "FIRST_ID=1.5"])
def test_settings_without_a_meaning_are_named(setting):
    name, _, value = setting.partition("=")
    with pytest.raises(JobError, match=f"{name} is '{value}'; expected a .*number, such as "):
        read_settings({name: value})
    assert read_settings({name: ""}) == read_settings({})


def test_a_spec_that_is_refused_starts_nothing(job, capsys):
    ended = job(stopped, "--set", "train.sead=1")
    assert (ended.code, ended.steps, ended.control) == (2, [], [])


def test_the_system_gives_a_shells_exit_codes_and_no_input(capfd):
    system, lines = System(), []
    assert system.call(["bash", "-c", "kill -TERM $$"], {}) == 143
    assert system.read(["bash", "-c", 'read -r line; echo "$line.$X"; exit 3'], {"X": "x"}) == (3, ".x\n")
    assert system.stream(["bash", "-c", "echo one; printf 'two\\xff\\n' >&2; exit 4"], {}, lines.append) == 4
    assert lines == ["one", "two\ufffd"]
    assert system.call(["/nowhere/srun"], {}) == 127
    assert "/nowhere/srun: No such file" in capfd.readouterr().err


def test_the_supervisor_needs_the_standard_library_alone():
    """With a container it runs on the host, whose Python has no packages."""
    code = "import adatad.cluster.supervisor"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)
