"""docs/support.md: which settings work together, by the cases of the tests, and by the checks of the spec for what is
refused."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from adatad.dev.docs.tested import PRECISIONS, module_of_tests, parameters, trained_precisions
from adatad.spec import SpecError, load
from adatad.spec.experiments import CONFIGS

HEAD = """# Support matrix

Made by `adatad dev docs`; don't edit. What is tested stands in the tests' own lists of cases, and what is refused is
what the spec's checks say: both are read when this page is made, and a test holds the page against them.

| sign | |
| --- | --- |
| **yes** | tested in this very combination, in the short suite |
| full | tested in this very combination with `bash launch/test.sh --full`; in the short suite each pair of its values |
| pairs | not tested in this combination, but each pair of its values is |
| - | refused before anything starts, with the reason and a setting that fixes it |
| | allowed, and not tested |

"Tested" means: a step's loss, its gradients and the weights after several steps are those of one process of engine
`ddp` under policy `none`, within rounding. It says nothing of time; and these tests run on CPUs.
"""
ENGINE_SETTINGS = {
    "memory.optimizer_state=host": (), "memory.moment_dtype=bf16": (), "memory.frozen_weights=stream": ("tile",),
    "memory.frozen_dtype=int8": ("tile",), "memory.saved_input_dtype=fp8": ("tile",), "memory.compile=true": ("tile",),
    "memory.order=tiles": ("tile",), "parallel.cpu_offload=true": (), "parallel.checkpoint_offload=true": ("block",),
    "train.recheck_every=100": (), "parallel.clip=2": (),
}  # fmt: skip
"""Settings that not every engine or mode takes, and the policy that each is asked under."""


def support_page() -> str:
    """Return the whole page."""
    contract = module_of_tests("parallel/test_engine_contract")
    return "\n".join(
        [HEAD, *_engines(contract), *_placements(contract), *_precisions(contract), *_policies(), *_asked()]
    )


def _engines(contract: ModuleType) -> Iterable[str]:
    chosen = {case[:4] for case in (*contract.all_pairs(), *contract.MORE)}
    policies = list(contract.ALL_POLICIES)
    yield "## Engine, mode and policy\n"
    yield "Everything on the device; two ranks (`tests/parallel/test_engine_contract.py`).\n"

    def cell(engine: str, mode: str, policy: str) -> str:
        case = contract.Case(engine, policy, mode, "device", 1)
        return impossible(case) if not case.possible else "**yes**" if case[:4] in chosen else "full"

    rows = [
        [f"`{engine}`", mode, *(cell(engine, mode, policy) for policy in policies)]
        for engine, mode in itertools.product(contract.ENGINES, contract.MODES)
    ]
    yield _table(["engine", "mode", *(f"`{name}`" for name in policies)], rows)
    yield "`ranges` is a policy for each range of blocks; mode side takes none, as its backbone runs without a graph.\n"


def impossible(case: Any) -> str:
    """Return the sign of a case that the tests leave out: refused, or without effect."""
    engine, name = f"parallel.engine={case.engine}", mode_settings(case.mode)
    others = [setting for setting in case.overrides if setting.startswith(("memory.", "model.backbone.depth"))]
    return "-" if refusal((engine, *name, *others)) else ""


def _placements(contract: ModuleType) -> Iterable[str]:
    chosen = {case[:4] for case in (*contract.all_pairs(), *contract.MORE)}
    keys = ", ".join(f"`{setting.partition('=')[0]}`" for setting in contract.HOST)
    more = " and ".join(f"`{setting}`" for setting in contract.HOST_OF_DDP)
    yield "## Placement on the host\n"
    yield _prose(f"Policy `tile`, two ranks, with {keys} on the host; under `ddp` with {more} as well.")

    def cell(engine: str, mode: str) -> str:
        case = contract.Case(engine, "tile", mode, "host", 1)
        return impossible(case) if not case.possible else "**yes**" if case[:4] in chosen else "pairs"

    rows = [[f"`{engine}`", *(cell(engine, mode) for mode in contract.MODES)] for engine in contract.ENGINES]
    yield _table(["engine", *contract.MODES], rows)
    offload = module_of_tests("memory/test_offload")
    marks = parameters(offload.test_gradients_of_several_steps_are_those_of_no_offload_with_slow_copies)
    places, orders = marks["places"], marks["order,recompute"]
    names, both = ", ".join(f"`{name}`" for name in offload.PLACES), " and ".join(f"order {o}, {r}" for o, r in orders)
    yield _prose(
        f"Mode side keeps nothing of a wave that could wait, and mode frozen keeps nothing at all. On one process "
        f"{len(places)} choices of what waits, from `{places[0][0]}` alone to all of {names}, are tested with {both} "
        "(`tests/memory/test_offload.py`)."
    )


def _precisions(contract: ModuleType) -> Iterable[str]:
    found = {("fp32", engine): "**yes**" for engine in contract.ENGINES}
    tests = []
    for engine, precision, test, refused in trained_precisions(contract.ENGINES):
        # One class is the engine of all stages of ZeRO: what one refuses, they all do.
        same = [e for e in contract.ENGINES if e == engine or (refused and e[:4] == engine[:4] == "zero")]
        for name in same:
            found.setdefault((precision, name), "-" if refused else "**yes**")
        tests.append(test)
    yield "## Engine and precision\n"
    yield _prose(
        "`train.precision` with two ranks. fp32 is the precision of all tests above; bf16 and fp16 are compared with "
        "one process, within their rounding, or for their loss scale. On GPUs `auto` is bf16 where the card has it, "
        "else fp16."
    )
    rows = [[f"`{engine}`", *(found.get((p, engine), "") for p in PRECISIONS)] for engine in contract.ENGINES]
    yield _table(["engine", *PRECISIONS], rows)
    yield "Tests:\n\n" + "\n".join(f"- `{test}`" for test in sorted(set(tests))) + "\n"


def _policies() -> Iterable[str]:
    exactness, families = module_of_tests("memory/test_exactness"), module_of_tests("memory/test_families")
    marks = parameters(exactness.test_policies_agree_in_float64)
    of_families: dict[str, list[str]] = {}
    for name, mode in parameters(families.test_policies_agree_in_float64)["family,mode"]:
        of_families.setdefault(name, []).append(mode)
    rows = []
    for family, modes, policies in (
        ("VideoMAE", marks["mode"], exactness.POLICIES),
        *((name, tested, families.POLICIES) for name, tested in of_families.items()),
    ):
        for name, settings in policies.items():
            mixed = not isinstance(settings["policy"], str)
            shown = "a policy for each range" if mixed else ", ".join(f"{k}: {v}" for k, v in settings.items())
            tested = {mode: "-" if mixed and mode == "side" else "**yes**" for mode in modes}
            cells = [tested.get(mode, "") for mode in marks["mode"]]
            rows.append([family, f"{name.partition(',')[0] + ': ' if mixed else ''}{shown}", *cells])
    yield "## Family of backbones, policy and mode\n"
    yield (
        "One process, float64: the timeline and all gradients are those of policy `none` to 1e-10\n"
        "(`tests/memory/test_exactness.py`, `tests/memory/test_families.py`).\n"
    )
    yield _table(["family", "`memory`", *marks["mode"]], rows)
    low = parameters(exactness.test_low_precision_is_near)
    bounds = ", ".join(f"{str(dtype).removeprefix('torch.')} within {bound:g}" for dtype, bound in low["dtype,bound"])
    yield _prose(
        f"Under `tile` in lower precision, against float32 gradients of `none`: {bounds} of their joint norm, "
        f"in modes {', '.join(low['mode'])}, and for every family."
    )


def _asked() -> Iterable[str]:
    contract = module_of_tests("parallel/test_engine_contract")
    engines, modes = contract.ENGINES, contract.MODES
    yield "## Settings that not all engines and modes take\n"
    yield "As the spec's checks answer; a setting that belongs to a policy is asked under it.\n"

    def row(setting: str, policy: Sequence[str], of: Sequence[str], ask: Callable[[str], list[str]]) -> list[str]:
        under = [f"memory.policy={name}" for name in policy]
        cells = ["-" if refusal((*ask(name), *under, setting)) else "yes" for name in of]
        return [f"`{setting}`", *cells]

    by_engine = [
        row(setting, policy, engines, lambda name: [f"parallel.engine={name}"])
        for setting, policy in ENGINE_SETTINGS.items()
    ]
    yield _table(["setting", *(f"`{name}`" for name in engines)], by_engine)
    of_mode = {setting: policy for setting, policy in ENGINE_SETTINGS.items() if setting.startswith("memory.")}
    of_mode |= {f"memory.{name}=host": ("tile",) for name in ("saved_inputs", "halos", "frames", "moving_average")}
    yield _table(
        ["setting", *modes], [row(setting, policy, modes, mode_settings) for setting, policy in of_mode.items()]
    )


def mode_settings(mode: str) -> list[str]:
    """Return the overrides that make the demo's spec one of a mode."""
    rates = "null" if mode == "frozen" else "{lr: 1e-4}"
    return [f"model.backbone.mode={mode}", f"optimizer.backbone={rates}", "model.backbone.drop_path=0"]


@cache
def refusal(settings: tuple[str, ...]) -> str | None:
    """Return why a spec with these settings is refused, or None if it isn't."""
    try:
        load(CONFIGS / "demo" / "tia.yaml", list(settings), check_files=False)
    except SpecError as error:
        return str(error)
    return None


def _prose(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
