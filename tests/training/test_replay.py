"""A step that isn't finite leaves its batch; replay names the module, the window or the labels at fault."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from adatad.cli.replay import show
from adatad.data.dataset import Batch
from adatad.errors import UserError
from adatad.models.losses import Targets
from adatad.parallel.processes import Processes, start_processes
from adatad.spec import SpecError, load
from adatad.training import bad_batches
from adatad.training.bad_batch_file import read_bad_batch
from adatad.training.bad_batches import BadBatches
from adatad.training.checkpoint import all_checkpoints, read_checkpoint
from adatad.training.export import own_spec
from adatad.training.loaders import training_loader
from adatad.training.replay import PassResult, Replayed, StepAgain, check_fits, replay
from adatad.training.replay_verdict import verdict
from adatad.training.resolve import resolve_run
from adatad.training.run import train
from adatad.training.run_directory import RunDirectory, run_directory
from adatad.training.setup import TrainState, initial_state
from adatad.training.step import train_step

LOGGER = logging.getLogger("adatad.tests.replay")
BAD = {"applied": False, "gradient_norm": math.nan}


class Step(NamedTuple):
    """A run's state, the batches of its first step, and what leaves them."""

    state: TrainState
    batches: list[Batch]
    kept: BadBatches

    def run(self, number: int = 0, **changes: object) -> dict:
        """Do the step, and leave its batch if it is bad, or made so by changed values."""
        values = {**train_step(self.state, self.batches, number), **changes}
        self.kept.look_at(values, self.batches, number)
        return values

    @property
    def files(self) -> list[Path]:
        return sorted(self.kept.folder.glob("*"))


def step_of(spec_file: Path | str, folder: Path, *settings: str, processes: Processes | None = None) -> Step:
    spec = load(spec_file, list(settings))
    processes = processes or Processes(0, 1, torch.device("cpu"))
    state = initial_state(resolve_run(spec, processes), processes)
    state.engine.model.train()
    batches = iter(training_loader(state.run, (0, 0)))
    folder.mkdir(exist_ok=True)
    kept = BadBatches(state, RunDirectory(folder), LOGGER)
    return Step(state, [next(batches) for _ in range(spec.train.accumulation)], kept)


@pytest.fixture
def step(tiny_spec, tmp_path) -> Step:
    return step_of(tiny_spec, tmp_path / "run")


def outcome(found: Replayed) -> dict[str, str | None]:
    """The module that went bad first, by precision."""
    return {
        result.precision: None if result.is_finite else (result.forward or result.backward).name
        for result in found.passes
    }


