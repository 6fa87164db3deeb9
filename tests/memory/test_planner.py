"""The planner's figures agree with the count of whole steps, and its choices with what fits."""

import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from adatad.memory.arithmetic import autocast_dtype
from adatad.memory.flops import FlopCount
from adatad.memory.meta import gpu_like_meta
from adatad.memory.offload import GIB
from adatad.memory.planner import TIE_FACTOR, Machine, Plan, Planner
from adatad.memory.suggestions import shortfall, suggestions
from adatad.spec import load
from adatad.spec.load import SpecError
from adatad.training.metered import meta_parts, random_batch, step_memory
from adatad.training.step import train_step

META = torch.device("meta")
CONFIG = "configs/thumos/s_768x160_adapter.yaml"
SHALLOW = ["model.detector.branch_blocks=1", "model.detector.regression_ranges=[[0, 4], [4, 10000]]"]
SMALL = [
    "data.window.size_grid=96", "model.detector.max_length=96", "data.size_pixels=64", "model.detector.width=64",
    "model.backbone.width=96", "model.backbone.heads=3", "model.backbone.depth=4", "train.global_batch=2",
    "model.detector.stem_blocks=0", *SHALLOW,
]  # fmt: skip
SEEDS = (3, 11, 13, 18)
"""Of those specs that are counted in a short run."""
WITHIN = 0.05


def small(*overrides: str):
    return load(CONFIG, [*SMALL, *overrides], check_files=False)


def planner(spec, gib: float = 1000.0, **machine) -> Planner:
    return Planner(spec, Machine(gib * GIB, **machine), autocast_dtype(spec.train.precision, META))


def random_settings(seed: int) -> list[str]:
    """Any size, mode, window, policy, placement, engine and accumulation, with few enough tiles to be counted."""
    draw = random.Random(seed)
    mode = draw.choice(["adapter", "adapter", "adapter", "plain", "side", "full", "frozen"])
    preset, depth = draw.choice([("small", 12), ("base", 12), ("large", 24), ("giant", 40)])
    grid = 16 * draw.choice([4, 6, 7, 10, 12])
    lines = [
        f"model.backbone.mode={mode}", f"model.backbone.preset={preset}", f"data.window.size_grid={grid}",
        f"data.size_pixels={draw.choice([112, 160, 224])}", "model.detector.max_length=256",
        f"model.detector.width={draw.choice([64, 256, 512])}", f"model.detector.stem_blocks={draw.choice([0, 1])}",
        f"train.precision={draw.choice(['auto', 'auto', 'auto', 'fp32'])}",
        f"model.backbone.drop_path={draw.choice([0.0, 0.1]) if mode != 'side' else 0.0}", *SHALLOW,
    ]  # fmt: skip
    batch = draw.choice([1, 2, 2])
    lines += [f"train.global_batch={batch}", f"train.accumulation={draw.choice([1, batch])}"]
    lines.append(f"parallel.engine={draw.choice(['auto', 'ddp'])}")
    if mode in ("adapter", "plain", "side"):
        half = list(range(depth // 2, depth))
        blocks = draw.choice(["all", half, sorted(draw.sample(range(depth), draw.randint(1, depth)))])
        lines += [f"model.backbone.adapter.blocks={blocks}", f"model.backbone.adapter.kernel={draw.choice([3, 5])}"]
    lines += {"frozen": ["optimizer.backbone=null"], "full": ["optimizer.backbone.lr=1e-5"]}.get(mode, [])
    return lines + random_memory(draw, mode, depth)


def random_memory(draw: random.Random, mode: str, depth: int) -> list[str]:
    policy = draw.choice(["none", "block", "tile", "tile"] + ["selective", "ranges"] * (mode != "side"))
    lines, places = [f"memory.policy={policy}"], ["optimizer_state", "moving_average"]
    if policy == "ranges":
        cut, above = draw.randrange(1, depth - 1), draw.choice(["none", "selective", "block"])
        below = draw.choice(["tile", "block"])
        spans = f"{{first: 0, last: {cut}, policy: {below}}}, {{first: {cut + 1}, last: {depth - 1}, policy: {above}}}"
        lines, policy = [f"memory.policy=[{spans}]"], "tile ranges" if below == "tile" else "ranges"
    if policy.startswith("tile"):
        places += ["frames"] + ["saved_inputs", "halos"] * (mode != "side")
        lines += [f"memory.tile_clips={draw.randint(1, 4)}", f"memory.segment_blocks={draw.randint(1, 8)}"]
        lines.append(f"memory.recompute={draw.choice(['once', 'twice'])}")
    if policy == "tile":
        lines += ["memory.frozen_weights=stream"] * (mode != "full" and draw.random() < 0.3)
        lines.append(f"memory.order={draw.choice(['auto', 'auto', 'blocks'])}")
        lines.append(
            f"memory.frozen_dtype={draw.choice(['auto', 'auto', 'fp8', 'int8']) if mode != 'full' else 'auto'}"
        )
        lines.append(f"memory.saved_input_dtype={draw.choice(['auto', 'auto', 'fp8']) if mode != 'side' else 'auto'}")
    lines += [f"memory.{place}=host" for place in places if draw.random() < 0.3]
    return [*lines, f"memory.moment_dtype={draw.choice(['fp32', 'bf16'])}"]


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed in SEEDS else pytest.mark.full) for seed in range(20)]
)
def test_the_plan_and_the_meter_agree(seed):
    spec = load(CONFIG, random_settings(seed), check_files=False)
    plan, counted = planner(spec).own(), step_memory(spec)
    assert plan.bytes == pytest.approx(counted.bytes, rel=WITHIN), (plan.categories, counted.by_label)


