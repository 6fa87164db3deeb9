"""A golden case of the model: run by the code that trains, and compared in every quantity that it holds.

Activations are read by hooks on the model's modules; losses, gradients and the trajectory come from the very functions
that training uses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adatad.convert.opentad_checkpoint import is_dropped, our_name
from adatad.dev.parity.comparison import (
    TOLERANCES,
    Comparison,
    largest,
    largest_differences,
    mismatch,
    norm,
    not_computed,
    of_largest,
    relative,
    relative_to_value,
)
from adatad.dev.parity.golden_cases import GoldenCase
from adatad.dev.parity.translate import batch_of, classifier_of, metas_of, model_of, spec_of
from adatad.evaluation.postprocess import WindowDetections, join_windows, window_detections
from adatad.models.actionformer import decode
from adatad.models.losses import Targets, detection_losses
from adatad.parallel.processes import Processes
from adatad.spec.schema import MemorySpec, Spec
from adatad.training.determinism import full_float32
from adatad.training.optimizer import learning_rate
from adatad.training.resolve import resolve_model
from adatad.training.setup import TrainState, build_train_state
from adatad.training.step import batch_targets, train_step

LOSSES = ("cls_loss", "reg_loss", "cost")
INSIDE_THE_BACKBONE = ("block_input", "block", "side_output")


def run_case(case: GoldenCase, memory: MemorySpec | None = None, double_trajectory: bool = False) -> list[Comparison]:
    """Return every comparison of a case, on the CPU in float32.

    Rows mark activations that aren't computed: under policy tile those inside the backbone, which exist only tile by
    tile; in the side variant those of blocks that feed no adapter.

    double_trajectory: train in float64. In float32 another order of summation (of a policy, of another processor) can
    break a tie, such as near a ReLU's zero, differently from the reference; both trainings are right then, and differ.
    If training in float32 ends over tolerance, training in float64 decides.
    """
    spec = spec_of(case).model_copy(update={"memory": memory or MemorySpec()})
    checks = Checks(case)
    with full_float32():
        parts = fresh_parts(case, spec)
        # In this order: gradients and the normalizer of the first steps must not meet an update.
        targets = first_steps(checks, parts)
        evaluation(checks, parts, targets)
        detections(checks, parts)
        optimizer_groups(checks, parts)
        return checks.rows + trained_rows(case, spec, double_trajectory)


def trained_rows(case: GoldenCase, spec: Spec, double: bool) -> list[Comparison]:
    """Return the rows of the recorded steps. double: in float64, without trying float32 first."""
    checks = Checks(case)
    trajectory(checks, parts_in_double(case, spec) if double else fresh_parts(case, spec))
    if double or all(row.passed for row in checks.rows):
        return checks.rows
    # The float32 rows stand if float64 fails too: they tell more.
    rows = trained_rows(case, spec, double=True)
    if not all(row.passed for row in rows):
        return checks.rows
    return [row._replace(quantity=f"{row.quantity} (in float64)") for row in rows]


class Checks:
    """Collects the rows of a case."""

    def __init__(self, case: GoldenCase):
        self.case, self.rows = case, []

    def add(self, quantity: str, error: float, kind: str) -> None:
        """Add a row with the tolerance of a kind of quantity."""
        self.rows.append(Comparison(self.case.name, quantity, error, TOLERANCES[kind]))

    def arrays(self, name: str, ours: dict[str, np.ndarray], never_made: Collection[str] = ()) -> None:
        """Add one row for all expected arrays `name` or `name`/i, but for those that the model never makes."""
        wanted = {key: array for key, array in self.wanted(name).items() if key not in never_made}
        if wanted:
            errors = [of_largest(ours[key], a) if key in ours else float("inf") for key, a in wanted.items()]
            self.add(name, largest(errors), "activation")

    def wanted(self, name: str) -> dict[str, np.ndarray]:
        """Return the expected arrays called `name` or `name`/i."""
        return {key: a for key, a in self.case.arrays.items() if key == name or key.startswith(f"{name}/")}

    def leave_out(self, name: str, why: str) -> None:
        """Add a row that says why the model makes none of the arrays."""
        if self.wanted(name):
            self.rows.append(not_computed(self.case.name, name, why))

    def losses(self, quantity: str, ours: dict[str, Any], expected: dict[str, float]) -> None:
        """Add one row for all losses."""
        self.add(
            quantity,
            largest(relative(float(torch.as_tensor(ours[name]).detach()), expected[name]) for name in LOSSES),
            "loss",
        )


def fresh_parts(case: GoldenCase, spec: Spec) -> TrainState:
    """Return a train state with the case's weights."""
    processes = Processes(0, 1, torch.device("cpu"))
    classes, steps = case.facts["detector"]["classes"], case.facts["schedule"]["steps_per_epoch"]
    return build_train_state(resolve_model(spec, processes, classes, steps), processes, model_of(case, spec))


