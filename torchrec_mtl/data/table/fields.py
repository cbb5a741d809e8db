"""What all fields of a `Table` have.

A declared field says what to read, what to count in the training rows, what to keep of these counts, and how to encode
values with it.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.columns import Role, read_column, read_values
from torchrec_mtl.data.table.parts import Part, Values
from torchrec_mtl.errors import InputError, check_at_least, check_choice

MISSING = 0  # id of no value, of all kinds but `Integers`
DAY = 24 * 3600 * 10**6  # microseconds
Fitted = dict[str, Any]


@dataclass(frozen=True)
class AgeInDays:
    """The age of a time at the row's time, in days: ``Bins("account_age", column=AgeInDays("created"))``.

    Args:
        column: column of times; a time after the row's gives a negative age.
    """

    column: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class DeclaredField:
    """What all fields have.

    Args:
        name: name of the field.
        column: raw column to read; the field's name by default.
    """

    name: str
    _: KW_ONLY
    column: str | AgeInDays | None = None

    role: ClassVar[Role]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name:
            raise InputError(f"`name` (={self.name!r}) of a field must be a non-empty string")
        if isinstance(self.column, AgeInDays) and self.role != "number":
            raise self._error("column", f"must be a column: a {type(self).__name__} has no numbers")

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that the field reads."""
        column = self.column or self.name
        return (column.column if isinstance(column, AgeInDays) else column,)

    def read(self, part: Part, time: Array | None, unit: str | None) -> Values:
        """Returns the field's values, and marks the rows of ``part`` that have none; ``time`` is that of the rows."""
        column = self.column or self.name
        if isinstance(column, AgeInDays):
            return Values(_ages(read_column(part, column.column, "time", unit=unit), time))
        return Values(read_column(part, column, self.role, unit=unit))

    def to_count(self, values: pa.Array) -> pa.Array | None:
        """Returns what is to be counted in the training rows; None if there is nothing to fit."""
        return None

    def fit(self, counts: pl.DataFrame) -> Fitted:
        """Returns what encoding needs, given the counts of the training rows: ``value`` and ``count``."""
        return {}

    def _error(self, argument: str, rule: str) -> InputError:
        return InputError(f"`{argument}` (={getattr(self, argument)!r}) of field {self.name!r} {rule}")


@dataclass(frozen=True)
class IdField(DeclaredField):
    """A field of ids, with an embedding table.

    Args:
        separator: text between the values of a list that is written as a string; columns of lists need none.
        weights: column of lists with a weight for each id; only for lists.
        shares: name of another field of the same kind, whose encoder and table this field uses, as that is declared.
        embedding_dim: dimension of the table; by default that of the run.
        pooling: how a list's embeddings are joined, "sum" or "mean"; for all fields of one table.
        init_std: standard deviation of the table's first values; by default that of the run.
    """

    _: KW_ONLY
    separator: str | None = None
    weights: str | None = None
    shares: str | None = None
    embedding_dim: int | None = None
    pooling: Literal["sum", "mean"] = "sum"
    init_std: float | None = None

    role: ClassVar[Role] = "key"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"pooling` of field `{self.name}", self.pooling, ("sum", "mean"))
        if self.separator == "":
            raise self._error("separator", "must not be empty")
        for argument, least in (("embedding_dim", 1), ("init_std", 0)):
            if getattr(self, argument) is not None:
                check_at_least(least, **{f"{argument}` of field `{self.name}": getattr(self, argument)})

    def read(self, part: Part, time: Array | None, unit: str | None) -> Values:
        if isinstance(self.column, AgeInDays):
            return super().read(part, time, unit)
        column = self.column or self.name
        return read_values(part, column, self.role, unit=unit, separator=self.separator)

    def checked(self, values: Values, part: Part, column: str) -> Values:
        """Returns ``values`` of ``column``, and marks the rows of ``part`` whose values have no ids."""
        return values

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, *((self.weights,) if self.weights else ()))

    def num_embeddings(self, fitted: Fitted) -> int:
        """Returns the number of ids."""
        raise NotImplementedError

    def encode(self, values: pa.Array, fitted: Fitted) -> Array:
        """Returns ids [V] of values [V]."""
        raise NotImplementedError


def _ages(times: pa.Array, now: Array | None) -> pa.Array:
    if now is None:
        raise InputError("`time` must name the table's time column, which `AgeInDays` needs")
    known = times.to_numpy(zero_copy_only=False).astype(np.float64)
    return pa.array((now - known) / DAY, from_pandas=True)  # NaN becomes null
