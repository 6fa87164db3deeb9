"""Settings of the sections data, model, optimizer, schedule and train that contradict one another.

Each check yields the key it is about, and what is wrong with a setting that fixes it, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from adatad.spec.document import Key
from adatad.spec.fixes import Fixable, divisor, fixed_by, instead, multiple
from adatad.spec.model_sections import DetectorSpec
from adatad.spec.numbers import MAX_COUNT, MAX_LENGTH
from adatad.spec.presets import PRESETS
from adatad.spec.schema import Spec
from adatad.spec.sizes import resolve_backbone
from adatad.spec.text import cut, pattern_problem

Problem = tuple[Key, str]
Finding = tuple[Key, str | Fixable]
MAX_WINDOW_BYTES = 1 << 40
"""Bytes of one window's uint8 frames."""
MIN_ROTARY_WIDTH = 6
"""Channels of a head: a pair for each of time, row and column."""
MAX_PARAMETERS = 10**12
"""Parameters of the backbone, and of the detector."""


def _window(spec: Spec) -> Iterator[Finding]:
    window, backbone = spec.data.window, spec.model.backbone
    frames = window.size_grid * window.frames_per_position
    if frames % backbone.clip_frames and backbone.mode != "features":
        # The least number of positions whose frames are whole clips.
        step = backbone.clip_frames // math.gcd(backbone.clip_frames, window.frames_per_position)
        text = f"{window.size_grid} x {window.frames_per_position} frames a position aren't whole clips of "
        fix = instead(data__window__size_grid=multiple(window.size_grid, step))
        yield ("data", "window", "size_grid"), f"{text}{backbone.clip_frames} frames; {fix}"
    # Of uint8 frames, three channels: a byte each.
    size = frames * 3 * spec.data.size_pixels**2
    # Far above any machine's memory: this finds a digit too many, not a window that is too long.
    if size > MAX_WINDOW_BYTES:
        text = (
            f"{frames} frames of {spec.data.size_pixels} x {spec.data.size_pixels} pixels take {size / 2**30:.3g} GiB"
        )
        yield ("data", "window", "size_grid"), f"{text}; take fewer, smaller ones"
    if window.kind == "resize":
        yield from _resized_window(spec)
        return
    # The frames of a position are spread evenly over its stride, so their distance must be whole.
    if window.stride_frames % window.frames_per_position:
        text = f"{window.stride_frames} can't be divided by frames_per_position {window.frames_per_position}"
        fix = instead(data__window__stride_frames=multiple(window.stride_frames, window.frames_per_position))
        yield ("data", "window", "stride_frames"), f"{text}; {fix}"
    # The step as evaluation computes it, rounded down.
    if int(window.size_grid * (1 - window.overlap)) < 1:
        fix = instead(data__window__overlap=0.5 if window.size_grid > 1 else 0)
        yield ("data", "window", "overlap"), f"{window.overlap} leaves no step from one window to the next; {fix}"
    if window.crop_ratio and window.crop_ratio[0] > window.crop_ratio[1]:
        fix = instead(data__window__crop_ratio=window.crop_ratio[::-1])
        yield ("data", "window", "crop_ratio"), f"{list(window.crop_ratio)} isn't [low, high]; {fix}"


def _resized_window(spec: Spec) -> Iterator[Finding]:
    """Refuse keys that belong to sliding windows, where a value means that they are off; a stride and an overlap have
    none, and are passed over."""
    for name, off in (("crop_ratio", None), ("offset_frames", 0)):
        if getattr(spec.data.window, name) != off:
            text = "is without effect with kind resize, whose windows are whole videos"
            # A fix must not lead into another error: sliding windows have a rule of their own for the stride.
            can_slide = spec.data.window.stride_frames % spec.data.window.frames_per_position == 0
            slide = ({"data__window__kind": "sliding"},) if can_slide else ()
            yield ("data", "window", name), fixed_by(text, {f"data__window__{name}": off}, *slide)


