"""Hashes of numbers, and random draws that depend on a row's numbers rather than on the order of reading."""

import numpy as np

from torchrec_mtl.data.lists import Array

SAMPLE, VALID = range(2)  # streams of random numbers under one seed
VALID_SHARE = 0.1


def mix(values: Array, salt: int) -> Array:
    """Returns SplitMix64's hashes (uint64) of integers; another ``salt`` gives other hashes."""
    with np.errstate(over="ignore"):
        return finalise(values.astype(np.uint64) + np.uint64(salt + 1) * np.uint64(0x9E3779B97F4A7C15))


def finalise(numbers: Array) -> Array:
    """Applies the last steps of SplitMix64, which scatter numbers (uint64) one to one over uint64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers


def to_unit_interval(hashes: Array) -> Array:
    """Returns hashes (uint64) as numbers in [0, 1)."""
    return (hashes >> np.uint64(11)) / 2.0**53


def uniform(numbers: Array, seed: int, stream: int) -> Array:
    """Draws a number in [0, 1) for each of ``numbers``; another seed or stream draws other numbers."""
    return to_unit_interval(mix(numbers, 2 * seed + stream))


def is_valid(lines: Array, seed: int) -> Array:
    """Whether the row of each line belongs to valid rather than train, bool."""
    return uniform(lines, seed, VALID) < VALID_SHARE
