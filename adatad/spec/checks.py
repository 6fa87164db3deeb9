"""Checks of several keys together: settings that contradict one another, and files that aren't there.

Each check yields the key it is about and what is wrong; all are reported at once, before anything is built.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from adatad.spec.deepspeed_file import deepspeed_problems
from adatad.spec.document import Key
from adatad.spec.downloads import where_published
from adatad.spec.fixes import Fixable, fixed_by, instead
from adatad.spec.model_checks import MODEL_CHECKS, Finding, Problem
from adatad.spec.model_sections import RANDOM
from adatad.spec.partial import InvalidKeyReadError, ValidView
from adatad.spec.schema import PATHS, SHARDS_FROZEN_WEIGHTS, STAGE_TO, MemorySpec, Spec
from adatad.spec.sizes import adapter_reach, clips_of_window, resolve_backbone
from adatad.spec.text import cut, name_problem, path_problem, project_problem

Check = Callable[[Spec], Iterator[Finding]]


def cross_checks(spec: Spec, invalid: Iterable[Key] = (), given: Iterable[Key] = ()) -> list[Problem]:
    """Return the settings that contradict one another, each with its key; none that depends on an invalid key.

    given: keys that the user has set over the file, which a fix leaves alone if it can.
    """
    # In the order of the file, so that the list of problems reads as the spec does.
    checks = (
        _name,
        _wandb,
        *(partial(_path, key=key) for key in (*PATHS, STAGE_TO)),
        *MODEL_CHECKS,
        _memory,
        _parallel,
        _clip,
        _postprocess,
        _classifier,
    )
    return _problems(checks, spec, set(invalid), given)


def memory_checks(spec: Spec) -> list[Problem]:
    """Return the contradictions of the sections memory and parallel alone: what a planner varies."""
    # Nothing is invalid: the planner varies a spec that has been loaded.
    return _problems((_memory, _parallel), spec, set())


def file_checks(spec: Spec, invalid: Iterable[Key] = ()) -> list[Problem]:
    """Return the files and folders that a run reads and that aren't there, each with its key."""
    # A check ends where it reads an invalid value, so each file has one of its own.
    return _problems(
        (_annotations, _weights, _init_from, _deepspeed, _classes, _blocked_videos, _videos, _scoring_files),
        spec,
        set(invalid),
    )


def _problems(checks: Iterable[Check], spec: Spec, invalid: set[Key], given: Iterable[Key] = ()) -> list[Problem]:
    seen = ValidView(spec, invalid) if invalid else spec
    problems = []
    for check in checks:
        # A check ends where it reads what is invalid; what it found before stands.
        with contextlib.suppress(InvalidKeyReadError):
            for key, found in check(seen):
                problems.append((key, found.message(given) if isinstance(found, Fixable) else found))
    return problems


def _annotations(spec: Spec) -> Iterator[Problem]:
    yield from _no_file(("data", "annotations"), spec.data.annotations)


def _weights(spec: Spec) -> Iterator[Problem]:
    weights = spec.model.backbone.weights
    if weights != RANDOM and spec.model.backbone.mode != "features":
        for key, problem in _no_file(("model", "backbone", "weights"), weights):
            yield key, problem + where_published(weights)


def _init_from(spec: Spec) -> Iterator[Problem]:
    path = spec.model.init_from
    # A run and a checkpoint are folders.
    if path is not None and not os.path.isdir(path):
        for key, problem in _no_file(("model", "init_from"), path):
            yield key, problem.replace("there is no file", "there is no run, checkpoint or file of weights", 1)


def _deepspeed(spec: Spec) -> Iterator[Problem]:
    key, path = ("parallel", "deepspeed"), spec.parallel.deepspeed
    yield from _no_file(key, path)
    # A file that is missing has just been reported; one beside an engine that reads none, by `_parallel`.
    if path is not None and os.path.isfile(path) and spec.parallel.engine.startswith("zero"):
        yield from ((key, problem) for problem in deepspeed_problems(path, spec))