SETTINGS = {
    "plain": [],
    "two micro-batches": ["train.accumulation=2"],
    "augmented in place": ["data.augment.flip=0.5", "data.augment.rand_augment=true"],
    "side": ["model.backbone.mode=side"],
    "full": ["model.backbone.mode=full", "optimizer.backbone={lr: 1e-3, custom: []}"],
    "tiles": ["memory.policy=tile", "memory.tile_clips=1", "memory.segment_blocks=1"],
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_replay_computes_the_loss_and_the_gradient_norm_of_the_step(tiny_spec, tmp_path, kind):
    step = step_of(tiny_spec, tmp_path / "run", *SETTINGS[kind])
    step.state.engine.optimizer.step = lambda: None
    values = train_step(step.state, step.batches, 0)
    step.kept.look_at({**values, **BAD}, step.batches, 0)
    found = replay(step.files[0])
    fp32 = found.passes[0]
    assert fp32.loss == pytest.approx(values["cost"], rel=1e-4)
    assert fp32.gradient_norm == pytest.approx(values["gradient_norm"], rel=1e-3)
    assert outcome(found) == {"fp32": None, "bf16": None}
    assert "everything is finite here" in verdict(found)


def test_a_weight_that_is_nan_is_named(step):
    with torch.no_grad():
        step.state.model.detector.head.cls_head.bias[0] = math.nan
    assert not step.run()["applied"]
    found = replay(step.files[0])
    assert outcome(found) == dict.fromkeys(("fp32", "bf16"), "detector.head.cls_head")
    assert found.passes[0].forward.fed_finite
    assert found.bad_weights == ["detector.head.cls_head.bias"]
    assert verdict(found).startswith("the weights already hold NaN or Inf at this step (detector.head.cls_head.bias)")


def test_labels_that_are_infinite_are_named_by_their_video(step):
    (batch,) = step.batches
    targets = Targets(*(tensor.clone() for tensor in batch.targets))
    window, point = targets.positive.nonzero()[0].tolist()
    targets.offsets[window, point, 0] = math.inf
    step.batches[:] = [batch._replace(targets=targets)]
    assert not step.run()["applied"]
    found = replay(step.files[0])
    assert outcome(found)["fp32"] == "the losses"
    video = batch.windows[window].video.name
    assert found.passes[0].window.video == video
    assert verdict(found).startswith(f"the labels or targets hold NaN or Inf: {video}, frames ")


def test_an_overflow_of_fp16_alone_is_named(tiny_spec, tmp_path):
    step = step_of(tiny_spec, tmp_path / "run", "train.precision=fp16")
    with torch.no_grad():
        step.state.model.detector.neck.norms[0].weight.fill_(1e6)
    assert not step.run()["applied"]
    found = replay(step.files[0])
    assert outcome(found) == {"fp32": None, "bf16": None, "fp16": "detector.head.cls_convs.0.conv"}
    assert found.passes[0].largest.name.startswith("detector.")
    assert verdict(found).startswith("finite in fp32 and bf16, not in fp16: the first output that isn't finite is of")


def test_an_overflow_of_bf16_alone_is_named(step, monkeypatch):
    real = nn.GELU.forward

    def overflows(self: nn.GELU, x: torch.Tensor) -> torch.Tensor:
        return real(self, x) * (math.inf if x.dtype == torch.bfloat16 else 1)

    step.run(**BAD)
    monkeypatch.setattr(nn.GELU, "forward", overflows)
    found = replay(step.files[0])
    assert outcome(found) == {"fp32": None, "bf16": "backbone.blocks.0.mlp.act"}
    assert found.passes[1].forward.fed_finite
    assert verdict(found).startswith("finite in fp32, not in bf16: the first output that isn't finite is of backbone.")


def test_a_gradient_that_goes_bad_alone_is_named_with_its_operator(step, monkeypatch):
    real = nn.GELU.forward
    monkeypatch.setattr(nn.GELU, "forward", lambda self, x: real(self, x) + (x * 0).square().sqrt())
    values = step.run()
    assert math.isfinite(values["cost"])
    assert not values["applied"]
    found = replay(step.files[0])
    fp32 = found.passes[0]
    assert fp32.forward is None
    assert (fp32.backward.name, fp32.backward.kind, fp32.backward.fed_finite) == (
        "detector.projection.branch.1.mlp.1", "GELU", True,
    )  # fmt: skip
    assert fp32.operator.startswith("PowBackward0, of forward (adatad/models/sequence.py:")
    assert "all outputs are finite; the first gradient that isn't is of detector." in verdict(found)


def test_a_window_that_does_not_fit_is_computed_again_in_backward(step, monkeypatch):
    with torch.no_grad():
        step.state.model.backbone.blocks[1].adapter.up.bias[0] = math.nan
    step.run()
    plain, one_pass, tries = replay(step.files[0]), StepAgain.one_pass, []

    def full_at_first(self: StepAgain, precision: str) -> PassResult:
        tries.append(str(self.model.backbone.executor))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return one_pass(self, precision)

    monkeypatch.setattr(StepAgain, "one_pass", full_at_first)
    found = replay(step.files[0])
    assert "none" in tries[0]
    assert "block" in tries[1]
    assert outcome(found) == outcome(plain) == dict.fromkeys(("fp32", "bf16"), "backbone.blocks.1.adapter.up")
    assert found.notes[-1] == "one window's activations don't fit: blocks are computed again in backward"


def test_a_scale_that_fp16_searches_leaves_nothing_until_the_search_is_long(tiny_spec, tmp_path):
    step = step_of(tiny_spec, tmp_path / "run", "train.precision=fp16")
    step.state.engine.scaler.scale(torch.ones(()))
    step.state.engine.scaler._scale.fill_(2.0**100)
    for number in range(bad_batches.MAX_SEARCH_STEPS):
        values = step.run(number)
        assert math.isfinite(values["cost"])
        assert not values["applied"]
    assert step.files == []
    step.run(3)
    found = replay(step.files[0])
    # As the engine had it in that step, before it came down.
    assert found.facts.loss_factor == 2.0**97
    assert verdict(found).startswith("finite in fp32 and bf16, not in fp16: gradients times the loss scale overflow")


def test_the_first_steps_are_left_and_no_more(step, caplog):
    for number in range(3):
        step.run(number, **BAD)
    # Again, as a resumed run comes to it: the same file.
    step.run(1, **BAD)
    for number in range(3, 6):
        step.run(number, **BAD)
    assert [path.name for path in step.files] == [f"step{number}_rank0.safetensors" for number in range(3)]
    assert sum("isn't left" in line for line in caplog.messages) == 1
    assert f"adatad replay {step.files[0]}" in caplog.messages[0]


@pytest.mark.parametrize(("name", "value"), [("MAX_RUN_BYTES", 1000), ("MAX_FREE_FRACTION", 0.0)])
def test_a_batch_that_takes_too_much_room_is_not_left(step, monkeypatch, caplog, name, value):
    monkeypatch.setattr(bad_batches, name, value)
    step.run(**BAD)
    assert step.files == []
    assert "its batch isn't left for adatad replay" in caplog.text


def test_a_folder_that_cannot_be_written_does_not_end_training(step, caplog):
    step.kept.folder.write_text("in its way")
    step.run(**BAD)
    assert "bad_batches can't be written" in caplog.text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("no room"), RuntimeError("x")])
