"""Clip parallelism in numbers: communicated bytes, memory of a rank, idle time, and simulated scaling.

VideoMAEv2-g, 1,536 frames of 224 pixels, under the wave. Bytes are counted on the meta device. Times are simulated from
the speeds below, the order in which a miniature of g computes and communicates, and g's floating-point operations.
"""

from __future__ import annotations

import os
import socket
import time
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adatad.data.dataset import Batch
from adatad.dev.benchmarks.tables import Result, Sheet, show_sheet
from adatad.dev.clip_trace import Event, ReplayMachine, TracedGroup, replay
from adatad.dev.comm_counter import CommCounter
from adatad.memory.flops import FlopCount
from adatad.memory.meta import gpu_like_meta
from adatad.memory.planner import Machine as Device
from adatad.memory.planner import Planner
from adatad.memory.tiles import PendingPlanes
from adatad.models.detector import build_model
from adatad.parallel.clip import ClipGroup, FakeClipGroup, clip_group, share_clips
from adatad.parallel.layout import Mesh, mesh_of
from adatad.parallel.processes import Processes, start_processes
from adatad.spec import Spec, load
from adatad.spec.sizes import clip_share, clips_of_window, resolve_backbone
from adatad.training.loaders import frames_here
from adatad.training.metered import META, make_optimizer_state, meta_parts, random_batch, step_memory
from adatad.training.resolve import resolve_model
from adatad.training.setup import TrainState, build_train_state
from adatad.training.step import train_step

SPEC = "configs/thumos/g_1536x224_adapter.yaml"
TILE = ["memory.policy=tile", "memory.tile_clips=1"]
GIB, GB = 2**30, 1e9

WORK = 300e12
"""Floating-point operations per second that a GPU reaches in 16-bit blocks."""
LATENCY_SECONDS = 20e-6
"""Latency of one exchange of planes."""
INSIDE, PCIE, BETWEEN = 900 * GB / 2, 64 * GB / 2, 200e9 / 8
"""Bytes per second, each way: NVLink of 900 GB/s, PCIe of 64 GB/s, a network of 200 Gb/s."""
NODE = 8
"""GPUs of a node."""
SLOW = 1.1


def run() -> list[Result]:
    """Print the tables of docs/clip-parallel.md; return the results that have a bar."""
    return [*wire(), *memory(), *idle(), *real(), *scaling()]


def spec_of(clip: int, *overrides: str) -> Spec:
    """Return g's spec with one window a step, shared by `clip` ranks."""
    return load(SPEC, [*TILE, f"parallel.clip={clip}", "train.global_batch=1", *overrides], check_files=False)


# Communicated bytes, counted


def wire() -> list[Result]:
    """Count the bytes that an inner rank of four sends in a step, through torch's fake process group."""
    # Without stochastic depth, which would leave out branches and their halos by chance.
    spec = spec_of(4, NOTHING_DROPPED)
    dist.init_process_group("fake", rank=1, world_size=4, store=dist.HashStore())
    try:
        mesh = Mesh(data=1, clip=4, data_rank=0, clip_rank=1)
        group = GroupInHostMemory(mesh, clips_of_window(spec.data, spec.model.backbone.clip_frames), dist.group.WORLD)
        with gpu_like_meta():
            parts = meta_parts(spec, group=group)
            make_optimizer_state(parts)  # before counting: the first step would make it
            with CommCounter() as counter:
                train_step(parts, [random_batch(spec, 1, 20, META)], step=1)
    finally:
        dist.destroy_process_group()
    trained = sum(p.numel() * p.element_size() for p in parts.model.parameters() if p.requires_grad)
    # An inner rank sends to two neighbours.
    halos, features = counter.bytes_of["send"] / 2, counter.bytes_of["all_gather"]
    # Of what is gathered, a quarter was the rank's own.
    moved = 2 * halos + features * 3 / 4
    all_to_all = all_to_all_bytes(spec, ranks=4)
    rows = [
        ("halos, to each neighbour", halos), ("features, gathered", features), ("trained gradients, summed", trained),
        ("all-to-all context parallelism, sent by a rank", all_to_all),
    ]  # fmt: skip
    cells = [(name, f"{number / 1e6:,.2f}") for name, number in rows]
    show_sheet(Sheet("bytes of a step of g at 1,536 x 224 on 4 ranks", ("", "MB"), cells))
    return [
        Result("halos to each neighbour, MB", halos / 1e6, 16.0),
        Result("halos and features against all-to-all, %", 100 * moved / all_to_all, 0.1),
    ]


