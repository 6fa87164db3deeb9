"""Every command with every kind of bad input: one message, exit code 2, no traceback, and nothing left behind."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from small_data_set import TABLE, database, write_annotations, write_spec, write_video
from untrained_model import write_model

Run = Callable[..., subprocess.CompletedProcess]

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
    "check SPEC": ("data check", "BAD", "--output", "made"),
    "check annotations": ("data check", "SPEC", "--output", "made", "--set", "data.annotations=BAD"),
    "compare RUN": ("compare", "BAD", "--output", "made.png"),
    "compare DETECTIONS": (
        "compare",
        "found.json",
        "BAD",
        "--ground-truth",
        "annotations.json",
        "--output",
        "made.html",
    ),
    "compare GT": ("compare", "found.json", "detections.json", "--ground-truth", "BAD", "--output", "made.html"),
    "convert": ("weights import", "BAD", "--output", "made.pth"),
    "import SOURCE": ("data import", "BAD", "--videos", "v", "--output", "made"),
    "export labels": ("data export", "BAD", "--form", "csv", "--output", "made"),
    "custom TABLE": ("data from-csv", "BAD", "--videos", "v", "--output", "made"),
    "data benchmark": ("data", "benchmark", "BAD"),
    "data summary": ("data", "summary", "BAD"),
    "data summary annotations": ("data", "summary", "SPEC", "--set", "data.annotations=BAD"),
    "data summary blocked": ("data", "summary", "SPEC", "--set", "data.blocked_videos=BAD"),
    "data summary classes": ("data", "summary", "SPEC", "--set", "data.classes=BAD"),
    "demo SPEC": ("demo", "--spec", "BAD"),
    "detect MODEL": ("detect", "BAD", "v/k0.mp4"),
    "extract MODEL": ("extract", "BAD", "v/k0.mp4", "--output", "made"),
    "extract --weights": ("extract", "tiny", "v/k0.mp4", "--weights", "BAD", "--output", "made"),
    "detect SOURCE": ("detect", "m.safetensors", "BAD"),
    "detect --spec": ("detect", "found.json", "v/k0.mp4", "--spec", "BAD"),
    "detect --ground-truth": ("detect", "m.safetensors", "v/k0.mp4", "--output", "made", "--ground-truth", "BAD"),
    "evaluate GT": ("evaluate", "BAD", "found.json"),
    "evaluate DETECTIONS": ("evaluate", "annotations.json", "BAD"),
    "evaluate --blocked": ("evaluate", "annotations.json", "found.json", "--blocked", "BAD"),
    "explain RUN": ("explain", "BAD"),
    "explain DETECTIONS": ("explain", "BAD", "annotations.json"),
    "explain GT": ("explain", "found.json", "BAD"),
    "export": ("export", "BAD", "--output", "made.safetensors"),
    "fuse DETECTIONS": ("fuse", "found.json", "BAD", "--output", "made.json"),
    "fuse --spec": ("fuse", "found.json", "found.json", "--spec", "BAD", "--output", "made.json"),
    "model": ("model", "BAD"),
    "official tables": ("data convert", "charades", "BAD", "--output", "made.json"),
    "official file": ("data convert", "activitynet", "BAD", "--output", "made.json"),
    "plan": ("plan", "BAD", "--gpu-memory", "24"),
    "replay": ("replay", "BAD"),
    "report": ("report", "BAD"),
    "reproduce SPEC": ("reproduce", "BAD"),
    "reproduce --checkpoint": ("reproduce", "SPEC", "--checkpoint", "BAD"),
    "spec": ("spec", "BAD"),
    "spec --overlay": ("spec", "SPEC", "--overlay", "BAD"),
    "stage": ("data stage", "BAD"),
    "status": ("status", "BAD"),
    "submission": ("submission", "activitynet", "BAD", "--output", "made.json"),
    "submit": ("submit", "BAD", "--gpus", "1", "--dry-run"),
    "test SPEC": ("test", "BAD", "--checkpoint", "found.json"),
    "test --checkpoint": ("test", "SPEC", "--checkpoint", "BAD"),
    "train SPEC": ("train", "BAD"),
    "train --resume": ("train", "SPEC", "--resume", "BAD"),
    "train annotations": ("train", "SPEC", "--set", "data.annotations=BAD"),
    "train classes": ("train", "SPEC", "--set", "data.classes=BAD"),
    "train --deepspeed": ("train", "SPEC", "--deepspeed", "BAD"),
    "train weights": ("train", "SPEC", "--set", "model.backbone.weights=BAD"),
    "transcode": ("data transcode", "BAD", "--output", "made"),
    "verify_golden": ("dev verify-golden", "BAD"),
}
WELL_READ = {
    ("data summary blocked", "empty"), ("data summary blocked", "no name"), ("data summary classes", "no name"),
    ("data summary blocked", "a number of 5,000 digits"), ("evaluate --blocked", "a number of 5,000 digits"),
    ("evaluate --blocked", "empty"),
}  # fmt: skip
"""What is no mistake: names that no video has, nothing for a path that may be left out."""
WRITES = {
    "check --output": ("data check", "SPEC", "--output", "BAD"),
    "compare --output": ("compare", "found.json", "--output", "BAD"),
    "convert": ("weights import", "found.json", "--output", "BAD"),
    "import --output": ("data import", "labels.csv", "--videos", "v", "--output", "BAD"),
    "export labels --output": ("data export", "annotations.json", "--form", "csv", "--output", "BAD"),
    "custom --output": ("data from-csv", "labels.csv", "--videos", "v", "--output", "BAD"),
    "detect --output": ("detect", "m.safetensors", "v/k0.mp4", "--output", "BAD"),
    "extract --output": ("extract", "m.safetensors", "v/k0.mp4", "--output", "BAD"),
    "evaluate --output": ("evaluate", "annotations.json", "found.json", "--output", "BAD"),
    "export": ("export", "checkpoint", "--output", "BAD"),
    "fuse --output": ("fuse", "found.json", "found.json", "--output", "BAD"),
    "make_demo --output": ("data demo", "--output", "BAD", "--train-videos", "1", "--validation-videos", "1"),
    "model_zoo --output": ("dev model-zoo", "--output", "BAD"),
    "official": ("data convert", "activitynet", "annotations.json", "--output", "BAD"),
    "pretrain": ("dev pretrain", "--output", "BAD", "--steps", "1"),
    "submission": ("submission", "activitynet", "found.json", "--output", "BAD"),
    "test --detections": ("test", "SPEC", "--checkpoint", "found.json", "--detections", "BAD"),
    "train run.root": ("train", "SPEC", "--set", "run.root=BAD"),
    "transcode": ("data transcode", "v", "--output", "BAD"),
}
OUTPUTS = {
    "in a file": "found.json/new",
    "a pipe": "pipe",
    "a link to itself": "loop",
    "too long": "a" * 300,
    "no name": "",
}
NUMBERS = {
    "data benchmark --windows": ("data", "benchmark", "SPEC", "--windows", "BAD"),
    "data benchmark --ranks": ("data", "benchmark", "SPEC", "--ranks", "BAD"),
    "check --workers": ("data check", "SPEC", "--output", "made", "--workers", "BAD"),
    "import --fps": ("data import", "labels.csv", "--videos", "v", "--output", "made", "--fps", "BAD"),
    "import --gpu-memory": ("data import", "labels.csv", "--videos", "v", "--output", "made", "--gpu-memory", "BAD"),
    "export --threshold": (
        "data export", "annotations.json", "--form", "csv", "--output", "made", "--threshold", "BAD"),
    "custom --validation-share": (
        "data from-csv", "labels.csv", "--videos", "v", "--output", "made", "--validation-share", "BAD"),
    "demo --train-videos": ("demo", "--train-videos", "BAD"),
    "demo --validation-videos": ("demo", "--validation-videos", "BAD"),
    "detect --threshold": ("detect", "m.safetensors", "v/k0.mp4", "--threshold", "BAD"),
    "extract --stride": ("extract", "m.safetensors", "v/k0.mp4", "--output", "made", "--stride", "BAD"),
    "extract --window": ("extract", "m.safetensors", "v/k0.mp4", "--output", "made", "--window", "BAD"),
    "extract --fps": ("extract", "m.safetensors", "v/k0.mp4", "--output", "made", "--fps", "BAD"),
    "detect --top-k": ("detect", "m.safetensors", "v/k0.mp4", "--top-k", "BAD"),
    "evaluate --top-k": ("evaluate", "annotations.json", "found.json", "--top-k", "BAD"),
    "evaluate --tiou": ("evaluate", "annotations.json", "found.json", "--tiou", "BAD"),
    "make_demo --train-videos": ("data demo", "--output", "made", "--train-videos", "BAD"),
    "make_demo --seed": ("data demo", "--output", "made", "--seed", "BAD"),
    "plan --gpu-memory": ("plan", "SPEC", "--gpu-memory", "BAD"),
    "plan --gpus": ("plan", "SPEC", "--gpu-memory", "24", "--gpus", "BAD"),
    "plan --classes": ("plan", "SPEC", "--gpu-memory", "24", "--classes", "BAD"),
    "plan --tflops": ("plan", "SPEC", "--gpu-memory", "24", "--tflops", "BAD"),
    "pretrain --clips": ("dev pretrain", "--output", "made", "--clips", "BAD"),
    "pretrain --steps": ("dev pretrain", "--output", "made", "--steps", "BAD"),
    "submit --gpus": ("submit", "SPEC", "--dry-run", "--gpus", "BAD"),
    "submit --nodes": ("submit", "SPEC", "--dry-run", "--gpus", "1", "--nodes", "BAD"),
    "submit --time": ("submit", "SPEC", "--dry-run", "--gpus", "1", "--time", "BAD"),
    "train --id": ("train", "SPEC", "--id", "BAD"),
    "train epochs": ("train", "SPEC", "--set", "schedule.epochs=BAD"),
    "train lr": ("train", "SPEC", "--set", "optimizer.lr=BAD"),
    "transcode --workers": ("data transcode", "v", "--output", "made", "--workers", "BAD"),
    "transcode --fps": ("data transcode", "v", "--output", "made", "--fps", "BAD"),
    "verify_golden --tile-clips": ("dev verify-golden", "made", "--tile-clips", "BAD"),
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
    write_model(folder / "m.safetensors")
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(pristine, tmp_path / "w", symlinks=True)
    # A pipe can't be copied.
    os.mkfifo(tmp_path / "w/pipe")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def leaves(command: tuple[str, ...], bad: str, run_command: Run) -> tuple[int, str]:
    """Exit code and stderr of a command, run here, with `bad` in its place. Fails if it hangs."""
    words = [word.replace("SPEC", "spec.yaml").replace("BAD", bad) for word in command]
    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(SECONDS_UNTIL_STUCK)
    try:
        done = run_command(*words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return done.returncode, done.stderr


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


def check_refusal(command: tuple[str, ...], bad: str, folder: Path, run_command: Run) -> None:
    before = files_in(folder)
    code, said = leaves(command, bad, run_command)
    assert code in (1, 2), (bad[:40], code, said)
    assert said.strip(), bad[:40]
    assert "Traceback" not in said
    # A hostile or endless value isn't repeated whole.
    assert max(map(len, said.splitlines())) < 2500, (bad[:40], said[:300])
    after = files_in(folder)
    assert after == before, (bad[:40], sorted(after.keys() ^ before.keys()))


@pytest.mark.parametrize("command", READS)
def test_bad_files_are_refused(command, folder, run_command):
    for kind, make in INPUTS.items():
        if (command, kind) not in WELL_READ:
            name = f"bad-{kind.replace(' ', '-').replace(',', '')}"
            make(folder / name)
            check_refusal(READS[command], name, folder, run_command)
    for kind, name in NAMES.items():
        if (command, kind) not in WELL_READ:
            check_refusal(READS[command], name, folder, run_command)


@pytest.mark.parametrize("command", WRITES)
def test_outputs_that_cannot_be_written_are_refused(command, folder, run_command):
    for bad in OUTPUTS.values():
        check_refusal(WRITES[command], bad, folder, run_command)


@pytest.mark.parametrize("command", NUMBERS)
def test_numbers_that_make_no_sense_are_refused(command, folder, run_command):
    for bad in WRONG_NUMBERS:
        check_refusal(NUMBERS[command], bad, folder, run_command)


@pytest.mark.parametrize("verb", [
    "compare", "data", "data benchmark", "data check", "data convert", "data export", "data from-csv", "data import",
    "data stage", "data transcode", "detect", "dev", "dev benchmark", "dev pretrain", "dev verify-golden", "evaluate",
    "explain", "export", "extract", "fuse", "model", "plan", "replay", "report", "reproduce", "status", "submission",
    "submit", "sweep", "test", "train", "weights", "weights check", "weights fetch", "weights import", "weights where",
])  # fmt: skip
def test_a_command_without_arguments_says_how_it_is_used(verb, folder, run_command):
    code, said = leaves((verb,), "", run_command)
    assert code == 2
    assert said.startswith("usage: ")
