"""A spec that trains on a few seconds of built-in videos in a moment, to be filled with `data` and `runs`."""

TINY_SPEC = """
data:
  annotations: {data}/annotations.json
  videos: {data}/videos
  window: {{size_grid: 32, stride_frames: 2, frames_per_position: 1}}
  size_pixels: 32
  workers: 0
model:
  backbone:
    {{width: 16, depth: 2, heads: 2, patch: 16, mlp_ratio: 2, position_grid: 2, mode: adapter, drop_path: 0.2,
      weights: random}}
  detector:
    width: 16
    heads: 2
    stem_blocks: 1
    branch_blocks: 2
    max_length: 32
    input_dropout: 0.1
    regression_ranges: [[0, 4], [4, 8], [8, 10000]]
optimizer:
  lr: 1e-3
  backbone: {{custom: [{{name: adapter, lr: 2e-3}}]}}
schedule: {{warmup_epochs: 1, epochs: 3}}
ema: {{decay: 0.9}}
train: {{evaluate_every_epochs: 1, checkpoint_every_steps: 1}}
run: {{root: {runs}}}
"""

SMALL = [
    "model.backbone.weights=random",
    "model.backbone.width=16",
    "model.backbone.depth=1",
    "model.backbone.heads=2",
    "model.detector.width=16",
    "model.detector.heads=2",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "data.workers=0",
]
"""Overrides that make any spec one of the smallest models, trained for one epoch."""


def saved_state(step: int = 0, **changes: object) -> dict[str, object]:
    """Return state.json of a checkpoint after so many steps, in the form of before there was a version."""
    progress = {"epoch": 0, "step_in_epoch": step, "step": step}
    state = {"progress": progress, "normalizer": 76.15, "scaler": {}, "frozen_fingerprint": "0" * 64}
    return {**state, **changes}
