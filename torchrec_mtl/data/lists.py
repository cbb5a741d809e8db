"""Arrays, and lists of ids in arrays."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from torchrec_mtl.errors import InputError

Array: TypeAlias = NDArray[Any]


def as_array(name: str, values: Any, dtype: Any = None) -> Array:
    """Returns ``values`` as an array, of a type of numbers if there is a ``dtype``.

    Raises:
        InputError: if they are no such numbers, or rows of several lengths.

    Example::

        >>> as_array("labels", [[0, 1], ["click", 1]], np.float32)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `labels` (a list) must be an array of numbers
    """
    try:
        array = np.asarray(values, dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"`{name}` (a {type(values).__name__}) must be an array of numbers") from error
    if dtype is not None and array.dtype.kind not in "biuf":
        raise InputError(f"`{name}` (a {type(values).__name__}) must be an array of numbers")
    return array


def find(known: Array, ids: Array) -> Array:
    """Returns the positions of ``ids`` in the sorted array ``known``; -1 where an id is absent.

    Example::

        >>> find(np.array([3, 5]), np.array([5, 4, 3])).tolist()
        [1, -1, 0]
    """
    if not len(known):
        return np.full(len(ids), -1)
    positions = np.minimum(known.searchsorted(ids), len(known) - 1)
    return np.where(known[positions] == ids, positions, -1)


@dataclass(frozen=True)
class Lists:
    """N lists of ids, one after the other: values [V], offsets [N + 1] and optionally weights [V]."""

    values: Array
    offsets: Array
    weights: Array | None = None

    def merge_repeats(self) -> tuple["Lists", Array]:
        """Returns the lists that differ from the list before, and the number of each row's list, int64 [N].

        In many logs the rows of a user lie together, and repeat the user's history.

        Example::

            >>> values, offsets = np.array([3, 4, 3, 4, 5]), np.array([0, 2, 4, 5])
            >>> lists, numbers = Lists(values, offsets).merge_repeats()
            >>> lists.values.tolist(), numbers.tolist()
            ([3, 4, 5], [0, 0, 1])
        """
        lengths = np.diff(self.offsets)
        repeats = np.concatenate([[False], lengths[1:] == lengths[:-1]])  # candidates: as long as the list before
        rows = np.flatnonzero(repeats)
        positions = concatenate_ranges(self.offsets[rows], lengths[rows])
        before = positions - np.repeat(lengths[rows], lengths[rows])
        differ = self.values[positions] != self.values[before]
        if self.weights is not None:
            differ |= self.weights[positions] != self.weights[before]
        repeats[np.repeat(rows, lengths[rows])[differ]] = False
        kept = np.repeat(~repeats, lengths)
        offsets = np.concatenate([[0], lengths[~repeats].cumsum()])
        weights = None if self.weights is None else self.weights[kept]
        return Lists(self.values[kept], offsets, weights), (~repeats).cumsum() - 1


def concatenate_ranges(starts: Array, lengths: Array) -> Array:
    """Concatenates the ranges ``start .. start + length - 1``, int64.

    Example::

        >>> concatenate_ranges(np.array([5, 1]), np.array([2, 3])).tolist()
        [5, 6, 1, 2, 3]
    """
    starts_here = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - starts_here, lengths)


def to_lists(values: Array, offsets: Array) -> pl.Series:
    """Returns a series of the N lists with values [V] and offsets [N + 1]."""
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values)))


def from_lists(lists: pl.Series) -> tuple[Array, Array]:
    """Returns the values [V] and offsets [N + 1] of a series of N lists.

    Example::

        >>> values, offsets = from_lists(pl.Series([[3, 1], [], [5]]))
        >>> values.tolist(), offsets.tolist()
        ([3, 1, 5], [0, 2, 2, 3])
    """
    array = lists.rechunk().to_arrow()
    offsets = array.offsets.to_numpy()
    return array.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]