def _classes(spec: Spec) -> Iterator[Problem]:
    classes = spec.data.classes
    yield from _no_file(("data", "classes"), classes if isinstance(classes, str) else None)


def _blocked_videos(spec: Spec) -> Iterator[Problem]:
    blocked = spec.data.blocked_videos
    yield from _no_file(("data", "blocked_videos"), blocked if isinstance(blocked, str) else None)


def _videos(spec: Spec) -> Iterator[Problem]:
    # Features are read in place of videos, which needn't be there then.
    name = "videos" if spec.data.features is None else "features"
    key, path = ("data", name), getattr(spec.data, name)
    # A text that can't be a path is reported by `_path`; so in `_no_file`.
    if not os.path.isdir(path) and not path_problem(path):
        what = "is a file, not a folder:" if os.path.isfile(path) else "there is no folder"
        yield key, f"{what} {cut(path)}{_looked_in(path)}"


def _no_file(key: Key, path: str | None) -> Iterator[Problem]:
    if path is None or os.path.isfile(path) or path_problem(path):
        return
    if os.path.isdir(path):
        yield key, f"{cut(path)} is a folder; name the file in it"
    # A device, a pipe or a socket: reading one may never end.
    elif os.path.exists(path):
        yield key, f"{cut(path)} is no regular file; name one"
    else:
        yield key, f"there is no file {cut(path)}{_looked_in(path)}"


def _looked_in(path: str) -> str:
    return "" if os.path.isabs(path) else f" in {cut(os.getcwd())}"


def _name(spec: Spec) -> Iterator[Problem]:
    if problem := name_problem(spec.name):
        yield ("name",), problem


def _wandb(spec: Spec) -> Iterator[Problem]:
    project = spec.logging.wandb
    if project is not None and (problem := project_problem(project)):
        yield ("logging", "wandb"), problem


def _path(spec: Spec, key: Key) -> Iterator[Problem]:
    value: object = spec
    for part in key:
        # A section on the way may be null, as postprocess.classifier is by default.
        value = getattr(value, str(part)) if value is not None else None
    # An empty root is the folder that the command is started in.
    if isinstance(value, str) and (problem := path_problem(value)) and not (key == ("data", "root") and not value):
        yield key, problem


# Fixes that several checks propose.
# Keys have __ for a dot: they are keyword arguments of `instead`, which writes them as --set takes them.
TILE, DDP = {"memory__policy": "tile"}, {"parallel__engine": "ddp"}
TILE_ONLY = (
    "tile_clips", "segment_blocks", "recompute", "order", "residual_dtype", "saved_inputs", "halos", "frames",
    "frozen_weights", "host_limit_gib", "frozen_dtype", "saved_input_dtype", "compile",
)  # fmt: skip


def _memory(spec: Spec) -> Iterator[Finding]:
    memory, mode, key = spec.memory, spec.model.backbone.mode, ("memory",)
    if isinstance(memory.policy, tuple):
        # Ranges in order, without gaps: the planner and the executor read them as one partition of the blocks.
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
        yield from _frozen_dtype(spec)
        yield from _compile(spec)
        if _asks_for_tile(memory):
            yield from _reach(spec)
        return
    if "tile" not in policies:
        defaults = MemorySpec()
        for name in TILE_ONLY:
            if getattr(memory, name) != getattr(defaults, name):
                text = f"is without effect under policy {_policy_text(memory)}, it belongs to tile"
                off = {f"memory__{name}": getattr(defaults, name)}
                yield (*key, name), fixed_by(text, off, *([TILE] if _possible_under_tile(spec, name) else []))
        if memory.weight_dtype not in ("auto", "fp32"):
            text = f"{memory.weight_dtype} needs policy tile; here it can be auto or fp32"
            yield (*key, "weight_dtype"), fixed_by(text, {"memory__weight_dtype": "auto"}, TILE)
        return
    yield from _placement(spec, policies)
    yield from _frozen_dtype(spec)
    yield from _compile(spec)
    yield from _reach(spec)


