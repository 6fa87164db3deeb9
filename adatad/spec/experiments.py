"""The published experiments, and the spec file that a name or SPEC argument means."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from adatad.errors import UserError
from adatad.files import shown
from adatad.resources import here_or_resource, resource
from adatad.spec.text import cut, nearest

# In a checkout its top folder, in an installation the package's copy.
CONFIGS = resource("configs")
ALIASES = {"anet": "activitynet", "thumos14": "thumos", "multi_thumos": "multithumos", "fullft": "full"}
"""Words that people use for those in our names."""
MAX_LISTED = 6
"""Experiments that a name could mean, of which each is named in a message; more are counted."""
MAX_NAME = 200
"""Characters of the name of a shipped spec."""
USUAL_MODE = "adapter"
"""The mode that a name without one means."""


class ExperimentError(UserError):
    """A name that stands for no published experiment, or for several."""


class Experiment(NamedTuple):
    """A published experiment. name: as thumos/s_768x160_adapter; reference: its name in OpenTAD, as
    thumos/e2e_thumos_videomae_s_768x1_160_adapter; path: of its spec file."""

    name: str
    reference: str
    path: Path

    @property
    def shown(self) -> str:
        """The path as a command takes it in the project's folder."""
        return f"configs/{self.name}.yaml"

    @property
    def words(self) -> frozenset[str]:
        """Words by which it is found: thumos, s, 768x160, 768, 160, adapter."""
        parts = re.split(r"[/_]", self.name)
        return frozenset([*parts, *parts[2].split("x")])


@cache
def all_experiments(folder: Path = CONFIGS) -> tuple[Experiment, ...]:
    """Return the published experiments, by name."""
    found = []
    # A spec of the user's, somewhere in between, that can't be read is none of them.
    for path in sorted(path for path in folder.glob("*/*.yaml") if os.access(path, os.R_OK) and path.is_file()):
        # By a pattern: a YAML parser would take seconds for all shipped files, to find one name.
        reference = re.search(r"^reference: (\S+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if reference:
            found.append(Experiment(str(path.relative_to(folder).with_suffix("")), reference[1], path))
    return tuple(found)


def experiment_of_reference(path: str | Path) -> Experiment:
    """Return the experiment that OpenTAD's configuration file at `path` stands for, wherever that lies. Raises
    ExperimentError."""
    experiments = {Path(experiment.reference).name: experiment for experiment in all_experiments()}
    stem = Path(path).stem
    if stem not in experiments:
        close = nearest(stem, experiments)
        hint = f"; the nearest is {experiments[close].reference}.py, here {experiments[close].shown}" if close else ""
        raise ExperimentError(
            f"{cut(path)}: unknown configuration of OpenTAD's configs/adatad{hint} (docs/model-zoo.md)"
        )
    return experiments[stem]


def find_experiment(text: str) -> Experiment:
    """Return the experiment that a name means: ours, the reference's, a path to either, or some words of ours.

    Without a mode, the adapters in the blocks are meant. Raises ExperimentError.
    """
    stem = re.sub(r"\.(yaml|py)$", "", text)
    for experiment in all_experiments():
        names = experiment.name, experiment.reference
        # A whole name first: words could fit several experiments of which one is meant exactly.
        if stem in names or stem.endswith(tuple(f"/{name}" for name in names)):
            return experiment
    asked = re.sub(r"\b(multi_thumos)\b", "multithumos", stem.lower())
    # As a set: "s 768 thumos" means the same as thumos/s_768.
    words = {ALIASES.get(word, word) for word in re.split(r"[-_/\s]+", asked) if word}
    candidates = [experiment for experiment in all_experiments() if words <= experiment.words]
    # Of several, the usual mode; then the one whose name says nothing further, as _internvideo.
    for wanted in (lambda one: USUAL_MODE in one.words, lambda one: len(one.name.split("_")) == 3):
        if len(candidates) > 1:
            candidates = list(filter(wanted, candidates)) or candidates
    if len(candidates) == 1:
        return candidates[0]
    if candidates and words:
        names = [experiment.name for experiment in candidates]
        more = f" or {len(names) - MAX_LISTED} others" if len(names) > MAX_LISTED else ""
        raise ExperimentError(
            f"{cut(text)}: could be {', '.join(names[:MAX_LISTED])}{more}; give more words of its name"
        )
    close = nearest(stem, [experiment.name for experiment in all_experiments()])
    hint = f"; did you mean {close}?" if close else ""
    raise ExperimentError(f"{cut(text)}: no published experiment has this name{hint} (docs/model-zoo.md lists them)")


def find_spec_path(text: str) -> tuple[str, str | None]:
    """Return the spec file that a SPEC argument means, and a line to print where it isn't the file itself.

    A name is that of a shipped spec (demo/tia), of a published experiment (thumos-s-768) or of its file in OpenTAD. One
    that isn't known comes back as it is: loading it says what is wrong.
    """
    if not text or (os.path.lexists(text) and not text.endswith(".py")):
        return text, None
    if text.endswith((".yaml", ".yml")):
        return here_or_resource(text), None
    if not text.endswith(".py") and not os.path.isabs(text) and ".." not in text:
        named = f"configs/{text.removeprefix('configs/')}.yaml"
        if len(text) < MAX_NAME and os.access(resource(named), os.R_OK) and resource(named).is_file():
            return here_or_resource(named), f"{shown(text)} is the shipped {named}, which is used"
    reference = text.endswith(".py")
    try:
        experiment = experiment_of_reference(text) if reference else find_experiment(text)
    except ExperimentError:
        return text, None
    what = f"OpenTAD's name of {experiment.shown}" if reference else f"the experiment of {experiment.shown}"
    # The path as it is typed here, unless another file has it: lines of logs and jobs stay short.
    here = Path(experiment.shown)
    path = here if here.is_file() and here.samefile(experiment.path) else experiment.path
    return str(path), f"{shown(text)} is {what}, which is used"