def test_a_file_that_cannot_be_written_does_not_end_training(step, caplog, monkeypatch, error):
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(bad_batches, "write_bad_batch", fails)
    step.run(**BAD)
    assert "bad_batches can't be written" in caplog.text


def test_weights_that_are_too_large_come_from_the_nearest_checkpoint(tiny_spec, monkeypatch):
    monkeypatch.setattr(bad_batches, "MAX_WEIGHT_BYTES", 1)
    monkeypatch.setattr(bad_batches, "MIN_STEPS", 1)
    spec = load(tiny_spec, ["train.keep_batch_above=1.0001", "schedule.epochs=2", "train.evaluate_every_epochs=9"])
    train(spec)
    run = run_directory(spec)
    files = sorted((run.path / "bad_batches").glob("*"))
    assert files, "some norm is above the median before it"
    found = replay(files[0])
    assert "the weights are those of" in found.notes[0]
    assert "is far above the usual" in verdict(found)
    for path in all_checkpoints(run.checkpoints):
        path.rename(path.with_name(f"gone-{path.name}"))
    with pytest.raises(UserError, match="holds no weights, and there is no checkpoint in"):
        replay(files[0])


def test_trained_numbers_are_the_same_with_and_without_the_key(tiny_spec, monkeypatch):
    monkeypatch.setattr(bad_batches, "MIN_STEPS", 1)
    quick = ["schedule.epochs=2", "train.evaluate_every_epochs=9"]
    ended = []
    for number, key in enumerate(([], ["train.keep_batch_above=1.0001"])):
        spec = load(tiny_spec, [*quick, *key, f"run.id={number}"])
        train(spec)
        ended.append(read_checkpoint(all_checkpoints(run_directory(spec).checkpoints)[-1]).parameters)
        files = list((run_directory(spec).path / "bad_batches").glob("large_norm_step*_rank0.safetensors"))
        assert bool(files) == bool(key)
    assert all(torch.equal(tensor, ended[1][name]) for name, tensor in ended[0].items())


@pytest.mark.parametrize("value", ["1.0", "-2", "nan", "inf", "true", "a lot"])
def test_a_factor_that_is_none_is_refused_by_its_key(tiny_spec, value):
    with pytest.raises(SpecError, match=r"train\.keep_batch_above"):
        load(tiny_spec, [f"train.keep_batch_above={value}"])


# Files


def test_a_file_gives_back_what_was_written(step):
    step.run(**BAD)
    found, (batch,) = read_bad_batch(step.files[0]), step.batches
    (kept,) = found.micro_batches
    assert torch.equal(kept.frames, batch.frames)
    assert torch.equal(kept.mask, batch.mask)
    assert torch.equal(kept.keys, batch.keys)
    assert all(torch.equal(*pair) for pair in zip(kept.targets, batch.targets, strict=True))
    assert all(torch.equal(*pair) for pair in zip(kept.segments, batch.segments_grid, strict=True))
    assert [w.video for w in found.facts.windows[0]] == [w.video.name for w in batch.windows]
    assert set(found.weights) == set(step.state.trained)


