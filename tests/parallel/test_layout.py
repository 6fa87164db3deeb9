"""What an engine keeps on each of two ranks is what its partition rule says."""

import pytest
from ranks import run_ranks

from adatad.parallel.layout import held_bytes

ENGINES = ["ddp", "zero1", "zero2", "zero3", "fsdp", "fairscale"]


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def local_bytes(parameter) -> int:
    """Return the bytes of this rank's part of a frozen parameter."""
    from adatad.memory.weights import local_of

    return bytes_of([getattr(parameter, "ds_tensor", local_of(parameter))])


def held_on_a_rank(spec_file: str, engine: str) -> dict[str, int]:
    """After two steps; and the bytes of the whole model."""
    from steps import Run

    from adatad.parallel.processes import start_processes

    with start_processes() as processes:
        run = Run(spec_file, ["train.global_batch=2", f"parallel.engine={engine}"], processes)
        run.train(2)
        parts = run.parts
        frozen = [p for n, p in parts.model.named_parameters() if not p.requires_grad]
        numbers = {name: shape.numel() for name, shape in parts.shapes.items()}
        trained = sum(numbers[name] for name in parts.trained)
        moments = [t for m in parts.engine.moments().values() for key, t in m.items() if key != "step"]
        return {
            "frozen": sum(map(local_bytes, frozen)),
            "masters": bytes_of(parts.engine.master_parameters().values()),
            "optimizer": bytes_of(moments),
            "average": bytes_of(parts.ema.averages.values()),
            "all frozen": 4 * (sum(numbers.values()) - trained),
            "all trained": 4 * trained,
        }


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_hold_what_the_rule_says(engine, tiny_spec):
    ranks = run_ranks(2, held_on_a_rank, str(tiny_spec), engine)
    seen = {key: sum(rank[key] for rank in ranks) / 2 for key in ranks[0]}
    rule = held_bytes(engine, 2, seen["all frozen"], seen["all trained"])
    for key in ("frozen", "optimizer", "average"):
        # Parts are padded to equal lengths, which counts in a tiny model.
        assert getattr(rule, key) == pytest.approx(seen[key], rel=0.05), key
    share = seen["all trained"] / (1 if engine == "ddp" else 2)
    assert seen["masters"] == pytest.approx(share, rel=0.05)
