"""A run's tensors on their way from parts on the disk into the engine and the averages."""

from types import SimpleNamespace

import torch

from adatad.training import state_io


class Elsewhere:
    """A DTensor over a copy: of parts in host memory beside a GPU, torch makes such ones."""

    def __init__(self, part: torch.Tensor):
        self.there = part.clone()

    def to_local(self) -> torch.Tensor:
        return self.there


def test_what_was_read_reaches_parts_that_wait_on_the_host(monkeypatch):
    masters, averages = {"w": torch.zeros(3)}, {"w": torch.zeros(3)}
    taken = {}
    engine = SimpleNamespace(
        saves_shards=True,
        master_parameters=lambda: masters,
        moments=dict,
        as_dtensors=lambda parts: {name: Elsewhere(part) for name, part in parts.items()},
        load=lambda masters, moments: taken.update(masters=masters, moments=moments),
    )
    stored = {"parameters/w": 1.0, "ema/w": 2.0, "optimizer/w/exp_avg": 3.0, "optimizer/w/exp_avg_sq": 4.0}

    def read_parts(folder, into):
        for name, value in stored.items():
            into[name].there.fill_(value)

    monkeypatch.setattr(state_io, "read_own_shards", read_parts)
    ema = SimpleNamespace(averages=averages, load=taken.setdefault("averages", {}).update)
    state_io.load_shards(SimpleNamespace(engine=engine, ema=ema), None, optimizer_step=7.0)
    found = (taken["masters"]["w"], taken["averages"]["w"], *(taken["moments"]["w"][key] for key in state_io.MOMENTS))
    assert [float(tensor[0]) for tensor in found] == [1.0, 2.0, 3.0, 4.0]
    assert float(taken["moments"]["w"]["step"]) == 7.0