def _names(spec: Spec) -> Iterator[Problem]:
    for name in ("train_subset", "validation_subset"):
        if not getattr(spec.data, name):
            yield ("data", name), "is empty; expected the name of a subset of the annotation file, or a list of names"
    if problem := pattern_problem(spec.data.pattern):
        yield ("data", "pattern"), problem
    classes = spec.data.classes
    if isinstance(classes, tuple) and not classes:
        yield ("data", "classes"), "is empty; null takes all labels of the annotation file"
    if isinstance(classes, tuple) and len(set(classes)) < len(classes):
        twice = next(label for index, label in enumerate(classes) if label in classes[:index])
        yield ("data", "classes"), f"names a class twice, {cut(twice)!r}; keep one of the two"
    if isinstance(classes, tuple) and spec.data.class_count not in (None, len(classes)):
        text = f"expects {spec.data.class_count} classes, but data.classes lists {len(classes)}"
        fix = f"; {instead(data__class_count=len(classes))}" if classes else ""
        yield ("data", "class_count"), text + fix


def _features(spec: Spec) -> Iterator[Finding]:
    """Refuse features without the mode that takes them, the mode without features, and what only frames can have."""
    features, has_mode = spec.data.features, spec.model.backbone.mode == "features"
    if features is None and has_mode:
        text = "is missing: model.backbone.mode features reads a folder of adatad extract"
        yield ("data", "features"), f"{text}; give it, such as {instead(data__features='features')}"
    if features is not None and not has_mode:
        text = "is for model.backbone.mode features, which has no backbone"
        yield ("data", "features"), fixed_by(text, {"model__backbone__mode": "features"}, {"data__features": None})
    if not has_mode:
        return
    if spec.data.augment is not None:
        yield ("data", "augment"), fixed_by("changes frames, and features have none", {"data__augment": None})
    if spec.train.keep_batch_above is not None:
        text = "leaves the frames of a step, and features have none"
        yield ("train", "keep_batch_above"), fixed_by(text, {"train__keep_batch_above": None})
    if spec.data.stage_to is not None:
        yield ("data", "stage_to"), fixed_by("copies videos, which aren't read", {"data__stage_to": None})
    if spec.data.window.kind != "sliding":
        text = "resize takes whole videos as one window, which features don't; take"
        yield ("data", "window", "kind"), f"{text} {instead(data__window__kind='sliding')}"
    if spec.evaluate.stream:
        text = "runs a backbone over videos, and there is none"
        yield ("evaluate", "stream"), fixed_by(text, {"evaluate__stream": False})
    if spec.parallel.clip > 1:
        text = "shares a backbone's clips among ranks, and there is none"
        yield ("parallel", "clip"), fixed_by(text, {"parallel__clip": 1})
    if spec.memory.policy not in ("auto", "none"):
        text = f"{spec.memory.policy} is how a backbone is run, and there is none"
        yield ("memory", "policy"), fixed_by(text, {"memory__policy": "none"})


