"""Targets of batches, made where batches are loaded: in the loader's processes, while the device computes."""

from __future__ import annotations

from dataclasses import dataclass

from adatad.data.dataset import Batch
from adatad.models.actionformer import level_masks, level_points
from adatad.models.losses import Targets, assign_targets
from adatad.spec.schema import DetectorSpec


@dataclass(frozen=True)
class TargetMaker:
    """Gives batches what a detector should predict of them. Small, without weights: it travels to other processes."""

    spec: DetectorSpec
    num_classes: int

    def __call__(self, batch: Batch) -> Batch:
        return batch._replace(targets=self.targets(batch))

    def targets(self, batch: Batch) -> Targets:
        """Of all points, in host memory: counting positives then waits for no GPU."""
        return assign_targets(
            level_points(batch.mask.shape[1], self.spec),
            level_masks(batch.mask, self.spec),
            batch.segments_grid,
            batch.labels,
            self.num_classes,
            self.spec,
        )
