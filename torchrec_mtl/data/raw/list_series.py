"""Lists of numbers as a Polars column, and back."""

import polars as pl
import pyarrow as pa

from torchrec_mtl.data.lists import Array


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