class GroupInHostMemory(ClipGroup):
    """A clip group that exchanges host memory of a meta tensor's size: torch can't communicate meta tensors."""

    def exchange_sides(self, planes: dict[int, Tensor]) -> dict[int, PendingPlanes]:
        """Exchange host memory of the planes' sizes; what arrives is on meta."""
        arrivals = super().exchange_sides({side: torch.empty_like(own, device="cpu") for side, own in planes.items()})
        return {side: partial(_to_meta, arrival) for side, arrival in arrivals.items()}

    def gather(self, own: Tensor) -> Tensor:
        """Gather host memory of a tensor's size; the result is on meta."""
        return super().gather(torch.empty_like(own, device="cpu")).to(META)


def _to_meta(arrival: PendingPlanes) -> Tensor:
    return arrival().to(META)


def all_to_all_bytes(spec: Spec, ranks: int) -> float:
    """Return the bytes that a rank sends under all-to-all context parallelism (Ulysses): its share of q, k, v and the
    output of every block in 16 bits, less what stays; in forward, and as gradients in backward."""
    backbone, data = resolve_backbone(spec.model.backbone), spec.data
    positions = (data.size_pixels // backbone.patch) ** 2
    frames = data.window.size_grid * data.window.frames_per_position
    tokens = frames // spec.model.backbone.tubelet * positions
    # Forward and backward; four tensors; two bytes a number.
    return 2 * 4 * backbone.depth * (tokens / ranks) * backbone.width * 2 * (ranks - 1) / ranks


# Memory


def memory() -> list[Result]:
    """Count the memory of a rank; print the largest window by the planner."""
    rows = []
    for clip in (1, 2, 4, 8):
        peak = step_memory(spec_of(clip, NOTHING_DROPPED), windows=1)
        rows.append((str(clip), f"{peak.bytes / GIB:.2f}"))
    show_sheet(Sheet("memory of a rank, GiB, 1,536 frames, by count", ("clip", "GiB"), rows))
    for clip in (1, 8):
        print(f"the largest window at clip {clip} on 24 GB: {largest_window(clip, 24e9):,} frames")
    return []


def largest_window(clip: int, device_bytes: float) -> int:
    """Return the frames, in steps of 1,536, for which a rank takes at most nine tenths of the device: the rest is for
    the allocator and the context."""

    def fits(times: int) -> bool:
        """Return whether a window of so many times 768 positions fits."""
        sizes = [f"data.window.size_grid={768 * times}", f"model.detector.max_length={768 * times}"]
        return planner(spec_of(clip, *sizes)).own().bytes < 0.9 * device_bytes

    # Doubled while it fits, then refined by halves: each answer costs a plan.
    most = 1
    while fits(2 * most):
        most *= 2
    step = most // 2
    while step:
        most += step if fits(most + step) else 0
        step //= 2
    return 1536 * most


def planner(spec: Spec) -> Planner:
    """Return a planner for a card of 24 GB."""
    return Planner(spec, Device(24e9), torch.bfloat16)


# Time

MINIATURE = [
    "model.backbone.width=48", "model.backbone.heads=2", "model.backbone.patch=16", "data.size_pixels=48",
    "model.backbone.position_grid=3", "model.detector.width=16", "model.detector.heads=2", "train.precision=fp32",
    "data.augment=null", "model.backbone.weights=random",
]  # fmt: skip
"""Overrides that shrink g's blocks in proportion: 1.5 tokens of a clip for each channel."""
NOTHING_DROPPED = "model.backbone.drop_path=0.0"


@cache
def traces_of(clip: int, one_way: bool = False) -> tuple[tuple[Event, ...], ...]:
    """Return the traces of all ranks of a group in a step of g: the order from a miniature, work and bytes from g.
    Equal ranks are traced once."""
    spec = spec_of(clip, *MINIATURE, NOTHING_DROPPED)
    clips = clips_of_window(spec.data, spec.model.backbone.clip_frames)
    known: dict[tuple, tuple[Event, ...]] = {}
    traces = []
    for rank in range(clip):
        # What a rank does depends on its number of clips, on its direction, and on being at an end.
        kind = len(clip_share(clips, clip, rank)), rank % 2, rank == 0, rank == clip - 1
        if kind not in known:
            group = (OneWay if one_way else FakeClipGroup)(Mesh(1, clip, 0, rank), clips)
            known[kind] = enlarged(trace(spec, group, torch.device("cpu")), len(group.own) / clips)
        traces.append(known[kind])
    return tuple(traces)


class OneWay(FakeClipGroup):
    """A clip group whose ranks all begin with their first clips, instead of neighbours from opposite ends."""

    backwards = False


def trace(spec: Spec, group: FakeClipGroup, device: torch.device, windows: int = 1) -> tuple[Event, ...]:
    """Trace a step of one rank, by floating-point operations. windows: of the micro-batch."""
    # One process: the group stands for the other ranks.
    model = build_model(spec.model, num_classes=20)
    processes = Processes(0, 1, device)
    parts = build_train_state(resolve_model(spec, processes, 20), processes, model)
    batch = random_batch(spec, windows, 20, device, frames_here(spec, group.mesh))

    def separate_detector(module: nn.Module, inputs: tuple, features: Tensor) -> None:
        """Count the work so far apart from the detector's; a forward hook of the backbone."""
        # All work between the features and their gradient is the detector's.
        traced.work_done()
        features.register_hook(lambda gradient: traced.work_done("detector"))

    with FlopCount() as flops:
        traced = TracedGroup(group, lambda: flops.total)
        share_clips(model.backbone, traced)
        model.backbone.register_forward_hook(separate_detector)
        train_step(parts, [batch], step=1)
        traced.work_done()
    return tuple(traced.events)


def enlarged(events: tuple[Event, ...], share: float) -> tuple[Event, ...]:
    """Return a miniature's trace with g's work (a share of the backbone's, all of the detector's) and g's bytes."""
    large = sizes_of(spec_of(1))
    # All backbone events of a miniature scale alike, since all its lengths are small in proportion.
    scale = large.backbone * share / sum(event.amount for event in events if event.kind == "work")
    amounts = {"send": large.plane, "receive": 0.0, "gather": large.features * share, "detector": large.detector}
    return tuple(e._replace(amount=amounts.get(e.kind, e.amount * scale)) for e in events)


class StepSizes(NamedTuple):
    """Floating-point operations of a step, backbone and detector; bytes of a plane and of the features."""

    backbone: float
    detector: float
    plane: float
    features: float


def sizes_of(spec: Spec) -> StepSizes:
    """Return the work and bytes of a step, by the planner."""
    planned, backbone = planner(spec), spec.model.backbone
    # What is outside of the backbone, forward and backward.
    detector = planned.costs.outer.run.flops
    sizes = resolve_backbone(backbone)
    plane = (spec.data.size_pixels // sizes.patch) ** 2 * int(sizes.width * backbone.adapter.ratio) * 2
    tubelets = clips_of_window(spec.data, backbone.clip_frames) * backbone.clip_frames // backbone.tubelet
    # Planes are 16-bit, features fp32.
    return StepSizes(planned.own().flops - detector, detector, plane, 4 * tubelets * sizes.width)


def idle() -> list[Result]:
    """Print the simulated share of time in which ranks wait."""
    machine, rows, shares = ReplayMachine(WORK, INSIDE, LATENCY_SECONDS), [], {}
    for clip, one_way in ((2, False), (4, False), (8, False), (4, True)):
        done = replay(traces_of(clip, one_way), machine)
        shares[clip, one_way] = 100 * done.idle_share
        name = "all in one direction" if one_way else "neighbours in opposite directions"
        rows.append((name, str(clip), f"{done.seconds:.2f}", f"{100 * done.idle_share:.1f}"))
    show_sheet(Sheet("idle share of ranks, simulated", ("", "clip", "step, s", "idle, %"), rows))
    return [Result("idle share at 4 ranks, %", shares[4, False], 10.0)]


# Real ranks

SMALL = "configs/thumos/s_768x160_adapter.yaml"
SMALLER = ["data.size_pixels=64", "data.window.size_grid=384", "model.detector.max_length=384", "train.precision=fp32",
           "data.augment=null", "model.backbone.weights=random"]  # fmt: skip
"""VideoMAE-S on 24 clips of 64 pixels: some seconds of CPU time."""
LOOPBACK = ReplayMachine(work=1.0, link=1 * GB, latency_seconds=100e-6)
"""Machine for traces in CPU seconds."""
STEPS = 3


def real() -> list[Result]:
    """Trace steps of processes on this machine, one thread each, by the CPU time of every piece of work; print their
    replay, as if each had a core of its own, beside the time that they took."""
    rows, idle_shares = [], []
    for clip in (1, 2, 4):
        ranks = in_processes(clip)
        # By the slowest rank of each step; the first step warms up.
        fastest = min(range(1, STEPS), key=lambda step: max(rank[step][1] for rank in ranks))
        traces = [rank[fastest][0] for rank in ranks]
        done, took = replay(traces, LOOPBACK), max(rank[fastest][1] for rank in ranks)
        idle_shares.append(100 * done.idle_share)
        rows.append((str(clip), f"{done.seconds:.2f}", f"{idle_shares[-1]:.1f}", f"{took:.2f}"))
    columns = "clip", "replayed step, s", "idle, %", f"step on {os.cpu_count()} cores, s"
    show_sheet(Sheet("real ranks, VideoMAE-S on 24 clips of 64 pixels", columns, rows))
    return [Result("idle share of 4 real ranks, %", idle_shares[-1], 10.0)]


def in_processes(clip: int) -> list[list[tuple[list[Event], float]]]:
    """Return for every rank, by step, its trace and the seconds that it took."""
    # The system chooses a free port.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not fork: torch's threads don't survive it.
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(clip) as pool:
        # One rank a process: with chunks, one could get two and wait for itself.
        return pool.starmap(real_rank, [(rank, clip, port) for rank in range(clip)], chunksize=1)


def real_rank(rank: int, clip: int, port: int) -> list[tuple[list[Event], float]]:
    """Run traced steps as one rank of a group of processes."""
    where = {"RANK": rank, "WORLD_SIZE": clip, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})
    torch.set_num_threads(1)
    spec = load(SMALL, [*TILE, *SMALLER, f"parallel.clip={clip}", f"train.global_batch={clip}"], check_files=False)
    with start_processes() as processes:
        model = build_model(spec.model, num_classes=20)
        parts = build_train_state(resolve_model(spec, processes, 20), processes, model)
        clips = clips_of_window(spec.data, spec.model.backbone.clip_frames)
        mesh = mesh_of(rank, clip, clip)
        group = clip_group(processes, mesh, clips, 600) if clip > 1 else FakeClipGroup(mesh, clips)
        traced = TracedGroup(group, time.thread_time)
        if clip > 1:
            share_clips(model.backbone, traced)
        batch = random_batch(spec, 1, 20, torch.device("cpu"), frames_here(spec, mesh))
        return [traced_step(parts, batch, traced, step) for step in range(STEPS)]


def traced_step(parts: TrainState, batch: Batch, traced: TracedGroup, step: int) -> tuple[list[Event], float]:
    """Run a step; return its trace and its seconds."""
    # Ranks start together, so that waits are those of the step.
    parts.processes.barrier()
    traced.work_done()
    traced.events.clear()
    start = time.perf_counter()
    train_step(parts, [batch], step)
    traced.work_done()
    return list(traced.events), time.perf_counter() - start


# Scaling, simulated

MESHES = [(2, 1), (1, 2), (8, 1), (1, 8), (2, 4), (16, 1), (2, 8), (1, 16), (64, 1), (8, 8), (2, 32), (1, 64), (256, 1),
          (32, 8), (4, 64)]  # fmt: skip
"""Meshes, as data x clip."""


def scaling() -> list[Result]:
    """Print the windows a second of n GPUs against n times those of one."""
    # One window a group and step: data parallelism multiplies windows, clip parallelism divides the time of one.
    alone, rows = step_seconds(1, 1), []
    for data, clip in MESHES:
        even, uneven = step_seconds(data, clip), step_seconds(data, clip, SLOW)
        shares = [f"{100 * alone / (clip * seconds):.0f}" for seconds in (even, uneven)]
        rows.append((str(data * clip), f"{data} x {clip}", f"{even:.3f}", f"{uneven:.3f}", *shares))
    for name, link in (("NVLink", INSIDE), ("PCIe", PCIE), ("the network", BETWEEN)):
        seconds = replay(traces_of(NODE), ReplayMachine(WORK, link, LATENCY_SECONDS)).seconds
        print(f"a window over {NODE} GPUs connected by {name}: {seconds:.3f} s, without the sum of gradients")
    columns = "GPUs", "data x clip", "step, s", "one slow, s", "efficiency, %", "one slow, %"
    show_sheet(Sheet(f"scaling on paper; one GPU alone: {alone:.2f} s a window", columns, rows))
    return []


def step_seconds(data: int, clip: int, slow: float = 1.0) -> float:
    """Return the simulated seconds of a step of `data` groups of `clip` GPUs, on nodes of NODE GPUs.

    slow: factor for one GPU, which has as many clips as any other.
    """
    # Within a node groups communicate by NVLink, beyond it by the network.
    link = INSIDE if clip <= NODE else BETWEEN
    done = replay(traces_of(clip), ReplayMachine(WORK, link, LATENCY_SECONDS, {(clip - 1) // 2: slow}))
    ranks = data * clip
    between = INSIDE if ranks <= NODE else BETWEEN
    # A ring all-reduce sends the gradients twice, less the rank's own share.
    return done.seconds + 2 * trained_bytes() * (ranks - 1) / ranks / between


@cache
def trained_bytes() -> int:
    """Return the bytes of g's trained parameters."""
    with gpu_like_meta():
        return sum(p.numel() * p.element_size() for p in meta_parts(spec_of(1)).model.parameters() if p.requires_grad)