def rewritten(path: Path, change) -> None:
    """Write a file again with its tensors and header changed by `change(tensors, header)`."""
    with safe_open(path, "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, header)
    save_file(tensors, path, header)


def with_header(old: str, new: str):
    def change(_: dict, header: dict) -> None:
        assert old in header["adatad"]
        header["adatad"] = header["adatad"].replace(old, new)

    return lambda path: rewritten(path, change)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGED = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "cut": (cut, "not a readable safetensors file"),
    "a flipped bit": (flipped, "it is damaged; copy it again"),
    "text": (lambda path: path.write_text("hello"), "not a readable safetensors file"),
    "a pickle": (lambda path: torch.save({"frames": torch.ones(1)}, path), "not a readable safetensors file"),
    "weights": (lambda path: rewritten(path, lambda t, h: h.clear()), "is no batch that a training left"),
    "a newer version": (with_header('\\"batch_version\\":1', '\\"batch_version\\":2'), "is of version 2"),
    "another field": (with_header('\\"batch_version\\":1', '\\"what\\":1'), "what: is no field of format version"),
    "no normalizer": (with_header('\\"normalizer\\":', '\\"normalizer\\":-'), "normalizer: should be greater than 0"),
    "frames gone": (lambda path: rewritten(path, lambda t, h: t.pop("0/frames")), "it is damaged; copy it again"),
    "another spec": (with_header("size_grid: 32", "size_grid: 16"), "aren't those of its spec"),
    "a spec that is none": (with_header("size_grid: 32", "size_grid: none"), "can't be used as a spec here"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_file_that_cannot_be_used_is_refused_in_a_line(step, kind):
    step.run(**BAD)
    damage, message = DAMAGED[kind]
    (path,) = step.files
    damage(path)
    with pytest.raises(UserError, match=message) as refused:
        replay(path)
    assert str(path) in str(refused.value)


def test_any_damage_is_refused_or_harmless(step, tmp_path):
    step.run(**BAD)
    content, path = step.files[0].read_bytes(), tmp_path / "dämaged file.safetensors"

    @given(st.data())
    def check(data: st.DataObject) -> None:
        # Half of the places in the header, which is a small part of the file.
        most = data.draw(st.sampled_from([10_000, len(content) - 1]))
        place, byte = data.draw(st.integers(0, most)), data.draw(st.integers(0, 255))
        whole = data.draw(st.booleans())
        path.write_bytes(content[:place] + bytes([byte]) + (content[place + 1 :] if whole else b""))
        with suppress(UserError):
            batch = read_bad_batch(path)
            check_fits(batch, own_spec(path, check_files=False))

    check()


def test_a_missing_weights_file_is_named_with_its_key(step, tmp_path):
    step.run(**BAD)
    with pytest.raises(UserError, match=r"model\.backbone\.weights: there is no file .*gone\.pth.*--set"):
        replay(step.files[0], [f"model.backbone.weights={tmp_path / 'gone.pth'}"])


def test_frozen_weights_of_another_file_are_refused(step):
    step.run(**BAD)
    with pytest.raises(UserError, match="other frozen weights"):
        replay(step.files[0], ["train.seed=7"])


def test_the_command_prints_what_it_found_and_the_cause(step, run_command):
    with torch.no_grad():
        step.state.model.detector.head.cls_head.bias[0] = math.nan
    step.run()
    done = run_command("replay", step.files[0])
    assert done.returncode == 0
    assert "output of detector.head.cls_head" in done.stdout, done.stdout
    assert done.stdout.splitlines()[-1].startswith("the weights already hold NaN or Inf at this step")
    assert '"name": "detector.head.cls_head"' in run_command("replay", step.files[0], "--json").stdout
    refused = run_command("replay", step.kept.folder)
    assert refused.returncode == 2
    assert "is a folder; name one of its files: step0_rank0.safetensors" in refused.stderr


def test_texts_of_a_file_are_no_commands_to_a_terminal(step, capsys):
    step.run(cost=math.nan, **BAD)
    found = replay(step.files[0])
    told = "\x1b]0;owned\x07"
    window = found.facts.windows[0][0].model_copy(update={"video": told})
    facts = found.facts.model_copy(update={"loss": told, "gradient_norm": told, "engine": told})
    show(found._replace(facts=facts, bad_labels=[window], notes=[told]))
    out = capsys.readouterr().out
    assert "owned" in out
    assert "\x1b" not in out


# Ranks

ENGINES = {"ddp": [], "fsdp": ["parallel.engine=fsdp"], "clip": ["parallel.clip=2", "train.global_batch=1"]}


def on_ranks(spec_file: str, folder: str) -> list[float]:
    costs = []
    with start_processes(60) as processes:
        for name, settings in ENGINES.items():
            step = step_of(spec_file, Path(folder) / name, *settings, processes=processes)
            costs.append(step.run(**BAD)["cost"])
            processes.barrier()
    return costs


def test_every_rank_leaves_its_batch_and_none_waits(shared_spec, tmp_path):
    (costs, others) = run_ranks(2, on_ranks, shared_spec, str(tmp_path))
    assert costs == others
    for engine, cost in zip(ENGINES, costs, strict=True):
        files = [tmp_path / engine / "bad_batches" / f"step0_rank{rank}.safetensors" for rank in range(2)]
        losses = [replay(path).passes[0].loss for path in files]
        # Ranks that share a window have its whole loss each.
        whole = losses[0] if engine == "clip" else sum(losses)
        assert whole == pytest.approx(cost, rel=1e-3), engine
        files[1 if engine == "clip" else 0].unlink()
        with pytest.raises(UserError, match="put"):
            replay(files[0 if engine == "clip" else 1])
