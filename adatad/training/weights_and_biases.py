"""Weights & Biases as a tracker, where `logging.wandb` names a project. Nothing of it is imported anywhere else."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adatad.errors import UserError
from adatad.files import FileError, read_text, reason, shown, write_text
from adatad.spec import Spec
from adatad.training.trackers import Setting

OLDEST = "0.31"
"""Version of the package wandb, as setup.cfg has it: earlier ones can't log in without a question."""
INIT_SECONDS = 30
"""Time to reach the service at the start, in the thread; a run that ends before it is over waits for it."""
FINISH_SECONDS = 20
"""Time that the end of a run waits for what isn't sent yet; it lies on the disk all the same."""
MAX_WAITING = 10_000
"""Calls that wait for Weights & Biases; later ones are lost to it."""
MAX_ID_CHARACTERS = 64
MAX_REASON_CHARACTERS = 200
WITHOUT_NETWORK = ("offline", "dryrun", "disabled")

Action = Callable[[Any], object]
Say = Callable[[str], None]


class WandbError(UserError):
    """Weights & Biases can't be used as the spec asks; the message names the key and what to do."""


def check_wandb(spec: Spec) -> None:
    """Raise WandbError if `logging.wandb` is set and its package or its key is missing, before anything is trained."""
    if spec.logging.wandb is None:
        return
    # A folder wandb/ of earlier runs, in the folder that a command is started in, looks like a package without code.
    found = find_spec("wandb")
    if found is None or found.origin is None:
        raise WandbError(
            "logging.wandb: the package wandb isn't installed; pip install 'adatad[wandb]', or --set logging.wandb=null"
        )
    # Importing and reading settings can fail in many ways, all of which concern the user's installation or key.
    try:
        import wandb

        settings = wandb.setup(wandb.Settings(silent=True)).settings
        # prompt=False: asks for nothing on a terminal. verify=False: asks nobody on the network.
        ready = settings.mode in WITHOUT_NETWORK or wandb.login(prompt=False, verify=False)
    except Exception as error:
        # One line, whatever a library wrote: its errors of settings have several.
        why = shown(" ".join(str(error).split()) or type(error).__name__, MAX_REASON_CHARACTERS)
        raise WandbError(
            f"logging.wandb: Weights & Biases can't be used: {why}; mend that (wandb {OLDEST} or later is needed), or "
            "--set logging.wandb=null"
        ) from error
    if not ready:
        raise WandbError(
            "logging.wandb: there is no key for Weights & Biases: run `wandb login` once, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to send nothing"
        )


class WeightsAndBiases:
    """Tracker that hands all to a thread, which alone talks to Weights & Biases: neither a slow network nor a failing
    service holds training up.

    name: of the run, such as demo/tia/id0. warn, tell: log a line.
    """

    def __init__(self, project: str, run_directory: Path, name: str, warn: Say, tell: Say):
        self._folder, self._name, self._project = run_directory, name, project
        self._say_warning, self._tell = warn, tell
        self._waiting: queue.Queue[Action | None] = queue.Queue(MAX_WAITING)
        self._has_warned = False
        self._thread: threading.Thread | None = None

    def start(self, hyperparameters: dict[str, Setting], figures: Sequence[str], spec_yaml: str) -> None:
        """Begin the run, or go on with it, in the thread."""
        config = {**hyperparameters, "spec": yaml.safe_load(spec_yaml)}
        # A daemon: a process whose network hangs can end.
        self._thread = threading.Thread(target=self._work, args=(config,), name="wandb", daemon=True)
        self._thread.start()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add a point to each curve."""
        self._put(lambda run: run.log({**values, "step": step}))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Show an image, uint8 [height, width, 3]."""
        self._put(lambda run: run.log({name: _wandb().Image(image), "step": step}))

    def histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """Add a distribution of numbers."""
        self._put(lambda run: run.log({name: _wandb().Histogram(list(values)), "step": step}))

    def final(self, figures: dict[str, float]) -> None:
        """Write the figures that the run has ended with into its summary."""
        self._put(lambda run: run.summary.update(figures))

    def close(self) -> None:
        """Wait for what isn't written and sent yet, at most twice FINISH_SECONDS."""
        if self._thread is None:
            return
        with suppress(queue.Full):
            self._waiting.put(None, timeout=FINISH_SECONDS)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._warn(f"takes too long; `wandb sync` sends what lies in {shown(self._folder / 'wandb')}")

    def _put(self, action: Action) -> None:
        try:
            self._waiting.put_nowait(action)
        except queue.Full:
            self._warn("doesn't keep up: it gets no more than it can take")

    def _work(self, config: dict[str, Any]) -> None:
        """Hand over one action after the other until None comes; runs in the thread."""
        run = None
        try:
            run = self._begin(config)
        except Exception as error:
            self._warn(f"can't be reached ({reason(error)}); it is kept for `wandb sync`, if it can be")
            # What waits and what comes goes into a file at least.
            with suppress(Exception):
                run = self._begin(config, mode="offline")
        # Without a run the queue is still emptied, so that the pictures in it take no memory.
        while (action := self._waiting.get()) is not None:
            self._try(action, run)
        self._try(lambda run: run.finish(), run)

    def _begin(self, config: dict[str, Any], mode: str | None = None) -> Any:
        """Return the run, begun or resumed. mode: None for the user's own."""
        wandb = _wandb()
        run = wandb.init(
            project=self._project,
            id=self._run_id(),
            name=self._name,
            group=self._name.rpartition("/")[0],
            dir=str(self._folder),
            config=config,
            resume="allow",
            mode=mode,
            # Its own figures alone: no copy of the terminal, the code or the repository's state. create_new: a run that
            # the calling program has begun for itself goes on.
            settings=wandb.Settings(
                console="off", silent=True, disable_code=True, save_code=False, disable_git=True,
                init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, reinit="create_new", allow_val_change=True,
            ),
        )  # fmt: skip
        # Not its own counter, which never goes back: a resumed run repeats the steps after its checkpoint.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        where = f"offline, `wandb sync` sends it from {shown(self._folder / 'wandb')}" if run.offline else run.url
        self._tell(f"Weights & Biases: {where}")
        return run

    def _run_id(self) -> str:
        """Return the id that this run directory has, which a resumed run finds again."""
        path = self._folder / "wandb" / "id.txt"
        try:
            known = read_text(path).strip()
        except FileError:
            known = ""
        if known.isascii() and known.isalnum() and len(known) <= MAX_ID_CHARACTERS:
            return known
        # Random, not a hash of the path: --force begins another run at the same place.
        new = uuid.uuid4().hex[:12]
        try:
            path.parent.mkdir(exist_ok=True)
            write_text(path, new + "\n")
        except (OSError, FileError) as error:
            self._warn(f"may show a resumed run as another one: {shown(path)} can't be written ({reason(error)})")
        return new

    def _try(self, action: Action, run: Any) -> None:
        if run is None:
            return
        try:
            action(run)
        except Exception as error:
            # Whatever its service and its network raise: training needs neither.
            self._warn(f"didn't take what it was given ({reason(error)})")

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._say_warning(f"Weights & Biases {what}; training goes on, metrics.jsonl has all figures")


def _wandb() -> Any:
    """Return the package, which only runs that ask for it import."""
    import wandb

    return wandb
