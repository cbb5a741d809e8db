"""Numbers that a row's own numbers decide: hashes, and draws that do not depend on the order of reading."""

import numpy as np

from torchrec_mtl.data.lists import Array

SAMPLE, VALID = range(2)  # streams of random numbers under one seed
VALID_SHARE = 0.1


def mix(values: Array, salt: int) -> Array:
    """Integers scattered over uint64, as SplitMix64 does it; another ``salt`` scatters them otherwise."""
    with np.errstate(over="ignore"):
        hashed = values.astype(np.uint64) + np.uint64(salt + 1) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            hashed = (hashed ^ (hashed >> np.uint64(shift))) * np.uint64(factor)
    return hashed


def uniform(numbers: Array, seed: int, stream: int) -> Array:
    """A number in [0, 1) for each of ``numbers``; another seed or stream draws others."""
    return (mix(numbers, 2 * seed + stream) >> np.uint64(11)) / 2.0**53


def is_valid(lines: Array, seed: int) -> Array:
    """Whether the row of each line is for valid rather than train, bool."""
    return uniform(lines, seed, VALID) < VALID_SHARE
