"""What ranks of the FSDP tests do beyond training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from steps import Outcome, Run, numpy_of, outcome_of

from adatad.data.dataset import SkippedVideos


@dataclass
class Gathers:
    """Bytes of frozen weights that lie whole on this rank, or in a buffer on their way, looked at after every gather.

    units: of each block; root: of the rest; most: blocks together, at any moment; left: after the last step.
    """

    units: list[int]
    root: int
    samples: list[int] = field(default_factory=list)
    left: int = 0

    @property
    def most(self) -> int:
        return max(self.samples)


def watch_gathers(model: torch.nn.Module) -> tuple[Gathers, Callable[[], int]]:
    """Return samples from now on, and a look at what is held at a moment, the root's share included."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    groups = [block._get_fsdp_state()._fsdp_param_group for block in model.backbone.blocks]
    root = model._get_fsdp_state()._fsdp_param_group
    gathers = Gathers([frozen_bytes(group) for group in groups], frozen_bytes(root))
    owners: dict[int, Any] = {}

    def after(name: str) -> None:
        run = getattr(FSDPParamGroup, name)

        def watched(group: Any, *arguments: Any, **keywords: Any) -> None:
            run(group, *arguments, **keywords)
            if group._all_gather_result is not None:
                owners[id(group._all_gather_result)] = group
            # In forward a buffer outlives its copy by one gather.
            kept = group.comm_ctx.all_gather_state
            late = 0 if kept is None else frozen_bytes(owners[id(kept.all_gather_result)])
            gathers.samples.append(sum(map(held_bytes, groups)) + late)

        setattr(FSDPParamGroup, name, watched)

    after("unshard")
    after("wait_for_unshard")
    return gathers, lambda: sum(map(held_bytes, (*groups, root)))


def held_bytes(group: Any) -> int:
    """Frozen weights of a unit that are whole, and those in a gather's buffer."""
    whole = [
        out.untyped_storage().size()
        for param in group.fsdp_params
        if not param.sharded_param.requires_grad
        for out in getattr(param, "all_gather_outputs", [])
    ]
    return sum(whole) + (frozen_bytes(group) if group._all_gather_result is not None else 0)


