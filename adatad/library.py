"""Functions for notebooks: load an experiment, build or load a detector, run it on frames, score detections.

`import adatad` gives all of these (docs/api.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from adatad.data.annotation_file import load_database
from adatad.data.annotations import Video
from adatad.data.decode import open_video
from adatad.data.frame_stream import VideoSource
from adatad.detect.detections import Detection, Detections, records, wanted
from adatad.detect.known_model import own_thresholds
from adatad.detect.video import Opened, from_frames, open_file
from adatad.errors import UserError
from adatad.evaluation.detection_map import MapResult, evaluate
from adatad.memory.stream import drawn_within
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
from adatad.training.video_detections import VideoDetector, VideoPart

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Detector:
    """A model with what it takes to run it on videos: `spec`, `classes` (names of its outputs), `module`, `device`.

    `Detector.load("tia.safetensors")("video.mp4")` returns what happens when. `thresholds`: lowest score of each class
    that a call without a threshold returns; None where the model has none, which returns all.
    """

    def __init__(self, module: nn.Module, run: ResolvedRun, device: torch.device):
        # Dropout and stochastic depth would make detections random.
        self.module, self.device, self._run = module.eval(), device, run
        self.thresholds: dict[str, float] | None = None
        self._on_videos = VideoDetector(self.module, run, device)

    @classmethod
    def load(
        cls,
        path: str | Path,
        spec: Spec | None = None,
        classes: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        averages: bool = True,
    ) -> Self:
        """Return a trained detector, as `load_detector` does."""
        return load_detector(path, spec, classes, device, averages)

    @property
    def spec(self) -> Spec:
        """The experiment that the model is of."""
        return self._run.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the model's outputs, in their order."""
        return self._run.outputs

    def __call__(
        self,
        source: str | Path | np.ndarray | Tensor,
        fps: float | None = None,
        *,
        name: str = "video",
        threshold: float | Mapping[str, float] | None = None,
        top_k: int | None = None,
        classes: Iterable[str] | None = None,
        windows: bool = False,
    ) -> Detections:
        """Return what is found in a video, best first.

        source: a video file of any length, of which a few frames at a time are held; or frames, uint8 [n, height,
        width, 3], RGB, with `fps` (frames a second) and the `name` that records shall have. threshold: lowest score,
        or one for each class; None: the model's own. top_k: the best so many. classes: only these. windows: run every
        window by itself, as evaluation does, instead of every frame once (docs/detect.md). Raises UserError.
        """
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1):
            raise UserError(f"top_k: expected a number of detections, 1 or more, got {top_k!r}")
        # Before hours of work: a misspelled class is said at once.
        rule = wanted(self._labels(), threshold, classes, self.thresholds)
        with self._opened(source, fps, name) as (frames, video):
            whole = self._whole(frames, video, windows)
        return Detections(islice(records(video.name, whole, rule), top_k))

    def stream(
        self,
        source: str | Path | np.ndarray | Tensor,
        fps: float | None = None,
        *,
        name: str = "video",
        threshold: float | Mapping[str, float] | None = None,
        classes: Iterable[str] | None = None,
        windows: bool = False,
    ) -> Iterator[Detection]:
        """Yield what is found in a long video as soon as no window to come can change it, by parts of it in the order
        of time.

        Detections of a part are those that a call would return, but that overlapping ones are suppressed among the
        windows of that part alone: scores may be higher than in the list of the whole video, and some may be left out
        of that list, which is bounded (`postprocess.nms.max_segments`). With a threshold of use, such as the model's
        own, the two differ little. Arguments as in a call.
        """
        rule = wanted(self._labels(), threshold, classes, self.thresholds)
        for part in self.parts(source, fps, name=name, windows=windows):
            yield from sorted(records(part.video, part.detections, rule), key=lambda item: item.start_seconds)

    def parts(
        self,
        source: str | Path | np.ndarray | Tensor,
        fps: float | None = None,
        *,
        name: str = "video",
        windows: bool = False,
    ) -> Iterator[VideoPart]:
        """Yield a part of a video after each of its windows, with its detections before any threshold; the last part
        holds the list of the whole video. Arguments as in a call."""
        with self._opened(source, fps, name) as (frames, video):
            yield from self._parts(frames, video, windows)

    def detect(self, frames: np.ndarray | Tensor, fps: float, name: str = "video") -> list[dict[str, Any]]:
        """Return what is found in a video: [{"segment": [start, end] in seconds, "label", "score"}], as
        `adatad test --detections` writes it, from windows and without a threshold.

        frames: uint8 [frames, height, width, 3], RGB, of any size and length. fps: frames a second; where the spec has
        no `data.fps`, it must be that of the videos that the model was trained on. name: of the video, which an
        external classifier knows it by. Raises UserError for frames of another form.
        """
        return self._whole(*from_frames(frames, fps, name, self.spec.data), windows=True)

    def _opened(
        self, source: str | Path | np.ndarray | Tensor, fps: float | None, name: str
    ) -> AbstractContextManager[Opened]:
        if not isinstance(source, str | PathLike):
            if fps is None:
                raise UserError("frames need fps=..., how many of them are shown a second")
            # Nothing is to be closed, as a file is.
            return nullcontext(from_frames(source, fps, name, self.spec.data))
        if fps is not None:
            raise UserError(f"{source}: a file says itself when its frames are shown; fps is for frames in memory")
        return open_file(source, self.spec.data)

    def _parts(self, frames: VideoSource, video: Video, windows: bool) -> Iterator[VideoPart]:
        """Yield the parts of an opened video, with kernels as the run's spec asks for."""
        # For each item anew: the caller's own work between them keeps its settings.
        found = self._on_videos.parts(frames, video, stream=not windows)
        return drawn_within(lambda: run_arithmetic(self.spec.train, self.device), found)

    def _whole(self, frames: VideoSource, video: Video, windows: bool) -> list[dict[str, Any]]:
        """Return the list of an opened video."""
        # No part before the last is held.
        return deque(self._parts(frames, video, windows), maxlen=1).pop().whole

    def _labels(self) -> tuple[str, ...]:
        """Return the labels that detections may have."""
        return self._on_videos.labels


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
    detector = _detector(spec, classes, device, checkpoint, averages)
    # A run's are those of its averages; a file holds one set of weights.
    if averages or checkpoint.is_file():
        detector.thresholds = own_thresholds(checkpoint, spec, facts)[0]
    return detector


def _detector(
    spec: Spec,
    classes: Sequence[str],
    device: str | torch.device | None,
    checkpoint: Path | None = None,
    averages: bool = True,
) -> Detector:
    processes = Processes(0, 1, device_of(0) if device is None else torch.device(device))
    if spec.model.backbone.mode == "features":
        raise UserError(
            "this detector takes features (model.backbone.mode features) and no videos: adatad extract writes them, "
            "and adatad test scores it on them"
        )
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
