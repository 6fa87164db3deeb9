"""What TensorBoard and Weights & Biases get of a run, and that neither can end, change or hold up a training."""

import json
import os
import struct
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pictures import draw
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from adatad.spec import SpecError, load, to_yaml
from adatad.training import weights_and_biases
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.resume import spec_changes
from adatad.training.run import train
from adatad.training.run_directory import run_directory
from adatad.training.trackers import MAX_HYPERPARAMETERS, adapter_gammas, class_scalars, hyperparameters
from adatad.training.weights_and_biases import WandbError, WeightsAndBiases, check_wandb

SHORT = ["schedule.epochs=1", "schedule.warmup_epochs=0"]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Weights & Biases without a network and without what this machine's user has set."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Settings are read once in a process.
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def records(run: Path) -> list:
    """All records of a run's offline files: blocks of 32 KiB that hold (checksum, length, type, bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        content, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            # Less than a header at the end of a block is padding.
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack_from("<HB", content, at + 4)
            whole, at = whole + content[at + 7 : at + 7 + length], at + 7 + length
            # 1: whole; 2, 3, 4: first, middle and last part.
            if kind in (1, 4):
                found, whole = [*found, Record.FromString(whole)], b""
    return found


def items(updates) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


@pytest.mark.pictures
def test_both_trackers_show_the_same_run_and_change_nothing_of_it(tiny_spec, offline):
    spec = load(tiny_spec, [*SHORT, "logging.wandb=a project"])
    result = train(spec)
    folder = run_directory(spec).path
    draw(False)
    plain = load(tiny_spec, [*SHORT, "run.id=1"])
    train(plain)
    ours, theirs = (read_checkpoint(all_checkpoints(run_directory(s).checkpoints)[-1]) for s in (spec, plain))
    assert all(torch.equal(ours.ema[name], tensor) for name, tensor in theirs.ema.items())

    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    scalars = set(board.Tags()["scalars"])
    assert {"train/loss", "train/class_loss", "train/segment_loss", "train/gradient_norm"} <= scalars
    assert {"train/memory_bytes", "evaluation/best_average_mAP", "adapter_gamma/block_01"} <= scalars
    assert {tag for tag in scalars if tag.startswith("AP/")} == {f"AP/{name}" for name in result["ap_per_class"]}
    assert board.Tags()["histograms"] == ["adapter_gamma"]
    assert "first_batch" in board.Tags()["images"]
    assert sum(tag.startswith("timelines/") for tag in board.Tags()["images"]) == 2
    start, experiment, end = (
        plugin_data_pb2.HParamsPluginData.FromString(board.SummaryMetadata(tag).plugin_data.content)
        for tag in ("_hparams_/session_start_info", "_hparams_/experiment", "_hparams_/session_end_info")
    )
    assert start.session_start_info.hparams["optimizer.lr"].number_value == 1e-3
    assert end.session_end_info.status
    figures = [info.name.tag for info in experiment.experiment.metric_infos]
    assert figures[:3] == ["evaluation/average_mAP", "evaluation/best_average_mAP", "evaluation/mAP/0.3"]
    shown_first = {info.name for info in experiment.experiment.hparam_infos if info.differs}
    assert {"optimizer.lr", "memory.policy"} <= shown_first < set(start.session_start_info.hparams)
    # What runs are sorted by: the last point of a curve in the same folder.
    assert board.Scalars(figures[0])[-1].value == pytest.approx(result["average_mAP"])
    assert set(figures) <= scalars

    # Resumed at its end: the run goes on under one id, and has its last evaluation once more.
    train(spec, resume="auto")
    # Its service writes the end of its files after it has said that a run is finished, and has written all at its own.
    sys.modules["wandb"].teardown()
    written = records(folder)
    begun = [record.run for record in written if record.HasField("run")]
    assert {(run.project, run.run_id) for run in begun} == {
        ("a project", (folder / "wandb/id.txt").read_text().strip())
    }
    assert len(begun) == 2
    config = items(begun[0].config.update)
    assert config["optimizer.lr"] == 1e-3
    assert config["spec"]["train"]["seed"] == 42
    rows = [items(record.history.item) for record in written if record.HasField("history")]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx(
        [event.value for event in board.Scalars("train/loss")]
    )
    keys = {key for row in rows for key in row}
    assert scalars <= keys
    assert {"first_batch", "adapter_gamma"} <= {key.partition("/")[0] for key in keys}
    summary = items(update for record in written for update in record.summary.update)
    assert summary["evaluation/average_mAP"] == result["average_mAP"]


def test_a_run_may_be_resumed_with_and_without_a_project(tiny_spec):
    with_project, without = (to_yaml(load(tiny_spec, more)) for more in (["logging.wandb=p"], []))
    assert spec_changes(without, with_project) == []
    # Nor is it said of specs that runs have saved before there was such a section.
    assert spec_changes(without.replace("logging:\n  wandb: null\n", ""), with_project) == []


def test_without_a_project_nothing_of_weights_and_biases_is_there(tiny_spec):
    spec = load(tiny_spec, SHORT)
    assert spec.logging.wandb is None
    check_wandb(spec)


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["nothing", "a folder of earlier runs"])
def test_a_missing_package_is_named_before_a_run_is_made(tiny_spec, monkeypatch, found):
    monkeypatch.setattr(weights_and_biases, "find_spec", lambda name: found)
    spec = load(tiny_spec, ["logging.wandb=project"])
    with pytest.raises(WandbError, match=r"^logging\.wandb: .*isn't installed; pip install 'adatad\[wandb\]'"):
        train(spec)
    assert not run_directory(spec).path.exists()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("WANDB_MODE", None, "no key for Weights & Biases: run `wandb login` once, set WANDB_API_KEY, or"),
        ("WANDB_API_KEY", "short", "can't be used: .*WANDB_API_KEY"),
        ("WANDB_MODE", "sometimes", "can't be used: .*mode.*'online'"),
    ],
    ids=["no key", "no valid key", "no valid mode"],
)
def test_what_would_ask_on_a_terminal_or_fail_later_is_refused_at_the_start(
    tiny_spec, offline, monkeypatch, variable, value, expected
):
    monkeypatch.delenv("WANDB_MODE")
    if value is not None:
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(WandbError, match=expected):
        check_wandb(load(tiny_spec, ["logging.wandb=project"]))


@pytest.mark.parametrize("project", ["''", "' '", "a/b", "'a\\x01'", "5", "[a]", f"'{'x' * 129}'"])
def test_a_text_that_is_no_project_is_refused(tiny_spec, project):
    with pytest.raises(SpecError, match=r"logging\.wandb"):
        load(tiny_spec, [f"logging.wandb={project}"])


class FailingRun:
    """A run of Weights & Biases whose service has gone."""

    offline = True
    summary = SimpleNamespace(update=lambda figures: None)

    def define_metric(self, *_, **__):
        pass

    def log(self, values):
        raise ConnectionError("the service has gone")

    def finish(self):
        raise ConnectionError("the service has gone")


def fake_wandb(begin):
    return lambda: SimpleNamespace(init=lambda **_: begin(), Settings=lambda **_: None)


def no_network():
    raise TimeoutError("no network")


@pytest.mark.parametrize(
    ("begin", "said"), [(no_network, "can't be reached (no network)"), (FailingRun, "(the service has gone)")]
)
def test_a_failure_while_training_is_said_once(tmp_path, monkeypatch, begin, said):
    monkeypatch.setattr(weights_and_biases, "_wandb", fake_wandb(begin))
    warnings: list[str] = []
    tracker = WeightsAndBiases("project", tmp_path, "demo/tia/id0", warnings.append, lambda line: None)
    tracker.start({}, [], "{}")
    for step in range(3):
        tracker.scalars({"train/loss": 1.0}, step)
    tracker.final({})
    tracker.close()
    assert len(warnings) == 1
    assert said in warnings[0]


def test_a_service_that_hangs_holds_nothing_up(tmp_path, monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(weights_and_biases, "_wandb", fake_wandb(asked.wait))
    monkeypatch.setattr(weights_and_biases, "FINISH_SECONDS", 0.01)
    monkeypatch.setattr(weights_and_biases, "MAX_WAITING", 5)
    warnings: list[str] = []
    tracker = WeightsAndBiases("project", tmp_path, "demo/tia/id0", warnings.append, lambda line: None)
    tracker.start({}, [], "{}")
    for step in range(20):
        tracker.scalars({"train/loss": 1.0}, step)
    tracker.close()
    assert len(warnings) == 1
    assert "doesn't keep up" in warnings[0]
    asked.set()


def test_hyperparameters_are_those_of_every_run_and_what_differs_from_the_defaults(tiny_spec):
    spec = load(tiny_spec, ["memory.policy=[{first: 0, last: 0, policy: none}, {first: 1, last: 1, policy: block}]"])
    found = hyperparameters(spec, spec)
    assert list(found)[:2] == ["optimizer.lr", "schedule.epochs"]
    assert found["memory.policy"] == "0-0 none, 1-1 block"
    assert found["optimizer.backbone.custom.0.lr"] == 2e-3
    assert found["model.backbone.width"] == 16
    # Defaults, names and places.
    absent = {"train.accumulation", "data.annotations", "run.root", "optimizer.backbone.custom.0.name", "data.time"}
    assert not absent & found.keys()
    assert len(found) <= MAX_HYPERPARAMETERS


@pytest.mark.parametrize(
    ("name", "block"), [("backbone.blocks.5.adapter.gamma", 5), ("backbone.side_adapters.1.gamma", 9)]
)
def test_gammas_have_the_number_of_their_block(name, block):
    state = SimpleNamespace(
        trained=[name, "detector.blocks.1.gamma_of_something"],
        model=SimpleNamespace(backbone=SimpleNamespace(adapter_blocks=(3, 9))),
        ema=SimpleNamespace(averages={name: torch.tensor([0.5])}),
        engine=SimpleNamespace(gather_full=lambda parts: parts),
    )
    assert adapter_gammas(state) == {block: 0.5}


def test_names_of_classes_that_no_file_can_hold_are_escaped():
    assert class_scalars({"a\ud800": [0.25, 0.75], "no tIoU": []}) == {"AP/a\\ud800": 0.5}
