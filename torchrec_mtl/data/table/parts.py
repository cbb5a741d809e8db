"""Some rows of a source, and the values of their columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import types

from torchrec_mtl.data.lists import Array
from torchrec_mtl.errors import InputError, shown


@dataclass(frozen=True)
class WrongLine:
    """A line of a CSV file that is no row.

    Args:
        row: its number as a row, counted from 0.
        expected: number of values of the header.
        found: number of values of the line.
        text: the line.
    """

    row: int
    expected: int
    found: int
    text: str

    def __str__(self) -> str:
        rule = f"must have {self.expected} values, as the header, not {self.found}"
        return f"row {self.row} (counted from 0): {rule}: {shown(repr(self.text[:60]))}"


@dataclass
class Part:
    """Some rows of a source.

    Args:
        batch: the rows, as they were read.
        source: file, or another name of the rows in messages.
        first_row: number of the first row in the source, counted from 0, without wrong lines.
        zoned: for each column of times that has been read, whether they have a time zone.
        wrong: lines of the source that are no rows, in order: at least those before the last row.

    Attributes:
        bad: for each row, whether it breaks a rule.
        reasons: column, rule and value of the first broken rule of each bad row, by its position.
    """

    batch: pa.RecordBatch
    source: str
    first_row: int = 0
    zoned: dict[str, bool] = field(default_factory=dict)
    wrong: Sequence[WrongLine] = ()
    bad: Array = field(init=False)
    reasons: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.bad = np.zeros(self.batch.num_rows, bool)

    def column(self, name: str) -> pa.Array:
        """Returns a column; dictionaries are decoded.

        Raises:
            InputError: if there is no such column, or there are several.
        """
        names = self.batch.schema.names
        if names.count(name) != 1:
            what = "is missing" if name not in names else f"is there {names.count(name)} times"
            raise InputError(f"{self.source}: column {name!r} {what}; the columns are {names}")
        return decoded(self.batch.column(names.index(name)))

    def reject(self, column: str, rows: Array, rule: str, value: Callable[[int], Any]) -> None:
        """Marks the rows at positions ``rows`` as bad; ``rule`` has ``{}`` where the value belongs."""
        for row in np.unique(rows[~self.bad[rows]]).tolist():
            self.bad[row] = True
            reason = rule.format(shown(repr(value(row))[:60]))
            self.reasons[row] = f"column {column!r}, row {self.number(row)} (counted from 0): {reason}"

    def number(self, row: int) -> int:
        """The number in the source of the row at a position, counted from 0."""
        number = self.first_row + row
        for line in self.wrong:
            if line.row > number:
                break
            number += 1
        return number

    def wrong_type(self, column: str, rule: str, found: pa.DataType) -> InputError:
        return InputError(f"{self.source}: column {column!r} must hold {rule}, not {found}")


@dataclass(frozen=True)
class Values:
    """The values of a column, one for each row, or lists of values.

    Args:
        flat: values [V], null where missing.
        offsets: offsets [N + 1] of each row's list in ``flat``; None if each row has one value.
    """

    flat: pa.Array
    offsets: Array | None = None

    def take(self, rows: Array) -> "Values":
        """Returns the values of the rows where the mask ``rows`` [N] is True."""
        if rows.all():
            return self
        offsets = None if self.offsets is None else np.concatenate([[0], np.diff(self.offsets)[rows].cumsum()])
        return Values(self.flat.filter(pa.array(self.of_rows(rows))), offsets)

    def as_lists(self) -> "Values":
        """Returns empty lists if no row has a value, whatever the type of the column; else the values."""
        if self.offsets is None and self.flat.null_count == len(self.flat):
            return Values(self.flat[:0], np.zeros(len(self.flat) + 1, np.int64))
        return self

    def first_of_rows(self, chosen: Array) -> tuple[Array, Array]:
        """Returns the rows with values of the mask ``chosen`` [V], and the position of the first such value of each."""
        positions = np.flatnonzero(chosen)
        rows = positions if self.offsets is None else np.searchsorted(self.offsets, positions, side="right") - 1
        rows, first = np.unique(rows, return_index=True)
        return rows, positions[first]

    def of_rows(self, rows: Array) -> Array:
        """Returns the mask [V] of the values that belong to the rows where the mask ``rows`` [N] is True."""
        return rows if self.offsets is None else np.repeat(rows, np.diff(self.offsets))


def decoded(array: pa.Array) -> pa.Array:
    """Values as one array, without a dictionary."""
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_decode() if types.is_dictionary(array.type) else array


def as_batch(rows: pl.DataFrame) -> pa.RecordBatch:
    """Returns rows, or no rows, as one record batch.

    Example::

        >>> as_batch(pl.DataFrame({"item": [3, 5]}).clear()).num_rows
        0
    """
    table = rows.to_arrow()
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)