def _possible_under_tile(spec: Spec, name: str) -> bool:
    """Return whether what is said of a key of policy tile stands there: not what mode, order or engine keep it from."""
    # These are the conditions of `_placement`, `_frozen_dtype`, `_compile` and `_parallel`, the other way round.
    mode, engine = spec.model.backbone.mode, spec.parallel.engine
    if name == "compile":
        return engine in ("auto", "ddp")
    if name in ("frozen_weights", "frozen_dtype"):
        return mode != "full" and engine in ("auto", "ddp") and spec.memory.order != "tiles"
    return not (name in ("saved_inputs", "halos", "saved_input_dtype") and mode == "side") and not (
        name == "order" and spec.memory.order == "tiles" and engine in SHARDS_FROZEN_WEIGHTS
    )


def _policy_text(memory: MemorySpec) -> str:
    return memory.policy if isinstance(memory.policy, str) else ", ".join(blocks.policy for blocks in memory.policy[:9])


def _asks_for_tile(memory: MemorySpec) -> bool:
    """Return whether policy auto can only become tile, by what is said beside it."""
    defaults = MemorySpec()
    said = any(getattr(memory, name) != getattr(defaults, name) for name in TILE_ONLY)
    return said or memory.weight_dtype not in ("auto", "fp32")


def _reach(spec: Spec) -> Iterator[Problem]:
    # A tile may be one clip, and its halo comes from the two tiles beside it alone.
    backbone = spec.model.backbone
    adapter, planes = backbone.adapter, backbone.clip_frames // backbone.tubelet
    reach = adapter_reach(adapter.kernel, adapter.dilation)
    if backbone.mode == "adapter" and reach > planes:
        text = f"the adapters reach {reach} tubelets to each side, further than one clip of {planes}"
        yield ("memory", "policy"), f"{text}: tile can't do that, block can"


def _placement(spec: Spec, policies: list[str]) -> Iterator[Finding]:
    """Yield what can't wait in host memory, under policy tile."""
    memory, mode, engine = spec.memory, spec.model.backbone.mode, spec.parallel.engine
    # Frames enter the first range: if that isn't a wave, it embeds all of them at once.
    if memory.frames == "host" and policies[0] != "tile":
        text = f"host needs policy tile in the first range, which is {policies[0]}"
        yield ("memory", "frames"), fixed_by(text, {"memory__frames": "device"}, TILE)
    # Streaming has the blocks that are worked on, and the next, on the device: all that asks for more contradicts it.
    if memory.frozen_weights == "stream":
        if mode == "full":
            yield (
                ("memory", "frozen_weights"),
                ("stream is without effect: mode full has no frozen weights; --set memory.frozen_weights=device"),
            )
        if set(policies) != {"tile"}:
            text = "stream needs policy tile for all blocks"
            yield ("memory", "frozen_weights"), fixed_by(text, TILE, {"memory__frozen_weights": "device"})
        if memory.order == "tiles":
            text = "tiles wants all weights at once, which frozen_weights stream doesn't have"
            yield ("memory", "order"), fixed_by(text, {"memory__order": "auto"}, {"memory__frozen_weights": "device"})
        if engine not in ("auto", "ddp"):
            text = f"stream works with engine ddp, not {engine}, which has ways of its own (docs/engines.md)"
            yield ("memory", "frozen_weights"), fixed_by(text, {"memory__frozen_weights": "device"}, DDP)
    if mode == "side":
        for name, usual in (("saved_inputs", "device"), ("halos", "device"), ("saved_input_dtype", "auto")):
            if (said := getattr(memory, name)) != usual:
                text = f"{said} is without effect: mode side keeps none"
                yield ("memory", name), fixed_by(text, {f"memory__{name}": usual})


