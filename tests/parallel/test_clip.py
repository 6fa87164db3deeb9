"""One window over several ranks, each with some of its clips: the same training as on one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from faulty import NO_FAULT, run_all
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from steps import POLICIES, Outcome, Run, difference, train_cases, train_steps, worst, zero3_settings

from adatad.dev.benchmarks.clip_suite import trace
from adatad.dev.clip_trace import Event, ReplayMachine, TracedGroup, replay
from adatad.memory.tiles import cut_evenly
from adatad.parallel.clip import FakeClipGroup
from adatad.parallel.layout import Mesh
from adatad.spec import SpecError, load
from adatad.spec.sizes import clip_share

WINDOW = ["data.window.size_grid=80", "model.detector.max_length=80"]
"""Five clips of sixteen frames: uneven over two ranks and over four."""
COMMON = [
    *WINDOW, "train.global_batch=4", "schedule.epochs=8", "data.window.crop_ratio=[0.9,1.0]",
    "data.augment={crop_short_side_pixels: 40, flip: 0.5, rand_augment: true, color_jitter: {}}",
]  # fmt: skip
STEPS = 4
"""The fewest that meet everything: AdamW's moments, DDP's second deal of buckets, what ZeRO fetches ahead by the order
that it noted before."""


@pytest.fixture(scope="session")
def truth(shared_spec) -> Outcome:
    return run_ranks(1, train_steps, shared_spec, COMMON, STEPS)[0]


def settings_of(engine: str, folder: Path) -> list[str]:
    return zero3_settings(folder) if engine == "zero3" else [f"parallel.engine={engine}"]


# An engine knows nothing of clips, and shares nothing of windows: each is tried with one number of ranks, and each
# number of ranks with engines that shard and with one that doesn't (ddp on four in the test of groups below).
ENGINES = [
    ("ddp", 2, 2), ("fsdp", 4, 4), ("zero3", 2, 2),
    *(pytest.param(*case, marks=pytest.mark.full) for case in (("ddp", 4, 4), ("fsdp", 2, 2), ("zero3", 4, 4))),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "world", "clip"), ENGINES)
def test_ranks_that_share_windows_train_as_one(engine, world, clip, shared_spec, truth, tmp_path):
    common = [*COMMON, *settings_of(engine, tmp_path), f"parallel.clip={clip}"]
    policies = POLICIES if world == 2 else ("block", "tile")
    cases = {policy: [*common, *POLICIES[policy]] for policy in policies}
    ranks = run_ranks(world, train_cases, shared_spec, cases, STEPS)
    for policy in policies:
        ours = ranks[0][policy]
        assert difference(ours, truth) < 1e-5, (policy, worst(ours, truth))
        assert all(values == ours.values for values in [rank[policy].values for rank in ranks])


@pytest.mark.slow
def test_groups_beside_each_other(shared_spec, truth, tmp_path):
    """Two windows at a time, each over two ranks; other engines and placements, and micro-batches."""
    common = [*COMMON, "parallel.clip=2", *POLICIES["tile"]]
    cases = {engine: [*common, f"parallel.engine={engine}"] for engine in ("zero1", "fairscale")}
    cases["zero2, micro-batches"] = [*common, "parallel.engine=zero2", "train.accumulation=2"]
    # Of three clips and two in tiles of one, a rank has a tile of two.
    on_host = [f"memory.{name}=host" for name in ("saved_inputs", "halos", "frames")]
    cases["ddp, micro-batches, on the host"] = [*common, "train.accumulation=2", *on_host]
    cases["selective"] = [*COMMON, "parallel.clip=2", "memory.policy=selective"]
    for name, ours in run_ranks(4, train_cases, shared_spec, cases, STEPS)[0].items():
        assert difference(ours, truth) < 1e-5, (name, worst(ours, truth))


MODES = {
    "side": ["model.backbone.mode=side"],
    "full": ["model.backbone.mode=full", "optimizer.backbone={lr: 1e-4}"],
    # Class tokens, which no rank asks another for.
    "internvideo2": ["model.backbone.preset=internvideo2-1b"],
    "wide kernel": ["model.backbone.adapter.kernel=5", "model.backbone.adapter.dilation=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_other_backbones(mode, shared_spec):
    common = [*COMMON, *MODES[mode]]
    truth = run_ranks(1, train_steps, shared_spec, common, STEPS)[0]
    cases = {policy: [*common, *POLICIES[policy], "parallel.clip=3"] for policy in ("block", "tile")}
    for policy, ours in run_ranks(3, train_cases, shared_spec, cases, STEPS)[0].items():
        assert difference(ours, truth) < 1e-5, (policy, worst(ours, truth))


def detections_of(spec_file: str, overrides: list[str]) -> dict:
    from adatad.data.dataset import SkippedVideos
    from adatad.parallel.processes import start_processes
    from adatad.training.loaders import validation_loader
    from adatad.training.validation import detect

    with start_processes() as processes:
        run = Run(spec_file, overrides, processes)
        loader = validation_loader(run.parts.run, shuffle_clips=True)
        return detect(run.parts.engine.model, loader, run.parts.run, processes, SkippedVideos(0, print))


@pytest.mark.slow
def test_every_detection_is_found_once_by_shared_windows(shared_spec):
    settings = [*WINDOW, "postprocess.nms=null"]
    one = run_ranks(1, detections_of, shared_spec, settings)[0]
    both = run_ranks(4, detections_of, shared_spec, [*settings, "parallel.clip=2"])
    assert all(found == both[0] for found in both)
    assert one.keys() == both[0].keys()
    for video, found in one.items():
        assert len(found) == len(both[0][video]) > 0
        scores = [[round(item["score"], 4) for item in items] for items in (found, both[0][video])]
        assert sorted(scores[0]) == pytest.approx(sorted(scores[1]), abs=2e-4)


# What can go wrong


# Ranks that wait for one that hangs: test_failures.py, in another exchange.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", pytest.param("hang", marks=pytest.mark.full)])
def test_a_group_ends_with_its_rank_and_says_which_it_was(kind, tiny_spec):
    settings = ["--set", *WINDOW, "parallel.clip=2", "train.hang_seconds=8"]
    left = run_all(tiny_spec, (kind, 1, 3), *settings)
    assert left.codes[0] != 0
    assert left.codes[1] != 0
    assert left.lines()[0].startswith("rank 1 on ")
    if kind == "kill":
        # A window for each rank from here on.
        resumed = run_all(tiny_spec, NO_FAULT, "--set", *WINDOW, "--resume", "auto")
        assert resumed.codes == [0, 0], resumed.log


def videos_with_a_broken_one(spec_file: str, overrides: list[str]) -> list[tuple[list[str], tuple]]:
    """Videos of every batch of two epochs, and what was left out, where rank 1 can't read its part of demo video 2."""
    import adatad.data.dataset as dataset
    from adatad.data.decode import VideoError
    from adatad.parallel.processes import start_processes
    from adatad.training.loaders import sync_skipped_videos, training_loader

    real = dataset.read_frames

    def read_frames(reader, indices, transform):
        if reader.path.stem == broken:
            raise VideoError(f"{reader.path}: planted")
        return real(reader, indices, transform)

    with start_processes() as processes:
        run = Run(spec_file, overrides, processes)
        broken = run.annotations.train[2].name
        if processes.rank == 1:
            dataset.read_frames = read_frames
        loader = training_loader(run.parts.run, (0, 0))
        batches = sync_skipped_videos(loader, run.parts.clip_group)
        return [([window.video.name for window in batch.windows], batch.skipped) for batch in batches]