def _backbone(spec: Spec) -> Iterator[Problem]:
    backbone, key = spec.model.backbone, ("model", "backbone")
    # The section says nothing then but the width.
    if backbone.mode == "features":
        return
    sizes = resolve_backbone(backbone)
    if sizes.width % sizes.heads:
        fix = instead(model__backbone__heads=divisor(sizes.width, sizes.heads))
        yield (*key, "heads"), f"the width {sizes.width} can't be divided by {sizes.heads} heads; {fix}"
    elif PRESETS[backbone.preset].family in ("vjepa2", "vjepa2.1"):
        yield from _rotary(spec)
    if backbone.clip_frames % backbone.tubelet:
        text = f"{backbone.clip_frames} frames can't be divided into tubelets of {backbone.tubelet}"
        fix = instead(model__backbone__tubelet=divisor(backbone.clip_frames, backbone.tubelet))
        yield (*key, "clip_frames"), f"{text}; {fix}"
    if spec.data.size_pixels < sizes.patch:
        text = f"{spec.data.size_pixels} pixels are less than one patch of {sizes.patch}"
        yield ("data", "size_pixels"), f"{text}; {instead(data__size_pixels=sizes.patch)}"
    # About what is built, the fixed position table included: this is for slips such as a width of a million.
    positions = sizes.position_grid**2 * (backbone.clip_frames // backbone.tubelet + 1)
    parameters = sizes.width * (sizes.depth * (4 * sizes.width + 2 * sizes.mlp_width) + 3 * sizes.patch**2 + positions)
    if parameters > MAX_PARAMETERS:
        yield (*key, "width"), f"comes to {parameters:.2g} parameters; at most {MAX_PARAMETERS:.0e} can be built"
    # The other modes have no adapters, so what the section says doesn't matter.
    if backbone.mode in ("adapter", "plain", "side"):
        yield from _adapter(spec)


def _rotary(spec: Spec) -> Iterator[Problem]:
    """Check a backbone that knows places by rotating each head's channels, and has no table of positions."""
    backbone, key = spec.model.backbone, ("model", "backbone")
    sizes = resolve_backbone(backbone)
    width = sizes.width // sizes.heads
    if width < MIN_ROTARY_WIDTH or width % 2:
        fewer = (heads for heads in range(sizes.heads, 0, -1) if sizes.width % heads == 0)
        heads = next((n for n in fewer if sizes.width // n >= MIN_ROTARY_WIDTH and sizes.width // n % 2 == 0), None)
        fix = "take another width" if heads is None else instead(model__backbone__heads=heads)
        text = f"{sizes.heads} heads have {width} channels each: {backbone.preset} rotates pairs of them"
        yield (*key, "heads"), f"{text}, for time, row and column: an even number, {MIN_ROTARY_WIDTH} at least; {fix}"
    if backbone.position_grid is not None:
        text = f"{backbone.preset} has no table of positions: its attention counts rows and columns itself"
        yield (*key, "position_grid"), f"{text}; {instead(model__backbone__position_grid=None)}"


def _adapter(spec: Spec) -> Iterator[Problem]:
    key, mode, adapter = ("model", "backbone", "adapter"), spec.model.backbone.mode, spec.model.backbone.adapter
    sizes = resolve_backbone(spec.model.backbone)
    if adapter.blocks != "all":
        # The proposed list is what is left of the user's own.
        inside = sorted({block for block in adapter.blocks if block < sizes.depth})
        fix = instead(model__backbone__adapter__blocks=inside or "all").replace('"', "")
        outside = [block for block in adapter.blocks if block >= sizes.depth]
        if outside:
            text = f"block {outside[0]} is outside the backbone, whose {sizes.depth} blocks count from 0"
            yield (*key, "blocks"), f"{text}; {fix}"
        if not adapter.blocks or len(set(adapter.blocks)) < len(adapter.blocks):
            yield (*key, "blocks"), f"is empty or names a block twice, in mode {mode}; {fix}"
    # Only an odd kernel has as many tubelets to both sides, and keeps the length.
    if adapter.kernel % 2 == 0:
        fix = instead(model__backbone__adapter__kernel=adapter.kernel + 1)
        yield (*key, "kernel"), f"expected an odd number, got {adapter.kernel}; {fix}"
    if int(sizes.width * adapter.ratio) < 1:
        text = f"{adapter.ratio} of the width {sizes.width} is less than one channel"
        yield (*key, "ratio"), f"{text}; {instead(model__backbone__adapter__ratio=0.25 if sizes.width > 3 else 1)}"


def _detector(spec: Spec) -> Iterator[Finding]:
    detector, key = spec.model.detector, ("model", "detector")
    if detector.width % detector.heads:
        text = f"{detector.width} can't be divided by {detector.heads} heads"
        width = multiple(detector.width, detector.heads)
        # No wider than twice: for a number of heads without divisors a multiple could be absurd.
        wider = ({"model__detector__width": width},) if width < min(2 * detector.width, MAX_LENGTH) else ()
        yield (
            (*key, "width"),
            fixed_by(text, {"model__detector__heads": divisor(detector.width, detector.heads)}, *wider),
        )
    if detector.embed_kernel % 2 == 0:
        fix = instead(model__detector__embed_kernel=detector.embed_kernel + 1)
        yield (*key, "embed_kernel"), f"expected an odd number, got {detector.embed_kernel}; {fix}"
    # Roughly, in units of width^2: 4 for attention and 8 for the MLP of a block; 2 heads of 3-wide convolutions.
    layers = detector.embed_convs * detector.embed_kernel + 12 * (detector.stem_blocks + detector.branch_blocks)
    parameters = detector.width**2 * (layers + 6 * detector.head_convs)
    if parameters > MAX_PARAMETERS:
        yield (*key, "width"), f"comes to {parameters:.2g} parameters; at most {MAX_PARAMETERS:.0e} can be built"
    if detector.absolute_positions and spec.data.window.size_grid > detector.max_length:
        length = _length_that_suits(spec)
        text = f"{detector.max_length} positions are fewer than a window's {spec.data.window.size_grid}"
        yield (*key, "max_length"), f"{text}; {instead(model__detector__max_length=length)}"
    # The key is for features of several streams, which the reference's feature-based detectors have.
    if detector.split_width is not None:
        text = "needs an input of several streams; a backbone gives one"
        yield (*key, "split_width"), f"{text}; {instead(model__detector__split_width=None)}"
    if detector.regression_weight == 0 and spec.train.accumulation > 1:
        text = "0 follows the losses of a whole batch, which train.accumulation splits"
        default = DetectorSpec.model_fields["regression_weight"].default
        on = {"model__detector__regression_weight": default}
        yield (*key, "regression_weight"), fixed_by(text, {"train__accumulation": 1}, on)


def _levels(spec: Spec) -> Iterator[Problem]:
    detector, key = spec.model.detector, ("model", "detector")
    levels = detector.branch_blocks + 1
    if len(detector.regression_ranges) != levels:
        text = f"{len(detector.regression_ranges)} ranges for {levels} levels (1 + branch_blocks)"
        yield (*key, "regression_ranges"), f"{text}; give one [low, high] for each level, or change branch_blocks"
    for index, (low, high) in enumerate(detector.regression_ranges):
        if low > high:
            fix = f"--set model.detector.regression_ranges.{index}=[{high:g},{low:g}]"
            yield (*key, "regression_ranges", index), f"[{low:g}, {high:g}] isn't [low, high]; {fix}"
    windows = detector.attention_window
    if isinstance(windows, tuple) and len(windows) != levels:
        text = f"{len(windows)} windows for {levels} levels (1 + branch_blocks)"
        yield (*key, "attention_window"), f"{text}; give one for each level, or one number for all"
        return
    wrong = [window for window in _windows(detector) if window != -1 and window < 4]
    if wrong:
        text = f"expected -1 (global) or 4 and more, got {wrong[0]}"
        yield (*key, "attention_window"), f"{text}; such as {instead(model__detector__attention_window=-1)}"
        return
    yield from _max_length(spec)


def _windows(detector: DetectorSpec) -> tuple[int, ...]:
    """Return the attention window of each level."""
    windows = detector.attention_window
    return windows if isinstance(windows, tuple) else (windows,) * (detector.branch_blocks + 1)


def _level_steps(detector: DetectorSpec) -> list[int]:
    """Return what `max_length` must be a multiple of, for each level: as in ActionFormer, every level must divide into
    whole double half-windows."""
    return [2**level * (2 * (window // 2) if window > 1 else 1) for level, window in enumerate(_windows(detector))]


def _length_that_suits(spec: Spec) -> int:
    """Return the least `max_length`, no smaller than it is, that suits all levels, and the position table."""
    detector = spec.model.detector
    least = max(detector.max_length, spec.data.window.size_grid if detector.absolute_positions else 0)
    return multiple(least, math.lcm(*_level_steps(detector)))


def _max_length(spec: Spec) -> Iterator[Problem]:
    detector = spec.model.detector
    for level, step in enumerate(_level_steps(detector)):
        if detector.max_length % step:
            # One message for the first level that fails: the proposed length suits all of them.
            length = _length_that_suits(spec)
            text = f"level {level} (stride {2**level}, window {_windows(detector)[level]}) needs a multiple of {step}"
            fits = length <= MAX_LENGTH
            fix = instead(model__detector__max_length=length) if fits else "take fewer levels or smaller windows"
            yield ("model", "detector", "max_length"), f"{detector.max_length}: {text}; {fix}"
            return


def _optimizer(spec: Spec) -> Iterator[Finding]:
    optimizer, mode = spec.optimizer, spec.model.backbone.mode
    # Layer decay makes groups of its own, so what is said of backbone groups isn't looked at.
    if optimizer.layer_decay is not None:
        if mode != "full":
            text = f"is for model.backbone.mode full; the mode is {mode}"
            full = {"model__backbone__mode": "full"}
            yield ("optimizer", "layer_decay"), fixed_by(text, {"optimizer__layer_decay": None}, full)
        return
    backbone = optimizer.backbone
    if mode in ("frozen", "features"):
        if backbone is not None:
            text = f"is without effect: nothing in the backbone is trained in mode {mode}"
            adapters = {"model__backbone__mode": "adapter"}
            yield ("optimizer", "backbone"), fixed_by(text, {"optimizer__backbone": None}, adapters)
        return
    if backbone is None:
        text = f"is missing: mode {mode} trains parameters of the backbone"
        yield ("optimizer", "backbone"), f"{text}; give their rate, such as {instead(optimizer__backbone__lr=1e-4)}"
        return
    names = [group.name for group in backbone.custom]
    if len(set(names)) < len(names):
        yield ("optimizer", "backbone", "custom"), "names a group twice; keep one of the two"
    # An entry takes the parameters whose names contain its own; this one contains what every adapter's name does.
    if mode != "full" and backbone.lr == 0 and not any(name in "blocks.0.side_adapter.adapter" for name in names):
        text = "no group takes the adapters (name: adapter), and optimizer.backbone.lr is 0"
        fix = f"give their rate, such as {instead(optimizer__backbone__lr=1e-4)}"
        yield ("optimizer", "backbone", "custom"), f"{text}; {fix}"


def _start(spec: Spec) -> Iterator[Finding]:
    # A checkpoint holds what learns: what is frozen must come from the seed, or from the backbone's file.
    if spec.model.init_from is not None and spec.model.freeze:
        text = "keeps out of the checkpoints what model.init_from puts into the model; a rate of 0 keeps it as well"
        yield ("model", "freeze"), fixed_by(text, {"model__freeze": []}, {"model__init_from": None})


def _schedule(spec: Spec) -> Iterator[Finding]:
    schedule, train = spec.schedule, spec.train
    if schedule.end_epoch is not None and schedule.end_epoch > schedule.epochs:
        text = f"{schedule.end_epoch} is after the last of {schedule.epochs} epochs (schedule.epochs)"
        longer = {"schedule__epochs": schedule.end_epoch}
        yield ("schedule", "end_epoch"), fixed_by(text, {"schedule__end_epoch": None}, longer)
    if schedule.warmup_epochs > schedule.epochs:
        text = f"the warm-up ({schedule.warmup_epochs} epochs) is longer than the schedule ({schedule.epochs})"
        # A tenth of the schedule, as most recipes have; a schedule of one epoch has none.
        shorter = {"schedule__warmup_epochs": max(schedule.epochs // 10, min(1, schedule.epochs - 1))}
        longer = {"schedule__epochs": min(schedule.warmup_epochs + 1, MAX_COUNT)}
        yield ("schedule", "warmup_epochs"), fixed_by(text, shorter, longer)
    if train.class_balance != "none" and spec.model.detector.class_agnostic:
        text = "repeat is without effect on a detector that doesn't tell classes apart"
        yield ("train", "class_balance"), fixed_by(text, {"train__class_balance": "none"})
    if train.global_batch % train.accumulation:
        text = f"{train.global_batch} can't be divided by accumulation {train.accumulation}"
        fewer = {"train__accumulation": math.gcd(train.global_batch, train.accumulation)}
        larger = {"train__global_batch": min(multiple(train.global_batch, train.accumulation), MAX_COUNT)}
        yield ("train", "global_batch"), fixed_by(text, fewer, larger)


MODEL_CHECKS = (_window, _names, _features, _backbone, _detector, _levels, _optimizer, _start, _schedule)
