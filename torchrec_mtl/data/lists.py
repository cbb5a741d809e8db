"""Lists of ids, those of successive rows that are the same kept once."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Lists:
    """N lists of ids, one after the other: values [V], offsets [N + 1] and perhaps weights [V]."""

    values: Array
    offsets: Array
    weights: Array | None = None

    def shared(self) -> tuple["Lists", Array]:
        """The lists that differ from the one before, and which of them each row has, int64 [N].

        Rows of one user lie together in many logs, and the user's histories with them.

        Example::

            >>> values, offsets = np.array([3, 4, 3, 4, 5]), np.array([0, 2, 4, 5])
            >>> lists, which = Lists(values, offsets).shared()
            >>> lists.values.tolist(), which.tolist()
            ([3, 4, 5], [0, 0, 1])
        """
        lengths = np.diff(self.offsets)
        as_before = np.concatenate([[False], lengths[1:] == lengths[:-1]])
        rows = np.flatnonzero(as_before)
        places = spans(self.offsets[rows], lengths[rows])
        before = places - np.repeat(lengths[rows], lengths[rows])
        differ = self.values[places] != self.values[before]
        if self.weights is not None:
            differ |= self.weights[places] != self.weights[before]
        as_before[np.repeat(rows, lengths[rows])[differ]] = False
        kept = np.repeat(~as_before, lengths)
        offsets = np.concatenate([[0], lengths[~as_before].cumsum()])
        weights = None if self.weights is None else self.weights[kept]
        return Lists(self.values[kept], offsets, weights), (~as_before).cumsum() - 1


def spans(starts: Array, lengths: Array) -> Array:
    """``starts[0] .. starts[0] + lengths[0] - 1``, then those of the next, int64.

    Example::

        >>> spans(np.array([5, 1]), np.array([2, 3])).tolist()
        [5, 6, 1, 2, 3]
    """
    starts_here = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - starts_here, lengths)


def to_lists(values: Array, offsets: Array) -> pl.Series:
    """Values [V] and offsets [N + 1] as N lists."""
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values)))


def from_lists(lists: pl.Series) -> tuple[Array, Array]:
    """Values and offsets.

    Example::

        >>> values, offsets = from_lists(pl.Series([[3, 1], [], [5]]))
        >>> values.tolist(), offsets.tolist()
        ([3, 1, 5], [0, 2, 2, 3])
    """
    array = lists.rechunk().to_arrow()
    offsets = array.offsets.to_numpy()
    return array.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]
