"""Random numbers of the data path: each a pure function of (seed, epoch, sample, purpose).

They never depend on rank, worker or step count, so that one process and many, an uninterrupted run and a resumed one,
see the same crops in the same order.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, epoch: int, sample: int, purpose: str) -> np.random.Generator:
    """Return a generator for one `purpose` of one sample in one epoch."""
    # crc32, not hash(): Python salts hashes of strings anew in every process.
    return np.random.default_rng([seed, epoch, sample, zlib.crc32(purpose.encode())])


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order in which an epoch visits `count` samples: int64 [count]."""
    # A draw of its own: no sample's generator has this purpose.
    return generator(seed, epoch, 0, "order").permutation(count)


def model_key(seed: int, epoch: int, sample: int) -> int:
    """Return the key of the model's own random numbers (stochastic depth, dropout) for a sample: an int64 >= 0."""
    return int(generator(seed, epoch, sample, "model").integers(2**63))
