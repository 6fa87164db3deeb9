"""Functions for notebooks: load an experiment, build or load a detector, run it on frames, score detections.

`import adatad` gives all of these (docs/api.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adatad.data.annotation_file import load_database
from adatad.data.annotations import Video
from adatad.data.decode import open_video
from adatad.data.resize import fit_frames
from adatad.data.timeline import Timeline
from adatad.data.windows import evaluation_window, evaluation_windows
from adatad.errors import UserError
from adatad.evaluation.classifiers import read_classifier
from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.evaluation.postprocess import WindowDetections, join_windows, window_detections
from adatad.memory.arithmetic import autocast
from adatad.memory.inputs import place_frames
from adatad.models.actionformer import decode
from adatad.parallel.devices import device_of
from adatad.parallel.processes import Processes
from adatad.spec import Spec, load
from adatad.spec.experiments import find_spec_path
from adatad.training.choice import with_engine
from adatad.training.determinism import run_arithmetic
from adatad.training.export import find_checkpoint, holds_frozen_weights, own_spec, read_trained_file
from adatad.training.plan import choose
from adatad.training.resolve import ResolvedRun, resolve_model
from adatad.training.score import load_for_scoring
from adatad.training.setup import build_initial_model, prepare_model
from adatad.training.validation import window_meta

CHUNK_FRAMES = 64
"""Frames that are resized at a time, which bounds memory."""
TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Detector:
    """A model with what it takes to run it on a video: `spec`, `classes` (names of its outputs), `module`, `device`."""

    def __init__(self, module: nn.Module, run: ResolvedRun, device: torch.device):
        self.module, self.device, self._run = module.eval(), device, run

    @property
    def spec(self) -> Spec:
        """The experiment that the model is of."""
        return self._run.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the model's outputs, in their order."""
        return self._run.outputs

    @torch.no_grad()
    def detect(self, frames: np.ndarray | Tensor, fps: float, name: str = "video") -> list[dict[str, Any]]:
        """Return what is found in a video: [{"segment": [start, end] in seconds, "label", "score"}], as
        `adatad test --detections` writes it.

        frames: uint8 [frames, height, width, 3], RGB, of any size and length. fps: frames a second; where the spec has
        no `data.fps`, it must be that of the videos that the model was trained on. name: of the video, which an
        external classifier knows it by. Raises UserError for frames of another form.
        """
        # One check for arrays and tensors; a tensor on the CPU shares its memory.
        images = np.asarray(frames)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
            raise UserError(f"frames: expected uint8 [frames, height, width, 3], got {images.dtype} {images.shape}")
        if not 0 < fps < np.inf:
            raise UserError(f"fps: expected frames a second, above 0, got {fps!r}")
        data, post = self.spec.data, self.spec.postprocess
        rate, sliding = data.fps or fps, data.window.kind == "sliding"
        timeline = Timeline(len(images), np.arange(len(images)) / fps, len(images) / fps)
        # Windows number frames at the rate of the annotations, or count those of the whole video.
        count = timeline.count_at(rate) if sliding else len(images)
        # A video as annotations describe it, without instances.
        nothing = np.zeros((0, 2))
        video = Video(name, timeline.duration_seconds, rate, count, nothing, nothing, np.zeros(0, np.int64))
        classifier = read_classifier(post.classifier) if post.classifier else None
        found = []
        with run_arithmetic(self.spec.train, self.device):
            # The windows of `adatad test`, one at a time.
            for place in evaluation_windows(video, data.window, self._run.quirks.repeat_windows):
                window = evaluation_window(place, count, data.window, timeline)
                numbers = timeline.frames_of(window.indices, rate) if sliding else window.indices
                # Resized before they are put together: the frames at full size may fill the memory.
                parts = np.split(images[numbers], range(CHUNK_FRAMES, len(numbers), CHUNK_FRAMES))
                small = torch.cat([fit_frames(part, data.size_pixels) for part in parts], dim=1)
                mask = torch.arange(data.window.size_grid) < window.valid_grid
                with autocast(self.device, self._run.arithmetic):
                    batch = place_frames(small[None], self.spec.memory, self.device)
                    predictions = self.module(batch, mask[None].to(self.device))
                ((segments_grid, scores),) = decode(predictions)
                detections = window_detections(
                    segments_grid.cpu().numpy(), scores.cpu().numpy(), window_meta(window, data), self.classes, post,
                    sliding, classifier,
                )  # fmt: skip
                found.append(WindowDetections(name, window.start_frame, sliding, detections))
        return join_windows(found, post, self._run.quirks.repeat_windows).get(name, [])