@pytest.mark.parametrize("policy", ["none", "block", "tile"])
@pytest.mark.parametrize("clip", [2, 3])
def test_the_plan_and_the_meter_agree_on_shared_windows(policy, clip):
    tile = ["memory.tile_clips=1", "memory.segment_blocks=2"] if policy == "tile" else []
    spec = small("data.window.size_grid=240", "model.detector.max_length=240", f"memory.policy={policy}", *tile,
                 f"parallel.clip={clip}")  # fmt: skip
    # One rank alone is counted, without what an engine exchanges with others.
    plan, counted = planner(spec).own(), step_memory(spec)
    assert plan.bytes == pytest.approx(counted.bytes, rel=WITHIN), (plan.categories, counted.by_label)


@pytest.mark.parametrize(
    ("preset", "segment", "mode"),
    [
        ("vjepa2-large", 1, "adapter"),
        ("vjepa2-large", 2, "full"),
        ("vjepa2-large", 4, "adapter"),
        ("internvideo2-1b", 2, "full"),
        ("internvideo2-1b", 4, "adapter"),
    ],
)
def test_the_plan_and_the_meter_agree_for_every_family(preset, segment, mode):
    spec = small(f"model.backbone.preset={preset}", f"model.backbone.mode={mode}", "data.window.size_grid=160",
                 "model.detector.max_length=160", "data.size_pixels=160", "optimizer.backbone.lr=1e-5",
                 "memory.policy=tile", "memory.tile_clips=1", f"memory.segment_blocks={segment}")  # fmt: skip
    plan, counted = planner(spec).own(), step_memory(spec)
    assert plan.bytes == pytest.approx(counted.bytes, rel=WITHIN), (plan.categories, counted.by_label)


@pytest.mark.parametrize(
    "memory",
    ["policy=selective", "policy=tile memory.segment_blocks=3 memory.tile_clips=5 memory.recompute=twice"],
)
def test_executed_flops_are_those_of_a_step(memory):
    spec = small(*f"memory.{memory} model.backbone.adapter.blocks=[1,2,3]".split())
    windows = spec.train.global_batch
    with gpu_like_meta(), FlopCount() as flops:
        train_step(meta_parts(spec), [random_batch(spec, windows, 20, META)], step=1)
    assert planner(spec).own().flops == pytest.approx(flops.total, rel=0.02)


