"""Counts of values, added up part by part; memory follows the number of distinct values."""

from typing import Any

import polars as pl
import pyarrow as pa

NUM_PENDING = 2**20  # rows of counts collected before they are added up


class Counts:
    """How often each value of a column occurs.

    Example::

        >>> counts = Counts()
        >>> counts.add(pa.array(["b", "a", "b", None]))
        >>> counts.table().rows()
        [('b', 2), ('a', 1)]
    """

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []
        self._num_pending = 0

    def add(self, values: pa.Array) -> None:
        """Counts ``values``, each once; null is not counted."""
        known = values.drop_null()
        if len(known):  # without values, a column may be of any type
            self.add_table(counted(known))

    def add_table(self, counts: pl.DataFrame) -> None:
        """Adds counts: columns ``value`` and ``count``; a value may be there several times."""
        self._parts.append(counts)
        self._num_pending += counts.height
        if self._num_pending > max(NUM_PENDING, 2 * self._parts[0].height):
            self._parts, self._num_pending = [self._sum()], 0

    def table(self) -> pl.DataFrame:
        """Returns ``value`` and ``count``, most frequent first; among equals, the smaller value first."""
        return self._sum().sort(["count", "value"], descending=[True, False])

    def _sum(self) -> pl.DataFrame:
        if not self._parts:
            return pl.DataFrame(schema={"value": pl.Null, "count": pl.Int64})
        return pl.concat(self._parts).group_by("value").agg(pl.col("count").sum())


def counted(values: Any) -> pl.DataFrame:
    """Returns ``value`` and ``count`` of an array of values."""
    return pl.Series("value", values).to_frame().group_by("value").agg(pl.len().cast(pl.Int64).alias("count"))