def _compile(spec: Spec) -> Iterator[Finding]:
    """Yield where a tile's functions can't be compiled."""
    engine = spec.parallel.engine
    if spec.memory.compile and engine not in ("auto", "ddp"):
        text = f"true works with engine ddp, not {engine}"
        yield ("memory", "compile"), fixed_by(text, {"memory__compile": False}, DDP)


def _frozen_dtype(spec: Spec) -> Iterator[Finding]:
    """Yield where frozen weights can't wait in 8 bits, under policy tile."""
    said, engine, key = spec.memory.frozen_dtype, spec.parallel.engine, ("memory", "frozen_dtype")
    off = {"memory__frozen_dtype": "auto"}
    if said == "auto":
        return
    if spec.model.backbone.mode == "full":
        yield key, fixed_by(f"{said} is without effect: mode full has no frozen weights", off)
    if spec.memory.order == "tiles":
        text = f"tiles works on all blocks at once, and frozen_dtype {said} casts those that are worked on"
        yield ("memory", "order"), fixed_by(text, {"memory__order": "auto"}, off)
    if engine not in ("auto", "ddp"):
        yield key, fixed_by(f"{said} works with engine ddp, not {engine}", off, DDP)


def _parallel(spec: Spec) -> Iterator[Finding]:
    parallel, key = spec.parallel, ("parallel",)
    if parallel.deepspeed is not None and not parallel.engine.startswith("zero"):
        text = f"is without effect with engine {parallel.engine}, it belongs to zero1, zero2, zero3"
        yield (*key, "deepspeed"), fixed_by(text, {"parallel__deepspeed": None}, {"parallel__engine": "zero2"})
    if spec.train.recheck_every and parallel.engine.startswith("zero"):
        text = f"engine {parallel.engine} shows no gradients before its update, fsdp and ddp do"
        yield ("train", "recheck_every"), fixed_by(text, {"train__recheck_every": None}, {"parallel__engine": "fsdp"})
    if parallel.cpu_offload and parallel.engine != "fsdp":
        text = "DeepSpeed offloads by its own file" if parallel.engine.startswith("zero") else "it belongs to fsdp"
        text = f"is without effect with engine {parallel.engine}; {text}"
        yield (*key, "cpu_offload"), fixed_by(text, {"parallel__cpu_offload": False}, {"parallel__engine": "fsdp"})
    if parallel.checkpoint_offload and (parallel.engine != "fairscale" or spec.memory.policy != "block"):
        text = f"needs engine fairscale and memory.policy block, not {parallel.engine} and {_policy_text(spec.memory)}"
        on = {"parallel__engine": "fairscale", "memory__policy": "block"}
        yield (*key, "checkpoint_offload"), fixed_by(text, {"parallel__checkpoint_offload": False}, on)
    if spec.memory.optimizer_state == "host" and parallel.engine not in ("auto", "ddp"):
        text = f"host works with engine ddp, not {parallel.engine}, which has ways of its own (docs/engines.md)"
        yield ("memory", "optimizer_state"), fixed_by(text, {"memory__optimizer_state": "device"}, DDP)
    if spec.memory.moment_dtype == "bf16" and parallel.engine not in ("auto", "ddp"):
        text = f"bf16 works with engine ddp, not {parallel.engine}, which keeps AdamW's moments itself"
        yield ("memory", "moment_dtype"), fixed_by(text, {"memory__moment_dtype": "fp32"}, DDP)
    if spec.memory.order == "tiles" and parallel.engine in SHARDS_FROZEN_WEIGHTS:
        text = f"tiles wants all weights at once, which engine {parallel.engine} shards"
        yield ("memory", "order"), fixed_by(text, {"memory__order": "auto"}, DDP)


