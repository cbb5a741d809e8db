"""Counts of values, added up part by part; memory follows the number of distinct values."""

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

    def add(self, values: pa.Array) -> None:
        """Counts ``values``, each once; null is not counted."""
        column = pl.Series("value", values.drop_null())
        if len(column):  # without values, a column may be of any type
            self.add_table(column.to_frame().group_by("value").agg(pl.len().cast(pl.Int64).alias("count")))

    def add_table(self, counts: pl.DataFrame) -> None:
        """Adds counts: columns ``value`` and ``count``."""
        self._parts.append(counts)
        if sum(part.height for part in self._parts[1:]) > max(NUM_PENDING, self._parts[0].height):
            self._parts = [self._sum()]

    def table(self) -> pl.DataFrame:
        """Returns ``value`` and ``count``, most frequent first; among equals, the smaller value first."""
        return self._sum().sort(["count", "value"], descending=[True, False])

    def _sum(self) -> pl.DataFrame:
        if not self._parts:
            return pl.DataFrame(schema={"value": pl.Null, "count": pl.Int64})
        return pl.concat(self._parts).group_by("value").agg(pl.col("count").sum())