@pytest.fixture(scope="module")
def plans() -> tuple[Planner, list[Plan]]:
    some = planner(small("memory.policy=auto"))
    return some, some.plans()


def test_more_memory_never_gives_a_slower_plan(plans):
    some, all_plans = plans
    seconds = []
    room = sorted({plan.bytes for plan in all_plans})
    for usable in room[:: max(1, len(room) // 20)]:
        some.machine = Machine((usable + GIB + 1) / 0.9)
        best = some.best(all_plans)
        seconds.append(best.seconds if best else float("inf"))
    assert seconds[0] > seconds[-1]
    assert all(later <= earlier * TIE_FACTOR for earlier, later in pairwise(seconds))


def test_a_roomy_device_keeps_everything_and_moves_nothing(plans):
    some, all_plans = plans
    some.machine = Machine(1000 * GIB)
    best = some.best(all_plans)
    assert (best.memory.policy, best.away, best.host_bytes) == ("none", 0, 0)


def test_a_plan_s_settings_load_to_the_plan(plans):
    _, all_plans = plans
    for plan in all_plans[:: len(all_plans) // 12]:
        assert small(*plan.settings(small())).memory == plan.memory


def test_a_plan_s_settings_undo_what_a_spec_places_elsewhere(plans):
    _, all_plans = plans
    own = ["policy=tile", "order=blocks", "saved_inputs=host", "frames=host", "frozen_weights=stream",
           "host_limit_gib=3",
           "weight_dtype=fp16", "optimizer_state=host"]  # fmt: skip
    asked = [f"memory.{setting}" for setting in own]
    for plan in all_plans[:: len(all_plans) // 12]:
        assert small(*asked, *plan.settings(small(*asked))).memory.policy == plan.memory.policy
    for plan in planner(small(*asked)).plans(coarse=True)[::5]:
        assert small(*asked, *plan.settings(small(*asked))).memory == plan.memory


def test_what_is_said_beside_auto_stays():
    asked = small(
        "memory.policy=auto", "memory.saved_inputs=host", "memory.optimizer_state=host", "memory.tile_clips=3"
    )
    found = planner(asked).plans(coarse=True)
    assert {plan.memory.policy for plan in found} == {"tile"}
    for plan in found:
        assert (plan.memory.saved_inputs, plan.memory.optimizer_state, plan.memory.tile_clips) == ("host", "host", 3)
    kept = planner(small("memory.policy=auto", "memory.moving_average=device")).plans(coarse=True)
    assert {plan.memory.moving_average for plan in kept} == {"device"}


@pytest.mark.parametrize("engine", ["fsdp", "zero1"])
def test_every_engine_has_plans_of_its_own(engine):
    spec = small("memory.policy=auto", f"parallel.engine={engine}")
    found = planner(spec, ranks=2).plans(coarse=True)
    assert {plan.engine for plan in found} == {engine}
    assert {plan.memory.frozen_weights for plan in found} == {"device"}
    assert planner(spec, ranks=2).smallest(found).bytes < planner(small("memory.policy=none"), ranks=2).own().bytes


def test_a_roomy_card_recomputes_less_in_the_last_blocks():
    some = planner(small("memory.policy=auto"))
    uniform = {plan.memory.policy: plan for plan in some.plans(coarse=True) if not plan.away}
    # A little less than none takes.
    some.machine = Machine((uniform["none"].bytes + GIB - 2**20) / 0.9)
    found = [plan for plan in some.plans() if not isinstance(plan.memory.policy, str)]
    assert found
    for plan in found:
        assert plan.fits(some.machine)
        assert plan.flops < uniform["block"].flops
        last = plan.memory.policy[-1]
        assert last.policy in ("none", "selective")
        assert small(*plan.settings(some.spec)).memory == plan.memory


def test_a_misfit_says_by_how_much_and_what_would_fit():
    asked = ["policy=auto", "rows=device", "halos=device", "frames=device"]
    asked = [f"memory.{setting}" for setting in asked]
    some = planner(small(*asked))
    found = some.plans(coarse=True)
    # A little too small for the least.
    some.machine = Machine((some.smallest(found).bytes + GIB - 2**19) / 0.9)
    assert some.best(found) is None
    said = shortfall(some, found)
    assert "more than the" in said
    wanted = float(said.rpartition("a device of ")[2])
    assert wanted == pytest.approx((some.smallest(found).bytes + GIB) / 0.9 / GIB, abs=0.05)
    changes = {change.what.split(" ")[0]: change for change in suggestions(some, found)}
    assert {"the", "one", "windows", "frames"} == changes.keys()
    for change in changes.values():
        assert change.plan.fits(some.machine)
    change = changes["windows"]
    again = Planner(small(*asked, *change.settings), some.machine, some.arithmetic).own()
    assert again.bytes == pytest.approx(change.plan.bytes, rel=0.01)


def test_host_memory_that_is_missing_is_named():
    some = planner(small("memory.policy=auto"))
    found = some.plans(coarse=True)
    on_host = next(plan for plan in found if plan.host_bytes)
    tight = replace(some.machine, memory_bytes=(some.smallest(found).bytes * 1.02 + GIB) / 0.9, host_bytes=1000.0)
    some.machine = tight
    assert on_host.host_bytes > tight.host_bytes
    assert some.best(found) is None
    assert any("host memory" in change.what for change in suggestions(some, found))


def test_a_bound_that_is_too_low_is_named_and_taken_away():
    asked = ["memory.policy=auto", "memory.host_limit_gib=1e-6"]
    some = planner(small(*asked))
    found = some.plans(coarse=True)
    placed = [plan for plan in found if not plan.fits_host(some.machine)]
    some.machine = Machine((min(plan.bytes for plan in placed) + GIB + 2**10) / 0.9)
    assert some.best(found) is None
    change = next(change for change in suggestions(some, found) if "host memory" in change.what)
    assert small(*asked, *change.settings).memory.host_limit_gib is None
    assert change.plan.fits(some.machine)
    tight = [plan for plan in placed if plan.bytes <= some.machine.usable_bytes]
    assert "memory.host_limit_gib allows 1e-06" in shortfall(some, tight)


@pytest.mark.parametrize("gib", [4, 8, 24])
def test_the_specs_for_small_cards_fit_and_say_what_they_take(gib):
    path = Path(f"configs/thumos/g_1536x224_adapter_{gib}gb.yaml")
    some = planner(load(path, check_files=False), gib)
    own = some.own()
    assert own.fits(some.machine)
    said = [float(x) for x in re.findall(r"\d+\.\d+", path.read_text().partition("word:")[2].partition("base:")[0])]
    assert said[:2] == pytest.approx([own.bytes / GIB, some.machine.usable_bytes / GIB], abs=0.02)
    assert said[2:] == pytest.approx([own.host_bytes / GIB] if own.host_bytes else [], abs=0.1)


def test_auto_refuses_what_no_plan_could_do():
    with pytest.raises(SpecError, match=r"memory.frozen_weights.*mode full"):
        small("memory.policy=auto", "memory.frozen_weights=stream", "model.backbone.mode=full",
              "optimizer.backbone.lr=1e-5")  # fmt: skip


def test_auto_is_refused_where_what_stands_beside_it_leaves_no_plan():
    far = ["memory.policy=auto", "model.backbone.adapter.dilation=9"]
    assert planner(small(*far)).plans(coarse=True)
    with pytest.raises(SpecError, match=r"memory.policy: the adapters reach 9 tubelets .* tile can't do that"):
        small(*far, "memory.saved_inputs=host")


def test_an_unresolved_auto_is_an_error():
    with pytest.raises(ValueError, match="planner"):
        step_memory(small("memory.policy=auto"), windows=1)
