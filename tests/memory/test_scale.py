"""What is weighed doesn't depend on when Python collects garbage."""

import gc

import torch

from adatad.memory.scale import META, Scale


def test_no_garbage_of_earlier_pieces_is_freed_while_something_is_weighed():
    scale = Scale()
    assert gc.isenabled()
    with scale.on(), scale.weigh() as cost:
        assert not gc.isenabled()
        kept = torch.empty(10, device=META)
    assert gc.isenabled()
    assert cost.kept == kept.nbytes
