"""The loaders of a run: this rank's windows of training and of evaluation, with the targets of what is trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from adatad.data.balance import repeats_of
from adatad.data.dataset import Batch, Skipped, TrainingWindows, ValidationWindows, collate
from adatad.data.loader import PREFETCH, EpochBatches, Loader, Share, require_shared_memory
from adatad.data.windows import evaluation_windows
from adatad.models.actionformer import level_masks, level_points
from adatad.models.losses import Targets, assign_targets
from adatad.parallel.clip import ClipGroup
from adatad.parallel.layout import Mesh
from adatad.spec import Spec
from adatad.spec.model_sections import DetectorSpec
from adatad.spec.sizes import clip_share, clips_of_window
from adatad.training.resolve import ResolvedRun

# For resizing a window and handing it over, with much to spare.
SLACK_SECONDS = 10.0
"""Time that a loader process may take for anything but decoding."""


@dataclass(frozen=True)
class TargetMaker:
    """A function that adds to batches what a detector should predict of them.

    It runs in the loader's processes while the device computes. It is sent there, so it is small and has no weights.
    """

    spec: DetectorSpec
    num_classes: int

    def __call__(self, batch: Batch) -> Batch:
        return batch._replace(targets=self.targets(batch))

    def targets(self, batch: Batch) -> Targets:
        """Return the targets of all points, in host memory: counting positives then waits for no GPU."""
        return assign_targets(
            level_points(batch.mask.shape[1], self.spec),
            level_masks(batch.mask, self.spec),
            batch.segments_grid,
            batch.labels,
            self.num_classes,
            self.spec,
        )


def training_loader(run: ResolvedRun, start: tuple[int, int]) -> Loader:
    """Return this rank's micro-batches from (epoch, step) to the end of training, with their targets."""
    spec, mesh, train = run.spec, run.mesh, run.spec.train
    share = Share(mesh.data_rank, mesh.data, train.accumulation, train.global_batch)
    videos = run.annotations.train
    repeats = repeats_of(train.class_balance, videos)
    copies = videos if repeats is None else tuple(videos[number] for number in repeats.copies)
    dataset = TrainingWindows(copies, spec.data, train.seed, run.quirks, frames_here(spec, mesh))
    # From the run's position: resuming draws the very batches that an uninterrupted run would have had.
    batches = EpochBatches(len(videos), share, train.seed, run.end_epoch, start, repeats)
    targets = TargetMaker(spec.model.detector, run.num_classes)
    return Loader(dataset, batches, spec.data.workers, idle_seconds(spec), complete=targets)


def validation_loader(run: ResolvedRun, shuffle_clips: bool = False) -> Loader:
    """Return this rank's windows of the validation videos: every n-th of n ranks (or clip groups), none twice.

    One at a time: in batches of another size the last digits would differ, and so with the number of ranks.
    """
    spec, mesh = run.spec, run.mesh
    places = [
        place
        for video in run.annotations.validation
        for place in evaluation_windows(video, spec.data.window, run.quirks.repeat_windows)
    ]
    # 0: as they are.
    shuffled = spec.model.backbone.clip_frames if shuffle_clips else 0
    dataset = ValidationWindows(places, spec.data, shuffled, frames_here(spec, mesh))
    # Every n-th: neighbouring windows are of one video and cost alike, so that ranks end together.
    mine = range(mesh.data_rank, len(places), mesh.data)
    return Loader(dataset, [[number] for number in mine], spec.data.workers, idle_seconds(spec))


def frames_here(spec: Spec, mesh: Mesh) -> slice:
    """Return the frames of a window that this rank reads."""
    if spec.data.features is not None:
        return slice(None)
    length = spec.model.backbone.clip_frames
    share = clip_share(clips_of_window(spec.data, length), mesh.clip, mesh.clip_rank)
    return slice(share.start * length, share.stop * length)


def idle_seconds(spec: Spec) -> float:
    """Return how long a loader process may do nothing: less than a step may take, but two tries to decode a frame."""
    return min(spec.train.hang_seconds, 2 * spec.data.decode_timeout_seconds + SLACK_SECONDS)


def check_shared_memory(run: ResolvedRun) -> None:
    """Raise LoaderError if loader processes can't hand their windows over: those of training, and beside them those of
    an evaluation."""
    data, train, mesh = run.spec.data, run.spec.train, run.mesh
    if not data.workers:
        return
    frames = frames_here(run.spec, mesh).indices(data.window.size_grid * data.window.frames_per_position)
    window_bytes = 3 * len(range(*frames)) * data.size_pixels**2
    if data.features is not None:
        window_bytes = 4 * (run.spec.model.backbone.width or 0) * data.window.size_grid
    micro_batch = max(1, train.global_batch // (mesh.data * train.accumulation))
    ahead = PREFETCH * data.workers
    # Ranks of this machine share its /dev/shm; torchrun says how many they are, else all may be here.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", mesh.data * mesh.clip))
    # Those of an evaluation come one window at a time.
    require_shared_memory(window_bytes, (ahead + train.accumulation) * micro_batch + ahead + 1, local)


def sync_skipped_videos(loader: Loader, group: ClipGroup) -> Iterator[Batch]:
    """Yield a training loader's batches, of the same videos on all ranks that share windows.

    Where one rank has another video in place of one that it couldn't read, all others leave that out too, and the
    reason says which rank it was.
    """
    unread: dict[str, Skipped] = {}
    for batch, addresses in zip(loader, loader.batches, strict=True):
        # A collective in each turn: all ranks see the same answer, so they leave the loop together.
        while not _same_everywhere(batch, group, unread):
            loader.dataset.leave_out(unread.values())
            batch = collate([loader.dataset[address] for address in addresses])
        yield batch


def _same_everywhere(batch: Batch, group: ClipGroup, unread: dict[str, Skipped]) -> bool:
    """Return whether all ranks have the same videos; add what any of them couldn't read to `unread`."""
    names = [window.video.name for window in batch.windows]
    everyone = group.gather_objects((names, batch.skipped))
    # With the rank's number: its disk may be the one that can't be read.
    for rank, (_, skipped) in zip(group.mesh.group, everyone, strict=True):
        for video, reason in skipped:
            unread.setdefault(video, Skipped(video, f"{reason} (rank {rank})"))
    return all(others == names for others, _ in everyone)
