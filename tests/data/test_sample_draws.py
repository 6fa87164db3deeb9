"""Random draws are functions of (seed, epoch, sample, purpose) and of nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adatad.data.rng import epoch_order, generator, model_key

numbers = st.integers(0, 2**31)


@given(numbers, numbers, numbers)
def test_each_part_of_an_address_counts(seed, epoch, sample):
    def first(*address: object) -> int:
        return int(generator(*address).integers(2**63))

    address = (seed, epoch, sample, "window")
    value = first(*address)
    assert first(*address) == value
    others = [(seed + 1, *address[1:]), (seed, epoch + 1, sample, "window"), (seed, epoch, sample + 1, "window")]
    assert value not in [first(*other) for other in [*others, (seed, epoch, sample, "order")]]


def test_draws_do_not_depend_on_what_was_drawn_before():
    addresses = [(seed, epoch, sample) for seed in (0, 42) for epoch in range(3) for sample in range(5)]
    forwards = [generator(*address, "window").random(3).tolist() for address in addresses]
    np.random.default_rng(1).random(100)
    np.random.seed(7)
    backwards = [generator(*address, "window").random(3).tolist() for address in reversed(addresses)]
    assert forwards == backwards[::-1]


def test_draws_are_those_of_earlier_versions():
    """A checkpoint of an older version resumes exactly only if these stay."""
    assert epoch_order(42, 3, 6).tolist() == [1, 2, 5, 0, 4, 3]
    assert model_key(42, 3, 5) == 1723282704640545483
    assert generator(42, 3, 5, "window").integers(1000, size=3).tolist() == [4, 281, 426]


@given(numbers, st.integers(0, 1000), st.integers(0, 200))
def test_an_epoch_visits_every_sample_once(seed, epoch, count):
    order = epoch_order(seed, epoch, count)
    assert sorted(order.tolist()) == list(range(count))
    assert (epoch_order(seed, epoch, count) == order).all()


def test_epochs_have_orders_of_their_own():
    assert len({tuple(epoch_order(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}) == 25


@given(numbers, numbers, numbers)
def test_keys_are_64_bits_and_not_negative(seed, epoch, sample):
    assert 0 <= model_key(seed, epoch, sample) < 2**63
