"""What no single key can say: settings that contradict one another, and files that aren't there.

Each check yields the key it is about and what is wrong; all are reported at once, before anything is built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from adatad.spec.clip_share import clips_of_window
from adatad.spec.deepspeed_file import deepspeed_problems
from adatad.spec.document import Key
from adatad.spec.presets import resolve_backbone
from adatad.spec.published_weights import RANDOM, where_published
from adatad.spec.salvage import DoubtError, Undoubted
from adatad.spec.schema import SHARDS_FROZEN_WEIGHTS, DetectorSpec, MemorySpec, Spec

Problem = tuple[Key, str]


Check = Callable[[Spec], Iterator[Problem]]


def cross_checks(spec: Spec, doubtful: Iterable[Key] = ()) -> list[Problem]:
    """Settings that contradict one another; none that hangs on a doubtful key."""
    checks = (
        _window,
        _names,
        _backbone,
        _detector,
        _levels,
        _optimizer,
        _schedule,
        _memory,
        _parallel,
        _clip,
        _postprocess,
        _classifier,
    )
    return _problems(checks, spec, set(doubtful))


def memory_checks(spec: Spec) -> list[Problem]:
    """Of the cross checks, those of the sections memory and parallel: what a planner varies."""
    return _problems((_memory, _parallel), spec, set())


def file_checks(spec: Spec, doubtful: Iterable[Key] = ()) -> list[Problem]:
    """Files and folders that a run reads and that aren't there."""
    return _problems(
        (_annotations, _weights, _deepspeed, _classes, _blocked_videos, _videos, _scoring_files), spec, set(doubtful)
    )


def _problems(checks: Iterable[Check], spec: Spec, doubtful: set[Key]) -> list[Problem]:
    seen = Undoubted(spec, doubtful) if doubtful else spec
    problems = []
    for check in checks:
        # A check ends where it reads what is doubtful; what it found before stands.
        with contextlib.suppress(DoubtError):
            for problem in check(seen):
                problems.append(problem)
    return problems


def _annotations(spec: Spec) -> Iterator[Problem]:
    yield from _no_file(("data", "annotations"), spec.data.annotations)


def _weights(spec: Spec) -> Iterator[Problem]:
    weights = spec.model.backbone.weights
    if weights != RANDOM:
        for key, problem in _no_file(("model", "backbone", "weights"), weights):
            yield key, problem + where_published(weights)


def _deepspeed(spec: Spec) -> Iterator[Problem]:
    key, path = ("parallel", "deepspeed"), spec.parallel.deepspeed
    yield from _no_file(key, path)
    if path is not None and Path(path).is_file() and spec.parallel.engine.startswith("zero"):
        yield from ((key, problem) for problem in deepspeed_problems(path, spec))


def _classes(spec: Spec) -> Iterator[Problem]:
    classes = spec.data.classes
    yield from _no_file(("data", "classes"), classes if isinstance(classes, str) else None)


def _blocked_videos(spec: Spec) -> Iterator[Problem]:
    blocked = spec.data.blocked_videos
    yield from _no_file(("data", "blocked_videos"), blocked if isinstance(blocked, str) else None)


def _videos(spec: Spec) -> Iterator[Problem]:
    if not Path(spec.data.videos).is_dir():
        yield ("data", "videos"), f"there is no folder {spec.data.videos}"


def _no_file(key: Key, path: str | None) -> Iterator[Problem]:
    if path is not None and not Path(path).is_file():
        yield key, f"there is no file {path}"