def _clip(spec: Spec) -> Iterator[Problem]:
    ranks, backbone, key = spec.parallel.clip, spec.model.backbone, ("parallel", "clip")
    if ranks == 1:
        return
    # Clips are never divided: attention stays inside of one, so a rank needs at least one whole clip.
    clips = clips_of_window(spec.data, backbone.clip_frames)
    if ranks > clips:
        yield (
            key,
            (
                f"{ranks} ranks can't share a window of {clips} clips of {backbone.clip_frames} frames; "
                f"{instead(parallel__clip=max(1, clips))}"
            ),
        )
        return
    reach = adapter_reach(backbone.adapter.kernel, backbone.adapter.dilation)
    # Shares differ by one clip at most; this is the smaller one.
    tubelets = clips // ranks * backbone.clip_frames // backbone.tubelet
    if backbone.mode in ("adapter", "side") and reach > tubelets:
        text = f"the adapters reach {reach} tubelets to each side, further than the {tubelets} that a rank may have"
        # Halos come from the next rank alone: the smallest share must be as long as the adapters reach.
        reached_clips = -(-reach * backbone.tubelet // backbone.clip_frames)
        most = max(1, clips // reached_clips)
        yield key, f"{text}; use at most {most}: {instead(parallel__clip=most)}"


def _postprocess(spec: Spec) -> Iterator[Finding]:
    nms = spec.postprocess.nms
    # The reference has such settings in published experiments, and doesn't vote.
    if nms and nms.multiclass and nms.voting_threshold is not None and spec.compat != "reference":
        text = "is without effect while multiclass is true (compat: reference allows and ignores it)"
        off = {"postprocess__nms__voting_threshold": None}
        yield ("postprocess", "nms", "voting_threshold"), fixed_by(text, off, {"postprocess__nms__multiclass": False})
    if nms and nms.max_segments == 0:
        yield (
            ("postprocess", "nms", "max_segments"),
            (f"is 0, which keeps no detection at all; {instead(postprocess__nms__max_segments=2000)}"),
        )
    if spec.evaluate.stream and spec.data.window.kind == "resize":
        text = "is without effect where a window is a whole video (data.window.kind resize)"
        yield ("evaluate", "stream"), f"{text}; {instead(evaluate__stream=False)}"
    # Here and not in the schema, which couldn't propose a value.
    if not spec.evaluate.tious:
        yield ("evaluate", "tious"), f"is empty; {instead(evaluate__tious=[0.3, 0.5, 0.7])}"


def _classifier(spec: Spec) -> Iterator[Finding]:
    key, classifier = ("postprocess", "classifier"), spec.postprocess.classifier
    if classifier is None:
        return
    if not spec.model.detector.class_agnostic:
        text = "gives labels to a detector without classes of its own"
        yield key, fixed_by(text, {"model__detector__class_agnostic": True}, {"postprocess__classifier": None})
    off = f"is without effect with kind {classifier.kind}"
    # Each kind has either a file or a fixed label, never both.
    pseudo = classifier.kind == "pseudo"
    if pseudo and classifier.file is not None:
        yield (*key, "file"), f"{off}; {instead(postprocess__classifier__file=None)}"
    if not pseudo and classifier.file is None:
        yield (*key, "file"), f"kind {classifier.kind} needs one"
    if pseudo and classifier.pseudo_label is None:
        yield (*key, "pseudo_label"), "kind pseudo needs one"
    if not pseudo and classifier.pseudo_label is not None:
        yield (*key, "pseudo_label"), f"{off}; {instead(postprocess__classifier__pseudo_label=None)}"
    if classifier.apply_softmax and classifier.kind != "standard":
        text = f"{off}, it belongs to standard"
        off = {"postprocess__classifier__apply_softmax": False}
        on = () if pseudo else ({"postprocess__classifier__kind": "standard"},)
        yield (*key, "apply_softmax"), fixed_by(text, off, *on)


def _scoring_files(spec: Spec) -> Iterator[Problem]:
    yield from _no_file(("evaluate", "blocked_videos"), spec.evaluate.blocked_videos)
    if spec.postprocess.classifier is not None:
        yield from _no_file(("postprocess", "classifier", "file"), spec.postprocess.classifier.file)