def frozen_bytes(group: Any) -> int:
    """Return the bytes of a whole unit, with the padding of its parts."""
    shards = [p.sharded_param for p in group.fsdp_params if not p.sharded_param.requires_grad]
    return sum(
        -(-shard.shape[0] // group.mesh_info.shard_mesh_size) * group.mesh_info.shard_mesh_size * shard[0].numel()
        * shard.element_size()
        for shard in shards
    )  # fmt: skip


def train_watched(spec_file: str, cases: dict[str, list[str]]) -> dict[str, Gathers]:
    """A step and an evaluation of each case, watched."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    from adatad.parallel.processes import start_processes

    original = FSDPParamGroup.unshard, FSDPParamGroup.wait_for_unshard
    results = {}
    with start_processes() as processes:
        for name, overrides in cases.items():
            run = Run(spec_file, overrides, processes)
            gathers, held_now = watch_gathers(run.parts.engine.model)
            run.train(1)
            gathers.left = held_now()
            detections_of(run)
            gathers.left += held_now()
            FSDPParamGroup.unshard, FSDPParamGroup.wait_for_unshard = original
            results[name] = gathers
    return results


def detections_of(run: Run) -> Any:
    from adatad.training.loaders import validation_loader
    from adatad.training.validation import detect

    parts = run.parts
    loader = validation_loader(parts.run)
    skipped = SkippedVideos(0, print)
    with parts.engine.swapped_parameters(parts.ema.averages):
        return detect(parts.engine.model, loader, parts.run, run.processes, skipped)


def evaluate_cases(spec_file: str, cases: dict[str, list[str]]) -> dict[str, Any]:
    """Number of this rank's batches, and detections, of a model whose parameters and averages are drawn."""
    from adatad.parallel.processes import start_processes
    from adatad.training.loaders import validation_loader

    results = {}
    with start_processes() as processes:
        for name, overrides in cases.items():
            run = Run(spec_file, overrides, processes)
            parts, draw = run.parts, torch.Generator().manual_seed(3)
            shapes = {n: p.shape for n, p in run.parts.model.named_parameters() if p.requires_grad}
            drawn = {n: 0.3 * torch.randn(shape, generator=draw) for n, shape in shapes.items()}
            parts.ema.load(parts.engine.shard(drawn))
            batches = len(validation_loader(parts.run))
            results[name] = batches, detections_of(run)
    return results


def train_with_evaluation_between(spec_file: str, overrides: list[str], steps: int) -> Outcome:
    """Train as `train_steps` does, with evaluations of other weights before the first step and in the middle."""
    from adatad.parallel.processes import start_processes

    with start_processes() as processes:
        run = Run(spec_file, overrides, processes)
        start, values = run.whole_parameters(), []
        for _ in range(2):
            detections_of(run)
            values += run.train(steps // 2)
        averages = numpy_of(run.parts.engine.gather_full(run.parts.ema.averages))
        return Outcome(values, start, run.whole_parameters(), averages)


def train_and_keep(spec_file: str, overrides: list[str], steps: int) -> Any:
    """Whole tensors after some steps, as a checkpoint has them."""
    from adatad.parallel.processes import start_processes
    from adatad.training.state_io import full_tensors

    with start_processes() as processes:
        run = Run(spec_file, overrides, processes)
        run.train(steps)
        normalizer = run.parts.normalizer.value
        parameters, averages, optimizer = full_tensors(run.parts)
        return normalizer, numpy_of(parameters), numpy_of(averages), {n: numpy_of(t) for n, t in optimizer.items()}


def go_on(spec_file: str, overrides: list[str], kept: Any, done: int, steps: int) -> Outcome:
    """The steps after those of `train_and_keep`, by fresh parts."""
    from adatad.parallel.processes import start_processes
    from adatad.training.state_io import load_full_tensors

    normalizer, *tensors = kept
    with start_processes() as processes:
        run = Run(spec_file, overrides, processes)
        load_full_tensors(run.parts, *map(tensors_of, tensors))
        run.parts.normalizer.value, run.done = normalizer, done
        return outcome_of(run, steps)


def tensors_of(arrays: dict[str, Any]) -> dict[str, Any]:
    return {n: tensors_of(a) if isinstance(a, dict) else torch.from_numpy(a) for n, a in arrays.items()}


def overflow_on_one_rank(spec_file: str, overrides: list[str]) -> dict[str, Any]:
    """A step whose gradients aren't finite on the last rank alone; then one as usual."""
    from adatad.parallel.processes import start_processes

    with start_processes() as processes:
        run = Run(spec_file, overrides, processes)
        engine = run.parts.engine
        backward = engine.backward
        before, scale = run.whole_parameters(), engine.scaler_state().get("scale")
        engine.backward = lambda loss: backward(loss * (float("inf") if processes.rank else 1.0))
        bad = run.train(1)[0]
        between, engine.backward = run.whole_parameters(), backward
        good = run.train(1)[0]
        return {
            "before": before, "between": between, "after": run.whole_parameters(), "bad": bad, "good": good,
            "scales": (scale, engine.scaler_state().get("scale")),
        }  # fmt: skip


def kept_of_64(spec_file: str, cpu_offload: str) -> tuple[int, int]:
    """Bytes of frozen weights that a rank of 64 keeps between steps, and those of the whole model; on a group of
    ranks that don't exist, with weights without values."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from adatad.memory.weights import local_of
    from adatad.models.detector import build_model
    from adatad.parallel.processes import Processes
    from adatad.spec import load
    from adatad.training.resolve import resolve_model
    from adatad.training.setup import build_train_state

    overrides = ["parallel.engine=fsdp", f"parallel.cpu_offload={cpu_offload}", "train.precision=bf16"]
    spec = load(spec_file, overrides, check_files=False)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    with torch.device("meta"):
        model = build_model(spec.model, 20)
    processes = Processes(0, 64, torch.device("cpu"))
    build_train_state(resolve_model(spec, processes, 20), processes, model)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    kept = [local_of(parameter) for parameter in frozen]
    dist.destroy_process_group()
    return tuple(sum(t.numel() * t.element_size() for t in tensors) for tensors in (kept, frozen))