@pytest.mark.slow
def test_a_video_that_one_rank_cannot_read_is_left_out_by_its_group(shared_spec):
    settings = [*WINDOW, "parallel.clip=2", "data.on_error=skip", "data.skip_limit=1", "schedule.epochs=2"]
    ranks = run_ranks(2, videos_with_a_broken_one, shared_spec, settings)
    assert [names for names, _ in ranks[0]] == [names for names, _ in ranks[1]]
    left_out = {item for rank in ranks for _, skipped in rank for item in skipped}
    (name,) = {item.video for item in left_out}
    assert all(name not in names for names, _ in ranks[0])
    assert any(item.reason.endswith("planted (rank 1)") for item in left_out)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["parallel.clip=6"], "6 ranks can't share a window of 5 clips"),
        (
            ["parallel.clip=5", "model.backbone.adapter.dilation=9"],
            "further than the 8 that a rank may have; use at most 2",
        ),
    ],
)
def test_more_ranks_than_a_window_has_room_for_are_refused(overrides, problem, shared_spec):
    with pytest.raises(SpecError, match=problem):
        load(shared_spec, [*WINDOW, *overrides])


def test_ranks_that_groups_do_not_divide_are_refused():
    from adatad.spec.schema import ParallelSpec, Spec
    from adatad.training.resolve import SetupError, check_mesh

    spec = Spec.model_construct(parallel=ParallelSpec(clip=2))
    with pytest.raises(SetupError, match=r"parallel\.clip 2.* doesn't divide the 3 ranks"):
        check_mesh(spec, ranks=3)