def _window(spec: Spec) -> Iterator[Problem]:
    window, backbone = spec.data.window, spec.model.backbone
    frames = window.size_grid * window.frames_per_position
    if frames % backbone.clip_frames:
        text = f"{window.size_grid} x {window.frames_per_position} frames a position aren't whole clips of "
        yield ("data", "window", "size_grid"), f"{text}{backbone.clip_frames} frames"
    if window.kind == "resize":
        yield from _resized_window(spec)
        return
    if window.stride_frames % window.frames_per_position:
        text = f"{window.stride_frames} can't be divided by frames_per_position {window.frames_per_position}"
        yield ("data", "window", "stride_frames"), text
    if int(window.size_grid * (1 - window.overlap)) < 1:
        yield ("data", "window", "overlap"), f"{window.overlap} leaves no step from one window to the next"
    if window.crop_ratio and window.crop_ratio[0] > window.crop_ratio[1]:
        yield ("data", "window", "crop_ratio"), f"{list(window.crop_ratio)} isn't [low, high]"


def _resized_window(spec: Spec) -> Iterator[Problem]:
    """Keys that can be left off must be; a stride and an overlap, which have no such value, are passed over."""
    for name, off in (("crop_ratio", None), ("offset_frames", 0)):
        if getattr(spec.data.window, name) != off:
            yield ("data", "window", name), "is without effect with kind resize, whose windows are whole videos"


def _names(spec: Spec) -> Iterator[Problem]:
    for name in ("train_subset", "validation_subset"):
        if not getattr(spec.data, name):
            yield ("data", name), "is empty; expected the name of a subset of the annotation file, or a list of names"
    if "{name}" not in spec.data.pattern:
        yield ("data", "pattern"), f"{spec.data.pattern!r} doesn't hold {{name}}, the video's name"
    classes = spec.data.classes
    if isinstance(classes, tuple) and (not classes or len(set(classes)) < len(classes)):
        yield ("data", "classes"), "is empty or names a class twice"
    if isinstance(classes, tuple) and spec.data.class_count not in (None, len(classes)):
        yield ("data", "class_count"), f"expects {spec.data.class_count} classes, but data.classes lists {len(classes)}"


def _backbone(spec: Spec) -> Iterator[Problem]:
    backbone, key = spec.model.backbone, ("model", "backbone")
    sizes = resolve_backbone(backbone)
    if sizes.width % sizes.heads:
        yield (*key, "heads"), f"the width {sizes.width} can't be divided by {sizes.heads} heads"
    if backbone.clip_frames % backbone.tubelet:
        text = f"{backbone.clip_frames} frames can't be divided into tubelets of {backbone.tubelet}"
        yield (*key, "clip_frames"), text
    if spec.data.size_pixels < sizes.patch:
        text = f"{spec.data.size_pixels} pixels are less than one patch of {sizes.patch}"
        yield ("data", "size_pixels"), text
    if backbone.mode not in ("adapter", "plain", "side"):
        return
    adapter = backbone.adapter
    if adapter.blocks != "all":
        outside = [block for block in adapter.blocks if block >= sizes.depth]
        if outside:
            text = f"block {outside[0]} is outside the backbone, whose {sizes.depth} blocks count from 0"
            yield (*key, "adapter", "blocks"), text
        if not adapter.blocks or len(set(adapter.blocks)) < len(adapter.blocks):
            yield (*key, "adapter", "blocks"), f"is empty or names a block twice, in mode {backbone.mode}"
    if adapter.kernel % 2 == 0:
        yield (*key, "adapter", "kernel"), f"expected an odd number, got {adapter.kernel}"
    if int(sizes.width * adapter.ratio) < 1:
        yield (*key, "adapter", "ratio"), f"{adapter.ratio} of the width {sizes.width} is less than one channel"


def _detector(spec: Spec) -> Iterator[Problem]:
    detector, key = spec.model.detector, ("model", "detector")
    if detector.width % detector.heads:
        yield (*key, "width"), f"{detector.width} can't be divided by {detector.heads} heads"
    if detector.embed_kernel % 2 == 0:
        yield (*key, "embed_kernel"), f"expected an odd number, got {detector.embed_kernel}"
    if detector.absolute_positions and spec.data.window.size_grid > detector.max_length:
        text = f"{detector.max_length} positions are fewer than a window's {spec.data.window.size_grid}"
        yield (*key, "max_length"), text
    if detector.split_width is not None:
        yield (*key, "split_width"), "needs an input of several streams; a backbone gives one"
    if detector.regression_weight == 0 and spec.train.accumulation > 1:
        text = "0 follows the losses of a whole batch, which train.accumulation splits; set accumulation to 1"
        yield (*key, "regression_weight"), text


