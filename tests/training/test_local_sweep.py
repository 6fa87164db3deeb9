"""A sweep on one machine: which run a line is, how many go on at a time, what is said of them, and going on."""

import json

import pytest

from adatad.spec import to_yaml
from adatad.training import local_sweep
from adatad.training.local_sweep import SweepError, plan_sweep, run_sweep, settings_of

LIST = "# rates\noptimizer.lr=1e-3\n\noptimizer.lr=2e-3 train.seed=5\n  optimizer.lr='4e-3'\n"


class Process:
    """A run that ends as soon as it is looked at: with `codes` by its id, 0 by default."""

    def __init__(self, started, codes, command, env, **options):
        self.command, self.device, self.stopped = command, env.get("CUDA_VISIBLE_DEVICES"), False
        self.returncode, self.polls, self.codes = None, 0, codes
        started.append(self)

    @property
    def number(self) -> int:
        return int(self.command[self.command.index("--id") + 1])

    def poll(self):
        self.polls += 1
        if self.polls > 2:
            self.returncode = self.codes.get(self.number, 0)
        return self.returncode

    def terminate(self):
        self.stopped = True

    def wait(self):
        return 75


@pytest.fixture
def sweep(tiny_spec, tmp_path, monkeypatch):
    """The list, its runs as planned, and those that were started; nothing is trained."""
    monkeypatch.setattr(local_sweep, "POLL_SECONDS", 0.0)
    (tmp_path / "rates.txt").write_text(LIST)
    plan = lambda: plan_sweep(tmp_path / "rates.txt", str(tiny_spec), [], [])  # noqa: E731
    return plan, []


def finish(run, best: float) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "spec.yaml").write_text(to_yaml(run.spec))
    result = {"average_mAP": best / 2, "best_average_mAP": best, "epochs": run.spec.schedule.epochs}
    (run.folder / "result.json").write_text(json.dumps(result))


def test_lines_keep_their_runs_and_finished_ones_are_left_alone(sweep, tmp_path):
    plan, started = sweep
    first = plan()
    assert [run.spec.run.id for run in first] == [0, 1, 2]
    finish(first[1], 0.5)
    (tmp_path / "rates.txt").write_text("train.seed=9\n" + LIST)
    again = plan()
    assert [run.spec.run.id for run in again] == [3, 0, 1, 2]
    failed = run_sweep(again, ["SPEC"], 2, start=lambda command, **o: Process(started, {}, command, **o))
    assert failed == []
    assert [process.number for process in started] == [3, 0, 2]
    assert started[1].command[-7:] == ["SPEC", "--set", "optimizer.lr=1e-3", "--id", "0", "--resume", "auto"]
    assert (again[2].best, again[0].best) == (0.5, None)


def test_other_runs_of_the_experiment_keep_their_ids(sweep, tiny_spec):
    (tiny_spec.parent / "runs/tiny/id4/checkpoints").mkdir(parents=True)
    plan, _ = sweep
    assert [run.spec.run.id for run in plan()] == [5, 6, 7]


def test_as_many_as_wanted_go_on_each_on_its_own_gpu_and_a_failure_ends_no_other(sweep, monkeypatch):
    plan, started = sweep
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    shown = []

    def start(command, **options):
        assert sum(process.returncode is None for process in started) < 2
        return Process(started, {1: 2}, command, **options)

    runs = plan()
    failed = run_sweep(runs, ["SPEC"], 2, lambda done, total, note: shown.append((done, total)), start)
    assert [run.spec.run.id for run in failed] == [1]
    assert {process.device for process in started} == {"2", "5"}
    assert shown[-1] == (3, 3)


def test_an_interruption_stops_all_runs(sweep):
    plan, started = sweep

    def start(command, **options):
        if len(started) == 1:
            raise KeyboardInterrupt
        return Process(started, {}, command, **options)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(), ["SPEC"], 2, start=start)
    assert [process.stopped for process in started] == [True]


def test_the_table_is_of_each_run_s_own_spec(sweep):
    plan, _ = sweep
    runs = plan()
    finish(runs[0], 0.25)
    text = (runs[0].folder / "spec.yaml").read_text().replace("lr: 0.001", "lr: 0.008")
    (runs[0].folder / "spec.yaml").write_text(text)
    keys = ["optimizer.lr", "train.seed"]
    assert settings_of(runs[0], keys)[0] == "0.008"
    assert settings_of(runs[1], keys) == ["0.002", "5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("# none\n", "holds no line"), ("a=1\na=1\n", "twice"), ("train.sed=1", "did you mean train.seed"),
     ("train.seed='1", "quotation"), ("name=other\ntrain.seed=1", "are the same for all runs")],
    ids=["empty", "twice", "key", "quotes", "name"],
)  # fmt: skip
def test_a_list_that_cannot_be_run_is_refused_first(sweep, tmp_path, text, message):
    (tmp_path / "rates.txt").write_text(text)
    with pytest.raises(SweepError, match=message):
        sweep[0]()


@pytest.mark.slow
def test_the_command_trains_and_prints_a_table(run_command, tiny_spec, tmp_path):
    (tmp_path / "list.txt").write_text("train.seed=1\ntrain.seed=2 optimizer.lr=-1\n")
    refused = run_command("sweep", tmp_path / "list.txt", tiny_spec)
    assert (refused.returncode, "optimizer.lr" in refused.stderr) == (2, True)
    (tmp_path / "list.txt").write_text("train.seed=1\n")
    settings = ["schedule.epochs=1", "schedule.warmup_epochs=0", "data.workers=0"]
    done = run_command("sweep", tmp_path / "list.txt", tiny_spec, "--set", *settings)
    log = tmp_path / "runs/tiny/sweep-list/id0.log"
    assert done.returncode == 0, log.read_text()
    assert "train.seed" in done.stdout