# Shares, and waiting


def exchanges_of(spec_file: str, overrides: list[str]) -> list[Event]:
    """All that a real rank exchanges in a step, in order."""
    import torch

    from adatad.models.detector import build_model
    from adatad.parallel.clip import clip_group
    from adatad.parallel.processes import start_processes
    from adatad.training.loaders import frames_here
    from adatad.training.metered import random_batch
    from adatad.training.resolve import resolve_model
    from adatad.training.setup import build_train_state
    from adatad.training.step import train_step

    spec = load(spec_file, overrides)
    with start_processes() as processes:
        model, run = build_model(spec.model, 6), resolve_model(spec, processes, 6)
        group = TracedGroup(clip_group(processes, run.mesh, 5, 60), clock=lambda: 0.0)
        parts = build_train_state(run, processes, model, group)
        train_step(parts, [random_batch(spec, 2, 6, torch.device("cpu"), frames_here(spec, run.mesh))], 1)
    return [event for event in group.events if event.kind != "work"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["block", "tile"])
def test_what_is_counted_without_other_ranks_is_what_real_ones_exchange(policy, shared_spec):
    """The benchmark's traces are taken of one rank at a time."""
    import torch

    settings = [*WINDOW, *POLICIES[policy], "parallel.clip=3", "train.precision=fp32", "train.global_batch=2"]
    spec = load(shared_spec, settings)
    for rank, real in enumerate(run_ranks(3, exchanges_of, shared_spec, settings)):
        counted = trace(spec, FakeClipGroup(Mesh(1, 3, 0, rank), 5), torch.device("cpu"), windows=2)
        assert [event for event in counted if event.kind not in ("work", "detector")] == real
        assert len(real) > 10


def test_both_sides_are_one_batch_without_tiles(monkeypatch):
    """Two batches would make NCCL pass an exchange on from rank to rank."""
    import torch
    import torch.distributed as dist

    from adatad.parallel.clip import ClipGroup, pad_from_ranks

    batches = []

    def batch(operations):
        batches.append([(operation.op.__name__, operation.peer) for operation in operations])
        return []

    dist.init_process_group("fake", rank=1, world_size=3, store=dist.HashStore())
    try:
        monkeypatch.setattr(dist, "batch_isend_irecv", batch)
        group = ClipGroup(Mesh(1, 3, 0, 1), 5, dist.group.WORLD)
        window = torch.zeros(1, 4, 2, 3, requires_grad=True)
        pad_from_ranks(group, window, 1).sum().backward()
    finally:
        dist.destroy_process_group()
    both = [("isend", 0), ("irecv", 0), ("isend", 2), ("irecv", 2)]
    assert batches == [both, both]


@given(st.integers(1, 200), st.integers(1, 64), st.data())
def test_shares_and_tiles_cover_all_clips_evenly(clips, ranks, data):
    ranks = min(ranks, clips)
    shares = [clip_share(clips, ranks, rank) for rank in range(ranks)]
    assert [clip for share in shares for clip in share] == list(range(clips))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    count, backwards = data.draw(st.integers(1, clips)), data.draw(st.booleans())
    (tiles,) = cut_evenly(1, clips, count, backwards)
    spans = [(tile.start, tile.stop) for tile in tiles]
    assert [tile.index for tile in tiles] == list(range(count))
    assert [clip for start, stop in sorted(spans) for clip in range(start, stop)] == list(range(clips))
    assert spans == sorted(spans, reverse=backwards)
    sizes = [stop - start for start, stop in spans]
    assert max(sizes) - min(sizes) <= 1


def test_a_replay_waits_for_what_is_sent():
    left = [Event("work", 10), Event("send", 0, 1), Event("receive", side=1), Event("gather", 0), Event("work", 5)]
    right = [Event("send", 0, 0), Event("work", 2), Event("receive", side=0), Event("gather", 0)]
    done = replay([left, right], ReplayMachine(work=1, link=1, latency_seconds=1))
    # The right one waits from 2 to 11 for planes, and from 12, when both have met, to the end.
    assert done.seconds == 17
    assert done.idle == [12 - 10, 9 + 1 + 5]
    slow = replay([left, right], ReplayMachine(work=1, link=1, latency_seconds=1, slow={0: 2}))
    assert slow.seconds == 32
    with pytest.raises(RuntimeError, match="wait for each other"):
        replay([[Event("receive", side=1)], [Event("receive", side=0)]], ReplayMachine(1, 1, 1))