def _levels(spec: Spec) -> Iterator[Problem]:
    detector, key = spec.model.detector, ("model", "detector")
    levels = detector.branch_blocks + 1
    if len(detector.regression_ranges) != levels:
        text = f"{len(detector.regression_ranges)} ranges for {levels} levels (1 + branch_blocks)"
        yield (*key, "regression_ranges"), text
    for index, (low, high) in enumerate(detector.regression_ranges):
        if low > high:
            yield (*key, "regression_ranges", index), f"[{low:g}, {high:g}] isn't [low, high]"
    windows = detector.attention_window
    if isinstance(windows, tuple) and len(windows) != levels:
        yield (*key, "attention_window"), f"{len(windows)} windows for {levels} levels (1 + branch_blocks)"
        return
    each = windows if isinstance(windows, tuple) else (windows,) * levels
    wrong = [window for window in each if window != -1 and window < 4]
    if wrong:
        yield (*key, "attention_window"), f"expected -1 (global) or 4 and more, got {wrong[0]}"
        return
    yield from _max_length(detector, each)


def _max_length(detector: DetectorSpec, windows: tuple[int, ...]) -> Iterator[Problem]:
    """As in ActionFormer, every level must divide into whole double half-windows."""
    for level, window in enumerate(windows):
        step = 2**level * (2 * (window // 2) if window > 1 else 1)
        if detector.max_length % step:
            larger = -(-detector.max_length // step) * step
            text = f"level {level} (stride {2**level}, window {window}) needs a multiple of {step}, such as {larger}"
            yield ("model", "detector", "max_length"), f"{detector.max_length}: {text}"
            return


def _optimizer(spec: Spec) -> Iterator[Problem]:
    optimizer, mode = spec.optimizer, spec.model.backbone.mode
    if optimizer.layer_decay is not None:
        if mode != "full":
            yield ("optimizer", "layer_decay"), f"is for model.backbone.mode full; the mode is {mode}"
        return
    backbone = optimizer.backbone
    if mode == "frozen":
        if backbone is not None:
            yield ("optimizer", "backbone"), "is without effect: nothing in the backbone is trained in mode frozen"
        return
    if backbone is None:
        yield ("optimizer", "backbone"), f"is missing: mode {mode} trains parameters of the backbone"
        return
    names = [group.name for group in backbone.custom]
    if len(set(names)) < len(names):
        yield ("optimizer", "backbone", "custom"), "names a group twice"
    if mode != "full" and backbone.lr == 0 and not any(name in "blocks.0.side_adapter.adapter" for name in names):
        text = "no group takes the adapters (name: adapter), and optimizer.backbone.lr is 0"
        yield ("optimizer", "backbone", "custom"), text


def _schedule(spec: Spec) -> Iterator[Problem]:
    schedule, train = spec.schedule, spec.train
    if schedule.end_epoch is not None and schedule.end_epoch > schedule.epochs:
        yield ("schedule", "end_epoch"), f"{schedule.end_epoch} is after the last of {schedule.epochs} epochs"
    if schedule.warmup_epochs > schedule.epochs:
        text = f"{schedule.warmup_epochs} are more than all {schedule.epochs} epochs"
        yield ("schedule", "warmup_epochs"), text
    if train.global_batch % train.accumulation:
        text = f"{train.global_batch} can't be divided by accumulation {train.accumulation}"
        yield ("train", "global_batch"), text


TILE_ONLY = (
    "tile_clips", "segment_blocks", "recompute", "order", "residual_dtype", "rows", "halos", "frames",
    "frozen_weights", "host_limit_gib",
)  # fmt: skip


def _memory(spec: Spec) -> Iterator[Problem]:
    memory, mode, key = spec.memory, spec.model.backbone.mode, ("memory",)
    if isinstance(memory.policy, tuple):
        depth, expected = resolve_backbone(spec.model.backbone).depth, 0
        for index, blocks in enumerate(memory.policy):
            if blocks.first != expected or blocks.last < blocks.first:
                text = (
                    f"blocks {blocks.first} to {blocks.last}: the ranges must follow one another, here from {expected}"
                )
                yield (*key, "policy", index), text
            expected = blocks.last + 1
        if expected != depth:
            yield (*key, "policy"), f"the ranges cover {expected} blocks of the backbone's {depth}"
        if mode == "side":
            yield (*key, "policy"), "mode side takes one policy, not ranges: its backbone runs without a graph"
    policies = [memory.policy] if isinstance(memory.policy, str) else [blocks.policy for blocks in memory.policy]
    if memory.policy == "auto":
        # The planner leaves out what isn't allowed; what is said beside it must be possible under tile.
        yield from _placement(spec, ["tile"])
        if _asks_for_tile(memory):
            yield from _reach(spec)
        return
    if "tile" not in policies:
        defaults = MemorySpec()
        for name in TILE_ONLY:
            if getattr(memory, name) != getattr(defaults, name):
                yield (*key, name), f"is without effect under policy {memory.policy}; it belongs to tile"
        if memory.weight_dtype not in ("auto", "fp32"):
            yield (*key, "weight_dtype"), f"{memory.weight_dtype} needs policy tile; here it can be auto or fp32"
        return
    yield from _placement(spec, policies)
    yield from _reach(spec)


def _asks_for_tile(memory: MemorySpec) -> bool:
    """Whether policy auto can only become tile, by what is said beside it."""
    defaults = MemorySpec()
    said = any(getattr(memory, name) != getattr(defaults, name) for name in TILE_ONLY)
    return said or memory.weight_dtype not in ("auto", "fp32")


def _reach(spec: Spec) -> Iterator[Problem]:
    backbone = spec.model.backbone
    adapter, planes = backbone.adapter, backbone.clip_frames // backbone.tubelet
    reach = adapter.dilation * (adapter.kernel - 1) // 2
    if backbone.mode == "adapter" and reach > planes:
        text = f"the adapters reach {reach} tubelets to each side, further than one clip of {planes}"
        yield ("memory", "policy"), f"{text}: tile can't do that"


def _placement(spec: Spec, policies: list[str]) -> Iterator[Problem]:
    """What can't wait in host memory, under policy tile."""
    memory, mode, engine = spec.memory, spec.model.backbone.mode, spec.parallel.engine
    if memory.frames == "host" and policies[0] != "tile":
        yield ("memory", "frames"), f"host needs policy tile in the first range, which is {policies[0]}"
    if memory.frozen_weights == "stream":
        if mode == "full":
            yield ("memory", "frozen_weights"), "stream is without effect: mode full has no frozen weights"
        if set(policies) != {"tile"}:
            yield ("memory", "frozen_weights"), "stream needs policy tile for all blocks"
        if memory.order == "tiles":
            yield ("memory", "order"), "tiles wants all weights at once, which frozen_weights stream doesn't have"
        if engine not in ("auto", "ddp"):
            text = f"stream works with engine ddp, not {engine}, which has ways of its own (docs/engines.md)"
            yield ("memory", "frozen_weights"), text
    if mode == "side":
        for name in ("rows", "halos"):
            if getattr(memory, name) == "host":
                yield ("memory", name), "host is without effect: mode side keeps none"


def _parallel(spec: Spec) -> Iterator[Problem]:
    parallel, key = spec.parallel, ("parallel",)
    if parallel.deepspeed is not None and not parallel.engine.startswith("zero"):
        yield (*key, "deepspeed"), f"is without effect with engine {parallel.engine}; it belongs to zero1, zero2, zero3"
    if spec.train.recheck_every and parallel.engine.startswith("zero"):
        text = f"engine {parallel.engine} shows no gradients before its update; use fsdp or ddp, or leave this out"
        yield ("train", "recheck_every"), text
    if parallel.cpu_offload and parallel.engine != "fsdp":
        text = "DeepSpeed offloads by its own file" if parallel.engine.startswith("zero") else "it belongs to fsdp"
        yield (*key, "cpu_offload"), f"is without effect with engine {parallel.engine}; {text}"
    if parallel.checkpoint_offload and (parallel.engine != "fairscale" or spec.memory.policy != "block"):
        text = f"needs engine fairscale and memory.policy block, not {parallel.engine} and {spec.memory.policy}"
        yield (*key, "checkpoint_offload"), text
    if spec.memory.optimizer_state == "host" and parallel.engine not in ("auto", "ddp"):
        text = f"host works with engine ddp, not {parallel.engine}, which has ways of its own (docs/engines.md)"
        yield ("memory", "optimizer_state"), text
    if spec.memory.order == "tiles" and parallel.engine in SHARDS_FROZEN_WEIGHTS:
        text = f"tiles wants all weights at once, which engine {parallel.engine} shards; use auto or blocks"
        yield ("memory", "order"), text


def _clip(spec: Spec) -> Iterator[Problem]:
    ranks, backbone, key = spec.parallel.clip, spec.model.backbone, ("parallel", "clip")
    if ranks == 1:
        return
    clips = clips_of_window(spec.data, backbone.clip_frames)
    if ranks > clips:
        yield key, f"{ranks} ranks can't share a window of {clips} clips of {backbone.clip_frames} frames"
        return
    reach = backbone.adapter.dilation * (backbone.adapter.kernel - 1) // 2
    tubelets = clips // ranks * backbone.clip_frames // backbone.tubelet
    if backbone.mode in ("adapter", "side") and reach > tubelets:
        text = f"the adapters reach {reach} tubelets to each side, further than the {tubelets} that a rank may have"
        reached_clips = -(-reach * backbone.tubelet // backbone.clip_frames)
        yield key, f"{text}; use at most {max(1, clips // reached_clips)}"


def _postprocess(spec: Spec) -> Iterator[Problem]:
    nms = spec.postprocess.nms
    if nms and nms.multiclass and nms.voting_threshold is not None and spec.compat != "reference":
        text = "is without effect while multiclass is true; remove it (compat: reference allows and ignores it)"
        yield ("postprocess", "nms", "voting_threshold"), text
    if nms and nms.max_segments == 0:
        yield ("postprocess", "nms", "max_segments"), "is 0, which keeps no detection at all; give at least 1"
    if not spec.evaluate.tious:
        yield ("evaluate", "tious"), "is empty"


def _classifier(spec: Spec) -> Iterator[Problem]:
    key, classifier = ("postprocess", "classifier"), spec.postprocess.classifier
    if classifier is None:
        return
    if not spec.model.detector.class_agnostic:
        text = "gives labels to a detector without classes of its own; set model.detector.class_agnostic to true"
        yield key, text
    pseudo = classifier.kind == "pseudo"
    if pseudo == (classifier.file is not None):
        yield (*key, "file"), "is without effect with kind pseudo" if pseudo else f"kind {classifier.kind} needs one"
    if pseudo != (classifier.pseudo_label is not None):
        text = "kind pseudo needs one" if pseudo else f"is without effect with kind {classifier.kind}"
        yield (*key, "pseudo_label"), text
    if classifier.apply_softmax and classifier.kind != "standard":
        yield (*key, "apply_softmax"), f"is without effect with kind {classifier.kind}; it belongs to standard"


def _scoring_files(spec: Spec) -> Iterator[Problem]:
    yield from _no_file(("evaluate", "blocked_videos"), spec.evaluate.blocked_videos)
    if spec.postprocess.classifier is not None:
        yield from _no_file(("postprocess", "classifier", "file"), spec.postprocess.classifier.file)
