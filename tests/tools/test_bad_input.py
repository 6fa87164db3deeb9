"""Every command with every kind of bad input: one message, exit code 2, no traceback, and nothing left behind."""

import os
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_data_set import TABLE, database, write_annotations, write_spec, write_video

ROOT = Path(__file__).parents[2]
SECONDS_UNTIL_STUCK = 30
"""For a whole command of one bad input: after that it hangs, on however slow a machine."""


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


INPUTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "empty": holding(b""),
    "binary": holding(bytes(range(256)) * 8),
    "not UTF-8": holding(b"name: M\xfcller\n"),
    "nested": holding(b"[" * 50_000),
    "a list": holding(b"[1, 2]"),
    "a number of 5,000 digits": holding(b"1" * 5000),
    "a web page": holding(b"<!DOCTYPE html>\n<html><body>sign in</body></html>"),
    "a pointer": holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": lambda path: os.mkfifo(path),
}
NAMES = {"too long": "a" * 300, "no name": "", "not UTF-8": "b\udcffd"}
READS = {
    "check SPEC": ("prepare_data/check.py", "BAD", "--output", "made"),
    "check annotations": ("prepare_data/check.py", "SPEC", "--output", "made", "--set", "data.annotations=BAD"),
    "compare RUN": ("compare.py", "BAD", "--output", "made.png"),
    "convert": ("model_converters/convert_videomaev2.py", "BAD", "made.pth"),
    "custom TABLE": ("prepare_data/custom.py", "BAD", "--videos", "v", "--output", "made"),
    "data benchmark": ("data.py", "benchmark", "BAD"),
    "data summary": ("data.py", "summary", "BAD"),
    "data summary annotations": ("data.py", "summary", "SPEC", "--set", "data.annotations=BAD"),
    "data summary blocked": ("data.py", "summary", "SPEC", "--set", "data.blocked_videos=BAD"),
    "data summary classes": ("data.py", "summary", "SPEC", "--set", "data.classes=BAD"),
    "demo SPEC": ("demo.py", "--spec", "BAD"),
    "evaluate GT": ("evaluate.py", "BAD", "found.json"),
    "evaluate DETECTIONS": ("evaluate.py", "annotations.json", "BAD"),
    "evaluate --blocked": ("evaluate.py", "annotations.json", "found.json", "--blocked", "BAD"),
    "export": ("export.py", "BAD", "--output", "made.safetensors"),
    "official tables": ("prepare_data/annotations.py", "charades", "BAD", "made.json"),
    "official file": ("prepare_data/annotations.py", "activitynet", "BAD", "made.json"),
    "plan": ("plan.py", "BAD", "--gpu-memory", "24"),
    "report": ("report.py", "BAD"),
    "reproduce SPEC": ("reproduce.py", "BAD"),
    "reproduce --test": ("reproduce.py", "SPEC", "--test", "BAD"),
    "spec": ("spec.py", "BAD"),
    "spec --overlay": ("spec.py", "SPEC", "--overlay", "BAD"),
    "stage": ("stage.py", "BAD"),
    "status": ("status.py", "BAD"),
    "submission": ("submission.py", "activitynet", "BAD", "made.json"),
    "submit": ("submit.py", "BAD", "--gpus", "1", "--dry-run"),
    "test SPEC": ("test.py", "BAD", "--checkpoint", "found.json"),
    "test --checkpoint": ("test.py", "SPEC", "--checkpoint", "BAD"),
    "train SPEC": ("train.py", "BAD"),
    "train --resume": ("train.py", "SPEC", "--resume", "BAD"),
    "train annotations": ("train.py", "SPEC", "--set", "data.annotations=BAD"),
    "train classes": ("train.py", "SPEC", "--set", "data.classes=BAD"),
    "train --deepspeed": ("train.py", "SPEC", "--deepspeed", "BAD"),
    "train weights": ("train.py", "SPEC", "--set", "model.backbone.weights=BAD"),
    "transcode": ("prepare_data/transcode.py", "BAD", "made"),
    "verify_golden": ("verify_golden.py", "BAD"),
}
WELL_READ = {
    ("data summary blocked", "empty"), ("data summary blocked", "no name"), ("data summary classes", "no name"),
    ("data summary blocked", "a number of 5,000 digits"), ("evaluate --blocked", "a number of 5,000 digits"),
    ("evaluate --blocked", "empty"),
}  # fmt: skip
"""What is no mistake: names that no video has, nothing for a path that may be left out."""
WRITES = {
    "check --output": ("prepare_data/check.py", "SPEC", "--output", "BAD"),
    "compare --output": ("compare.py", "found.json", "--output", "BAD"),
    "convert": ("model_converters/convert_videomaev2.py", "found.json", "BAD"),
    "custom --output": ("prepare_data/custom.py", "labels.csv", "--videos", "v", "--output", "BAD"),
    "evaluate --json": ("evaluate.py", "annotations.json", "found.json", "--json", "BAD"),
    "export": ("export.py", "checkpoint", "--output", "BAD"),
    "make_demo --output": ("make_demo.py", "--output", "BAD", "--train-videos", "1", "--validation-videos", "1"),
    "model_zoo --output": ("model_zoo.py", "--output", "BAD"),
    "official": ("prepare_data/annotations.py", "activitynet", "annotations.json", "BAD"),
    "pretrain": ("pretrain.py", "--output", "BAD", "--steps", "1"),
    "submission": ("submission.py", "activitynet", "found.json", "BAD"),
    "test --detections": ("test.py", "SPEC", "--checkpoint", "found.json", "--detections", "BAD"),
    "train run.root": ("train.py", "SPEC", "--set", "run.root=BAD"),
    "transcode": ("prepare_data/transcode.py", "v", "BAD"),
}
OUTPUTS = {
    "in a file": "found.json/new",
    "a pipe": "pipe",
    "a link to itself": "loop",
    "too long": "a" * 300,
    "no name": "",
}
NUMBERS = {
    "data benchmark --windows": ("data.py", "benchmark", "SPEC", "--windows", "BAD"),
    "data benchmark --ranks": ("data.py", "benchmark", "SPEC", "--ranks", "BAD"),
    "check --workers": ("prepare_data/check.py", "SPEC", "--output", "made", "--workers", "BAD"),
    "custom --validation-share": (
        "prepare_data/custom.py", "labels.csv", "--videos", "v", "--output", "made", "--validation-share", "BAD"),
    "demo --train-videos": ("demo.py", "--train-videos", "BAD"),
    "demo --validation-videos": ("demo.py", "--validation-videos", "BAD"),
    "evaluate --top-k": ("evaluate.py", "annotations.json", "found.json", "--top-k", "BAD"),
    "evaluate --tiou": ("evaluate.py", "annotations.json", "found.json", "--tiou", "BAD"),
    "make_demo --train-videos": ("make_demo.py", "--output", "made", "--train-videos", "BAD"),
    "make_demo --seed": ("make_demo.py", "--output", "made", "--seed", "BAD"),
    "plan --gpu-memory": ("plan.py", "SPEC", "--gpu-memory", "BAD"),
    "plan --gpus": ("plan.py", "SPEC", "--gpu-memory", "24", "--gpus", "BAD"),
    "plan --classes": ("plan.py", "SPEC", "--gpu-memory", "24", "--classes", "BAD"),
    "plan --tflops": ("plan.py", "SPEC", "--gpu-memory", "24", "--tflops", "BAD"),
    "pretrain --clips": ("pretrain.py", "--output", "made", "--clips", "BAD"),
    "pretrain --steps": ("pretrain.py", "--output", "made", "--steps", "BAD"),
    "submit --gpus": ("submit.py", "SPEC", "--dry-run", "--gpus", "BAD"),
    "submit --nodes": ("submit.py", "SPEC", "--dry-run", "--gpus", "1", "--nodes", "BAD"),
    "submit --time": ("submit.py", "SPEC", "--dry-run", "--gpus", "1", "--time", "BAD"),
    "train --id": ("train.py", "SPEC", "--id", "BAD"),
    "train epochs": ("train.py", "SPEC", "--set", "schedule.epochs=BAD"),
    "train lr": ("train.py", "SPEC", "--set", "optimizer.lr=BAD"),
    "transcode --workers": ("prepare_data/transcode.py", "v", "made", "--workers", "BAD"),
    "transcode --fps": ("prepare_data/transcode.py", "v", "made", "--fps", "BAD"),
    "verify_golden --tile-clips": ("verify_golden.py", "made", "--tile-clips", "BAD"),
}  # fmt: skip
WRONG_NUMBERS = ("-1", "nan", "inf", "9e99", "9" * 5000, "²", "many", "")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good spec, annotations, detections, a table and two videos."""
    folder = tmp_path_factory.mktemp("pristine")
    for name in ("k0", "k1", "k2", "k3"):
        write_video(folder / f"v/{name}.mp4", [number / 8 for number in range(16)], side=32)
    write_annotations(folder, database())
    write_annotations(folder, {"results": {"k2": [], "k3": []}}, "found.json")
    (folder / "labels.csv").write_text(TABLE)
    (folder / "loop").symlink_to("loop")
    write_spec(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(pristine, tmp_path / "w", symlinks=True)
    # A pipe can't be copied.
    os.mkfifo(tmp_path / "w/pipe")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def leaves(command: tuple[str, ...], bad: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and stderr of a command, run here, with `bad` in its place. Fails if it hangs."""
    words = [word.replace("SPEC", "spec.yaml").replace("BAD", bad) for word in command]
    argv, before = sys.argv, signal.signal(signal.SIGALRM, stuck)
    sys.argv = [str(ROOT / "tools" / words[0]), *words[1:]]
    signal.alarm(SECONDS_UNTIL_STUCK)
    try:
        with pytest.raises(SystemExit) as left:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        sys.argv = argv
    return left.value.code, capsys.readouterr().err


