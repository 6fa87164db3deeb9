"""Frozen weights are compared between machines, and hashed by one rank of each."""

import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

import adatad.training.setup as setup
from adatad.training.checkpoint import fingerprint
from adatad.training.setup import SetupError, fingerprint_of_all

HOSTS = ("node1", "node1", "node2", "node2")


class Rank:
    """One of several threads that stand for ranks."""

    def __init__(self, rank: int, values: dict, barrier: Barrier):
        self.rank, self.values, self.barrier = rank, values, barrier

    def gather(self, value):
        if value == socket.gethostname():
            value = HOSTS[self.rank]
        self.values[self.rank] = value
        self.barrier.wait(60)
        gathered = [self.values[rank] for rank in range(len(HOSTS))]
        self.barrier.wait(60)
        return gathered


def frozen(value: float) -> nn.Module:
    model = nn.Linear(2, 2).requires_grad_(False)
    nn.init.constant_(model.weight, value)
    nn.init.zeros_(model.bias)
    return model


def on_all_ranks(models: list[nn.Module]) -> list:
    values, barrier = {}, Barrier(len(HOSTS))
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        ranks = [Rank(rank, values, barrier) for rank in range(len(HOSTS))]
        return [pool.submit(fingerprint_of_all, model, rank) for model, rank in zip(models, ranks, strict=True)]


def test_one_rank_of_each_machine_computes_it(monkeypatch):
    computed = []
    monkeypatch.setattr(setup, "fingerprint", lambda model: computed.append(model) or fingerprint(model))
    models = [frozen(0.5) for _ in HOSTS]
    found = [future.result() for future in on_all_ranks(models)]
    assert found == [fingerprint(models[0])] * len(HOSTS)
    assert sorted(map(models.index, computed)) == [0, 2]


def test_machines_with_different_files_are_refused_on_all_ranks():
    models = [frozen(0.5), frozen(0.5), frozen(0.25), frozen(0.25)]
    assert not torch.equal(models[0].weight, models[2].weight)
    for future in on_all_ranks(models):
        with pytest.raises(SetupError, match="node1, node2 have read different frozen weights"):
            future.result()
