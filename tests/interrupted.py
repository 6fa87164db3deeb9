"""Training that a signal interrupts at a chosen step, as a scheduler's warning does."""

import signal

import pytest

import adatad.training.loop as loop
from adatad.spec import Spec
from adatad.training.run import train


def train_until_interrupted(spec: Spec, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a spec until SIGUSR1 comes at the beginning of a step, which is finished and saved."""
    real = loop.train_step

    def interrupted(state, batches, at):
        if at == step:
            signal.raise_signal(signal.SIGUSR1)
        return real(state, batches, at)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        with pytest.raises(SystemExit):
            train(spec)