class StuckError(BaseException):
    """Raised in a command that hangs; nothing may take it for bad input."""


def stuck(number: int, frame: object) -> None:
    raise StuckError(f"it took more than {SECONDS_UNTIL_STUCK} s")


def files_in(folder: Path) -> dict[str, bytes | None]:
    """All that lies there, with the content of files, but for empty folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not (path.is_dir() and not path.is_symlink())
    }


def check_refusal(command: tuple[str, ...], bad: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_in(folder)
    code, said = leaves(command, bad, capsys)
    assert code in (1, 2), (bad[:40], code, said)
    assert said.strip(), bad[:40]
    assert "Traceback" not in said
    # A hostile or endless value isn't repeated whole.
    assert max(map(len, said.splitlines())) < 2500, (bad[:40], said[:300])
    after = files_in(folder)
    assert after == before, (bad[:40], sorted(after.keys() ^ before.keys()))


@pytest.mark.parametrize("command", READS)
def test_bad_files_are_refused(command, folder, capsys):
    for kind, make in INPUTS.items():
        if (command, kind) not in WELL_READ:
            name = f"bad-{kind.replace(' ', '-').replace(',', '')}"
            make(folder / name)
            check_refusal(READS[command], name, folder, capsys)
    for kind, name in NAMES.items():
        if (command, kind) not in WELL_READ:
            check_refusal(READS[command], name, folder, capsys)


@pytest.mark.parametrize("command", WRITES)
def test_outputs_that_cannot_be_written_are_refused(command, folder, capsys):
    for bad in OUTPUTS.values():
        check_refusal(WRITES[command], bad, folder, capsys)


@pytest.mark.parametrize("command", NUMBERS)
def test_numbers_that_make_no_sense_are_refused(command, folder, capsys):
    for bad in WRONG_NUMBERS:
        check_refusal(NUMBERS[command], bad, folder, capsys)


@pytest.mark.parametrize("tool", ["compare", "data", "evaluate", "export", "plan", "pretrain", "report", "reproduce",
                                  "spec", "stage", "status", "submission", "submit", "train", "verify_golden",
                                  "prepare_data/annotations", "prepare_data/check", "prepare_data/custom",
                                  "prepare_data/transcode", "model_converters/convert_videomaev2"])  # fmt: skip
def test_a_command_without_arguments_says_how_it_is_used(tool, folder, capsys):
    code, said = leaves((f"{tool}.py",), "", capsys)
    assert code == 2
    assert said.startswith("usage: ")