def parts_in_double(case: GoldenCase, spec: Spec) -> TrainState:
    """Return a train state in float64, under tile with weights of the wave in float64 too."""
    if spec.memory.policy == "tile":
        # The wave has its own copies of frozen weights, in its own dtype.
        spec = spec.model_copy(update={"memory": spec.memory.model_copy(update={"weight_dtype": "fp64"})})
    parts = fresh_parts(case, spec)
    parts.model.double()
    return parts


def first_steps(checks: Checks, parts: TrainState) -> Targets:
    """Compare activations, targets, losses of two calls, and gradients, without an update."""
    case, expected = checks.case, checks.case.expected
    batch, model = batch_of(case), parts.model
    model.train()
    # Hooks see what modules return; under some policies blocks aren't called as modules, and see nothing.
    with recorded(model) as seen:
        predictions = model(batch.frames, batch.mask)
    compare_inside_the_backbone(checks, parts, seen)
    for name in ("features", "projection", "neck"):
        checks.arrays(f"train/{name}", seen)
    checks.arrays("train/logits", by_level("train/logits", predictions.logits))
    checks.arrays("train/offsets", by_level("train/offsets", predictions.offsets))
    checks.arrays("train/points", {"train/points": torch.cat(predictions.points).numpy()})
    same = all(
        np.array_equal(mask.numpy(), case.arrays[f"train/level_mask/{level}"])
        for level, mask in enumerate(predictions.masks)
    )
    checks.add("train/level_mask", mismatch(same, True), "exact")
    targets = batch_targets(parts, batch)
    compare_targets(checks, targets)
    detector = parts.spec.model.detector
    # Twice: the loss is normalized by a running mean, which each call updates.
    for call in ("first", "second"):
        normalizer = parts.normalizer.update(int(targets.positive.sum()))
        losses = detection_losses(predictions, targets, normalizer, detector)
        checks.losses(f"losses of the {call} call", losses, expected[f"train_losses_{call}_call"])
        checks.add(
            f"normalizer after the {call} call",
            relative(normalizer, expected[f"normalizer_after_{call}_call"]),
            "loss",
        )
        if call == "first":
            # The second call takes its loss from the same predictions.
            losses["cost"].backward(retain_graph=True)
            compare_gradients(checks, model)
    return targets