def load_spec(name: str | Path, overrides: Sequence[str] = (), check_files: bool = False) -> Spec:
    """Return the experiment of a file, or of a name such as demo/tia or thumos-s-768.

    overrides: as --set takes them, "train.seed=1". check_files: whether its data and weights must be there. Raises
    UserError with all that is wrong with it.
    """
    return load(find_spec_path(str(name))[0], overrides, check_files)


def build_detector(spec: Spec, classes: Sequence[str], device: str | torch.device | None = None) -> Detector:
    """Return the untrained detector of an experiment: its backbone's weights are those that the spec names, the rest is
    random by `train.seed`. classes: names of the outputs. device: without it the GPU, if there is one."""
    return _detector(spec, classes, device)


def load_detector(
    path: str | Path,
    spec: Spec | None = None,
    classes: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    averages: bool = True,
) -> Detector:
    """Return a trained detector: of a run (its best checkpoint), a checkpoint, a file of `adatad export`, or a
    checkpoint of OpenTAD.

    spec, classes: needed where the file holds none, as OpenTAD's. averages: instead of the last step's parameters.
    Raises UserError.
    """
    checkpoint, _ = find_checkpoint(Path(path))
    # Nothing of a pretrained file would be left; it needn't be there.
    overrides = ["model.backbone.weights=random"] if holds_frozen_weights(checkpoint) else []
    spec = own_spec(checkpoint, overrides, check_files=False) if spec is None else spec
    facts = read_trained_file(checkpoint).facts
    classes = classes if facts is None else facts.outputs
    if classes is None:
        raise UserError(f"{path}: doesn't say which classes its outputs are: name them, in order (classes=...)")
    return _detector(spec, classes, device, checkpoint, averages)


def _detector(
    spec: Spec,
    classes: Sequence[str],
    device: str | torch.device | None,
    checkpoint: Path | None = None,
    averages: bool = True,
) -> Detector:
    processes = Processes(0, 1, device_of(0) if device is None else torch.device(device))
    # One process runs whole windows, under any engine with the same numbers.
    spec = spec.model_copy(update={"parallel": spec.parallel.model_copy(update={"clip": 1})})
    spec = choose(with_engine(spec, "ddp"), processes, len(classes)).spec
    run = resolve_model(spec, processes, tuple(classes))
    model = build_initial_model(run.spec, run.num_classes)[0]

    def fill(trained: list[str]) -> None:
        """Load the checkpoint, if there is one, at the point where `prepare_model` asks for weights."""
        if checkpoint is not None:
            load_for_scoring(model, trained, checkpoint, averages)

    prepare_model(run, processes, model, learns=False, load=fill)
    return Detector(model, run, processes.device)


def read_video(path: str | Path) -> tuple[np.ndarray, float]:
    """Return the frames of a video file, uint8 [frames, height, width, 3], and how many there are a second. They are
    held at full size: ten minutes of HD take 50 GB. Raises VideoError."""
    with open_video(path) as reader:
        return reader.frames(np.arange(reader.frame_count)), reader.timeline.usual_fps


def score(
    detections: dict[str, list[dict[str, Any]]],
    annotations: str | Path | dict[str, Any],
    subset: str = "validation",
    tious: Sequence[float] = TIOUS,
    top_k: Sequence[int] = (),
) -> MapResult:
    """Score detections of all videos of a subset; the result has `average_mAP`, `mAP` by threshold, `ap_per_class`, and
    with `top_k` `recall`.

    detections: by video, as `Detector.detect` returns them. annotations: an annotation file, or its content
    ({"database": {video: ...}}). Raises UserError.
    """
    # An unknown subset would score 0 without a word.
    database = annotations.get("database") if isinstance(annotations, dict) else load_database(str(annotations))
    subsets = {entry.get("subset") for entry in database.values()} if isinstance(database, dict) else set()
    if subset not in subsets:
        raise UserError(f"annotations: no video of subset {subset!r}; there are {', '.join(sorted(map(str, subsets)))}")
    return evaluate({"database": database}, {"results": detections}, subset, tious, top_k=top_k)
