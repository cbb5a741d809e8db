"""Read a parquet file as checked slabs of rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.checks import Source, reject
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.data.split import Split
from torchrec_mtl.errors import InputError

SLAB = 2**16  # rows in memory at once, or a part of that where they have lists
LISTS_PART = 8


def read_slabs(file: Path, schema: Schema, num_rows: int | None) -> Iterator[Split]:
    """All rows in order, a slab at a time.

    Raises:
        InputError: see `read_split`; and if there are not ``num_rows`` rows, where that is known, or none.
    """
    rows, total = _scan(file, schema.columns)
    if num_rows not in (None, total):
        raise InputError(f"{file}: has {total} rows, but its schema says {num_rows}")
    if not total:
        raise InputError(f"{file}: must have at least one row")
    first, has_lists = 0, any(field.multi_valued for field in schema.fields)
    for table in _batches(file, rows, SLAB // LISTS_PART if has_lists else SLAB):
        yield _slab(Source(str(file), first), table, schema)
        first += table.height


def count_rows(file: Path) -> int:
    return pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()


def _slab(source: Source, table: pl.DataFrame, schema: Schema) -> Split:
    tasks = schema.tasks
    return Split(
        schema,
        ids={field.name: _ids(source, field, table) for field in schema.fields},
        labels=_floats(source, table, tasks.label_columns),
        dense=_floats(source, table, schema.dense),
        weights=_weights(source, table, tasks.weight_columns),
        groups=None if schema.group is None else _present(source, table[schema.group]),
        source=source,
    )


def _weights(source: Source, table: pl.DataFrame, columns: Sequence[str | None]) -> Array | None:
    """A column a task, 1 for a task without one; None where no task has any."""
    if not any(columns):
        return None
    ones = np.ones((len(table), 1), np.float32)
    return np.hstack([ones if column is None else _floats(source, table, [column]) for column in columns])


def _scan(file: Path, columns: Sequence[str]) -> tuple[pl.LazyFrame, int]:
    rows = pl.scan_parquet(file, glob=False)
    try:
        present = rows.collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _unreadable(file, error) from error
    for column in columns:
        if column not in present:
            raise InputError(f"{file}: column {column!r} is missing")
    return rows.select(columns), _collect(file, rows.select(pl.len())).item()


def _batches(file: Path, rows: pl.LazyFrame, num_rows: int) -> Iterator[pl.DataFrame]:
    """The rows in order, about ``num_rows`` at a time."""
    batches = rows.collect_batches(chunk_size=num_rows, maintain_order=True)
    while True:
        try:
            batch = next(batches, None)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise _unreadable(file, error) from error
        if batch is None:
            return
        if batch.height:
            yield batch


def _collect(file: Path, rows: pl.LazyFrame) -> pl.DataFrame:
    try:
        return rows.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: BaseException) -> InputError:
    reason = str(error).splitlines()[0]
    return InputError(f"{file}: must be a whole parquet file, but cannot be read ({reason})")


def _ids(source: Source, field: Field, table: pl.DataFrame) -> Array | tuple[Array, ...]:
    column = table[field.name]
    _check_kind(source, column, field.multi_valued, "ids")
    if not field.multi_valued:
        return _present(source, column)
    offsets = _offsets(source, column)
    ids = _present(source, _values(column), offsets)
    if field.weight_column is None:
        return ids, offsets
    weights = table[field.weight_column]
    _check_kind(source, weights, True, "weights")
    other = np.diff(_offsets(source, weights)) != np.diff(offsets)
    reject(source, weights.name, other, f"must have as many weights as {field.name!r} has ids", other)
    values = _values(weights)
    if not values.dtype.is_numeric():
        raise InputError(f"{source}: column {weights.name!r} must hold numbers, not {values.dtype}")
    return ids, offsets, _present(source, values, offsets)


def _check_kind(source: Source, column: pl.Series, lists: bool, what: str) -> None:
    if isinstance(column.dtype, pl.List) != lists:
        wanted = f"lists of {what}" if lists else "one id a row"
        raise InputError(f"{source}: column {column.name!r} must hold {wanted}, not {column.dtype}")


def _offsets(source: Source, column: pl.Series) -> Array:
    _check_present(source, column)
    return np.concatenate([[0], column.list.len().cast(pl.Int64).cum_sum().to_numpy()])


def _values(lists: pl.Series) -> pl.Series:
    return lists.filter(lists.list.len() > 0).explode()


def _present(source: Source, column: pl.Series, offsets: Array | None = None) -> Array:
    """The column's values, none of them null."""
    _check_present(source, column, offsets)
    return column.to_numpy()


def _check_present(source: Source, column: pl.Series, offsets: Array | None = None) -> None:
    null = column.is_null().to_numpy()
    reject(source, column.name, null, "must not be null", null, offsets)


def _floats(source: Source, table: pl.DataFrame, columns: Sequence[str]) -> Array:
    """Columns as float32 [N, columns], null as NaN."""
    for column in columns:
        if not (table[column].dtype.is_numeric() or table[column].dtype == pl.Boolean):
            raise InputError(f"{source}: column {column!r} must hold numbers, not {table[column].dtype}")
    floats = [table[column].cast(pl.Float32).to_numpy() for column in columns]
    return np.stack(floats, axis=1) if floats else np.empty((table.height, 0), np.float32)