def compare_inside_the_backbone(checks: Checks, parts: TrainState, seen: dict[str, np.ndarray]) -> None:
    """Compare the activations of blocks and of the side output."""
    if parts.spec.memory.policy == "tile":
        for name in INSIDE_THE_BACKBONE:
            checks.leave_out(f"train/{name}", "under policy tile it exists only tile by tile")
        return
    backbone, idle = parts.model.backbone, range(0)  # a detector alone has no backbone
    if backbone is not None and backbone.mode == "side":
        idle = range(max(backbone.adapter_blocks) + 1, len(backbone.blocks))
    never_made = [f"train/block/{index}" for index in idle]
    for name in INSIDE_THE_BACKBONE:
        checks.arrays(f"train/{name}", seen, never_made)
    for key in never_made:
        # The reference runs them, and uses nothing of them.
        checks.leave_out(key, "the side variant doesn't run a block that feeds no adapter")


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """Yield a dictionary that a forward pass fills with the outputs of modules, under the cases' names."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Remember a module's output; a forward hook."""
        levels = output[0] if isinstance(output, tuple) else output
        # A list is one tensor for each pyramid level; a tuple has masks behind it.
        for index, tensor in enumerate(levels if isinstance(levels, list) else [levels]):
            key = f"{name}/{index}" if isinstance(levels, list) else name
            seen[key] = tensor.detach().numpy()

    def keep_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Remember a block's input; a hook before its forward."""
        seen["train/block_input"] = inputs[0].detach().numpy()

    hooks = [
        model.detector.projection.register_forward_hook(partial(keep, "train/projection")),
        model.detector.neck.register_forward_hook(partial(keep, "train/neck")),
    ]
    backbone = model.backbone
    if backbone is not None:
        hooks.append(backbone.register_forward_hook(partial(keep, "train/features")))
        hooks.append(backbone.blocks[0].register_forward_pre_hook(keep_input))
        for index, block in enumerate(backbone.blocks):
            hooks.append(block.register_forward_hook(partial(keep, f"train/block/{index}")))
        if backbone.mode == "side":
            hooks += _side_hooks(backbone, seen)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _side_hooks(backbone: nn.Module, seen: dict[str, np.ndarray]) -> list[Any]:
    """Record the side output: the last block that feeds an adapter, plus what every side adapter adds."""

    def base(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Begin the sum with the block's output."""
        seen["train/side_output"] = output.detach().numpy()

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Add an adapter's output to the sum."""
        seen["train/side_output"] = seen["train/side_output"] + output.detach().numpy()

    last = backbone.blocks[max(backbone.adapter_blocks)]
    return [last.register_forward_hook(base), *(a.register_forward_hook(add) for a in backbone.side_adapters)]


def by_level(name: str, levels: list[Tensor]) -> dict[str, np.ndarray]:
    """Return the tensors of pyramid levels by name."""
    return {f"{name}/{level}": tensor.detach().numpy() for level, tensor in enumerate(levels)}


def compare_targets(checks: Checks, targets: Targets) -> None:
    """Compare the assigned classes and offsets."""
    arrays, expected = checks.case.arrays, checks.case.expected
    classes, offsets = [], []
    for index, (ours, distances) in enumerate(zip(targets.classes.numpy(), targets.offsets.numpy(), strict=True)):
        wanted = arrays[f"train/target_class/{index}"]
        # Offsets of points without a class are never read.
        with_class = wanted.sum(1) > 0
        classes.append(of_largest(ours, wanted))
        offsets.append(of_largest(distances[with_class], arrays[f"train/target_offset/{index}"][with_class]))
    checks.add("train/target_class", largest(classes), "exact")
    checks.add("train/target_offset", largest(offsets), "proposal")
    checks.add("positives", mismatch(int(targets.positive.sum()), expected["positives"]), "exact")


def compare_gradients(checks: Checks, model: nn.Module) -> None:
    """Compare gradients jointly and each, and which parameters get one."""
    case, expected = checks.case, checks.case.expected
    # Gradients that are zero but for rounding have nothing to compare.
    joint, noise = expected["gradient_norm"], set(expected["rounding_noise_gradients"])
    wanted = {
        our_name(key.removeprefix("gradient/")): array
        for key, array in case.arrays.items()
        if key.startswith("gradient/") and key.removeprefix("gradient/") not in noise
    }
    # Ours against theirs by our names; a parameter without gradient here is an infinite error.
    got = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    differences = {name: norm(got[name] - array) if name in got else float("inf") for name, array in wanted.items()}
    checks.add("gradients, joint", norm(np.array(list(differences.values()))) / joint, "gradient")
    # A tensor's own norm, with a floor of the joint one for tensors that hardly have a gradient.
    own = (difference / (1e-3 * norm(wanted[name]) + 1e-5 * joint) for name, difference in differences.items())
    checks.add("gradients, each", largest(own), "gradient_tensor")
    ours_joint = norm(np.array([norm(array) for array in got.values()]))
    checks.add("gradient norm", relative(ours_joint, joint), "loss")
    with_gradient = set(expected["requires_gradient_after_forward"]) - set(
        expected["requires_gradient_but_never_gets_one"]
    )
    checks.add("what gets a gradient", mismatch(set(got), {our_name(name) for name in with_gradient}), "exact")
    model.zero_grad()  # the trajectory starts without


@torch.no_grad()
def evaluation(checks: Checks, parts: TrainState, targets: Targets) -> None:
    """Compare losses in evaluation mode, normalized by the count itself; the running normalizer isn't updated."""
    losses = evaluation_losses(checks.case, parts, targets)
    checks.losses("losses in evaluation", losses, checks.case.expected["eval_losses"])


@torch.no_grad()
def evaluation_losses(case: GoldenCase, parts: TrainState, targets: Targets) -> dict[str, Tensor]:
    """Return the losses in evaluation mode."""
    batch = batch_of(case)
    parts.model.eval()
    predictions = parts.model(batch.frames, batch.mask)
    return detection_losses(predictions, targets, max(int(targets.positive.sum()), 1), parts.spec.model.detector)


@torch.no_grad()
def detections(checks: Checks, parts: TrainState) -> None:
    """Compare proposals and scores of every sample, and the detections made of them."""
    case, inputs = checks.case, checks.case.inputs
    parts.model.eval()
    batch = batch_of(case)
    frames, mask = batch.frames, batch.mask
    # A detector alone is evaluated on inputs of another length than it is trained on.
    if "eval_features" in inputs:
        frames, mask = torch.from_numpy(inputs["eval_features"]), torch.from_numpy(inputs["eval_masks"])
    decoded = [(s.numpy(), c.numpy()) for s, c in decode(parts.model(frames, mask))]
    for position, name in enumerate(("proposals", "scores")):
        errors = [
            relative_to_value(sample[position], case.arrays[f"eval/{name}/{index}"])
            for index, sample in enumerate(decoded)
        ]
        checks.add(f"eval/{name}", largest(errors), "proposal")
    compare_detections(checks, parts.spec, decoded)


def compare_detections(checks: Checks, spec: Spec, decoded: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Compare the detections of windows, and of videos after their merge."""
    case, expected = checks.case, checks.case.expected
    sliding, classifier = case.facts["postprocess"]["sliding_window"], classifier_of(case)
    windows = []
    for number, ((segments, scores), meta) in enumerate(zip(decoded, metas_of(case), strict=True)):
        found = window_detections(
            segments, scores, meta, case.facts["class_names"], spec.postprocess, sliding, classifier
        )
        windows.append(WindowDetections(meta.video, number, sliding, found))
    per_window = expected.get("detections_per_window")
    if per_window:
        # Not sliding: each window is suppressed on its own, before the merge.
        alone = [replace(window, sliding=False) for window in windows]
        _compare_lists(checks, "detections per window", join_windows(alone, spec.postprocess), per_window)
        # Windows are merged by rounded numbers: start from the reference's, lest a last digit changes their order.
        windows = [WindowDetections(video, 0, sliding, items) for video, items in per_window.items()]
    _compare_lists(checks, "detections", join_windows(windows, spec.postprocess), expected["detections"])


def _compare_lists(checks: Checks, quantity: str, ours: dict[str, Any], expected: dict[str, Any]) -> None:
    seconds, scores = largest_differences(ours, expected)
    checks.add(f"{quantity}, seconds", seconds, "seconds")
    checks.add(f"{quantity}, scores", scores, "score")


def optimizer_groups(checks: Checks, parts: TrainState) -> None:
    """Compare the optimizer's groups: parameters, rates and weight decay."""
    expected = checks.case.expected["optimizer_groups"]
    wanted = [
        # Rates are products of decays: equal but for the last bits.
        (trained_in(expected[index], parts), round(expected[index]["base_lr"], 12), expected[index]["weight_decay"])
        for index in our_groups(checks.case, parts)
    ]
    ours = [(set(g["parameter_names"]), round(g["base_lr"], 12), g["weight_decay"]) for g in parts.engine.groups]
    checks.add("optimizer groups", mismatch(ours, wanted), "exact")


def trained_in(group: dict[str, Any], parts: TrainState) -> set[str]:
    """Return our names of the parameters that are trained in a group of the reference, which lists others too."""
    return {our_name(name) for name in group["parameters"] if not is_dropped(name)} & set(parts.trained)


def our_groups(case: GoldenCase, parts: TrainState) -> list[int]:
    """Return the numbers of the reference's groups in which any parameter is trained."""
    return [index for index, group in enumerate(case.expected["optimizer_groups"]) if trained_in(group, parts)]


def trajectory(checks: Checks, parts: TrainState) -> None:
    """Run the recorded training steps on one batch, by the trainer's own step, and compare."""
    case, expected = checks.case, checks.case.expected
    batch, schedule = batch_of(case), parts.spec.schedule
    # Changes are compared, not weights: a step changes a weight by less than its tolerance would be.
    before = {name: p.detach().clone().numpy() for name, p in parts.model.named_parameters()}
    kept = our_groups(case, parts)
    parts.model.train()
    losses, norms, rates, normalizers = [], [], [], []
    for step, wanted in enumerate(expected["trajectory"]):
        values = train_step(parts, [batch], step)  # the values that metrics.jsonl logs
        losses += [relative(values[name], wanted["losses"][name]) for name in LOSSES]
        norms.append(relative(values["gradient_norm"], wanted["gradient_norm"]))
        rates += compare_rates(list(values["lr"].values()), [wanted["group_lrs"][index] for index in kept])
        normalizers.append(relative(values["normalizer"], wanted["normalizer"]))
    for name, errors in (("losses", losses), ("gradient norms", norms), ("normalizer", normalizers)):
        checks.add(f"trajectory: {name}", largest(errors), "loss")
    # The rate that the step after the last one would take.
    steps, last = parts.run.steps_per_epoch, len(expected["trajectory"])
    following = [
        learning_rate(last, g["base_lr"], schedule.warmup_epochs * steps, schedule.epochs * steps, schedule.eta_min)
        for g in parts.engine.groups
    ]
    rates += compare_rates(following, [expected["lr_after_last_step"][index] for index in kept])
    checks.add("trajectory: rates", largest(rates), "rate")
    after = {name: p.detach().numpy() for name, p in parts.model.named_parameters()}
    averages = {name: tensor.numpy() for name, tensor in parts.ema.averages.items()}
    compare_changes(checks, "weight", before, after)
    # Averages of trained weights alone: frozen ones are their own average.
    compare_changes(checks, "ema", before, before | averages)
    moved = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    # Also tensors with a gradient, if the optimizer leaves them out.
    still = {our_name(name) for name in expected["unchanged_tensors"] if not is_dropped(name)}
    checks.add("trajectory: unchanged tensors", mismatch(sorted(still & moved), []), "exact")
    targets = batch_targets(parts, batch)
    checks.losses(
        "losses in evaluation, trained",
        evaluation_losses(case, parts, targets),
        expected["eval_losses_after_trajectory"],
    )


def compare_rates(ours: list[float], expected: list[float]) -> list[float]:
    """Return the relative errors of learning rates; the absolute error of one that is 0."""
    if len(ours) != len(expected):
        return [float("inf")]
    # A rate of exactly 0, at the end of the cosine, has no relative error.
    return [relative(a, b) if b else abs(a) for a, b in zip(ours, expected, strict=True)]


def compare_changes(checks: Checks, kind: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Compare the size of every tensor's change, and recorded tensors relative to their change."""
    case, expected = checks.case, checks.case.expected
    noise = set(expected["rounding_noise_gradients"])
    changes = {our_name(k): v[0] for k, v in expected[f"{kind}_change_l2_and_sum"].items() if k not in noise}
    sizes = [relative(norm(after[name] - before[name]), change) for name, change in changes.items()]
    checks.add(f"trajectory: {kind} changes", largest(sizes), "change")
    prefix = "final/" if kind == "weight" else "ema_final/"
    finals = {
        our_name(key.removeprefix(prefix)): array
        for key, array in case.arrays.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in noise
    }
    # An average changes so little in a few steps that fp32's rounding, half an epsilon a step, matters.
    rounding = len(expected["trajectory"]) * float(np.finfo(np.float32).eps) / 2
    errors = [
        max(norm(after[name] - array) - rounding * norm(array), 0.0) / max(changes.get(name, 0.0), 1e-9)
        for name, array in finals.items()
    ]
    checks.add(f"trajectory: final {kind} tensors", largest(errors), "change")
