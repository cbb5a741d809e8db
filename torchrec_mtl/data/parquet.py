"""Reads a parquet file as checked slabs of rows."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mtl.data.checks import Source, reject
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.data.split import Split
from torchrec_mtl.errors import InputError

SLAB_ROWS = 2**16  # rows in memory at once
LIST_SLAB_ROWS = 2**13  # the same for rows with lists


def read_slabs(file: Path, schema: Schema, num_rows: int | None) -> Iterator[Split]:
    """Yields all rows in order, one slab at a time.

    Raises:
        InputError: as `read_split` does; also if the file has no row, or not ``num_rows`` rows, unless that is None.
    """
    check_is_file(file)
    opened = open_file(file, schema.columns)
    total = opened.metadata.num_rows
    if num_rows not in (None, total):
        raise InputError(f"{file}: has {total} rows, but its schema says {num_rows}")
    if not total:
        raise InputError(f"{file}: must have at least one row")
    first, has_lists = 0, any(field.multi_valued for field in schema.fields)
    for table in read_tables(file, opened, schema.columns, LIST_SLAB_ROWS if has_lists else SLAB_ROWS):
        yield to_split(Source(str(file), first), table, schema)
        first += table.height


def count_rows(file: Path) -> int:
    """Returns the number of rows of a parquet file."""
    check_is_file(file)
    return int(open_file(file, []).metadata.num_rows)


def check_is_file(file: Path) -> None:
    """Raises `InputError` if ``file`` is a folder, such as Spark writes."""
    if file.is_dir():
        raise InputError(f"{file}: must be one parquet file, not a folder: join its parts into one, or stream them")


def to_split(source: Source, table: pl.DataFrame, schema: Schema) -> Split:
    """Returns the rows of a table with ``schema.columns``, checked."""
    tasks = schema.tasks
    return Split(
        schema,
        ids={field.name: _ids(source, field, table) for field in schema.fields},
        labels=floats(source, table, tasks.label_columns),
        dense=floats(source, table, schema.dense),
        weights=label_weights(source, table, tasks.weight_columns),
        groups=None if schema.group is None else values_without_null(source, table[schema.group]),
        source=source,
    )


def label_weights(source: Source, table: pl.DataFrame, columns: Sequence[str | None]) -> Array | None:
    """Returns the weights [N, T], 1 for a task without a weight column; None if no task has one."""
    if not any(columns):
        return None
    ones = np.ones((len(table), 1), np.float32)
    return np.hstack([ones if column is None else floats(source, table, [column]) for column in columns])


def open_file(name: object, columns: Sequence[str], file: Any = None, **options: Any) -> pq.ParquetFile:
    """Opens a parquet file that must have ``columns``.

    Args:
        name: path, and name in error messages.
        columns: names of columns.
        file: the opened file; by default the one at the path ``name``.
        options: further arguments of `pyarrow.parquet.ParquetFile`.
    """
    with reading(name):
        opened = pq.ParquetFile(name if file is None else file, page_checksum_verification=True, **options)
        names = opened.schema_arrow.names
    for column in columns:
        if names.count(column) != 1:
            times = f"is there {names.count(column)} times" if column in names else "is missing"
            raise InputError(f"{name}: column {column!r} {times}")
    return opened


def read_tables(
    name: object, opened: pq.ParquetFile, columns: Sequence[str], num_rows: int, **options: Any
) -> Iterator[pl.DataFrame]:
    """Yields the rows in order, as `read_batches` does."""
    batches = read_batches(opened, num_rows, columns=columns, **options)
    while True:
        with reading(name):
            batch = next(batches, None)
            if batch is None:
                return
            table = pl.from_arrow(batch.select(columns))  # "a" has also read a column "a.b"
        assert isinstance(table, pl.DataFrame)
        fixed = [column.name for column in table if isinstance(column.dtype, pl.Array)]
        if table.height:
            yield table.with_columns(pl.col(fixed).arr.to_list()) if fixed else table
        del batch, table  # before the next rows are read


def read_batches(
    opened: pq.ParquetFile, num_rows: int, row_groups: Iterable[int] | None = None, **options: Any
) -> Iterator[pa.RecordBatch]:
    """Yields the rows in order, at most ``num_rows`` at a time, in the memory of a few row groups.

    Args:
        opened: the file.
        num_rows: largest number of rows of a batch.
        row_groups: numbers of the row groups to read; all by default.
        options: further arguments of `pyarrow.parquet.ParquetFile.iter_batches`.
    """
    block: list[int] = []  # Arrow keeps the pages of all row groups that one call names until the last is read
    rows = 0
    for number in range(opened.num_row_groups) if row_groups is None else row_groups:
        block.append(number)
        rows += opened.metadata.row_group(number).num_rows
        if rows >= num_rows:
            yield from opened.iter_batches(num_rows, row_groups=block, **options)
            block, rows = [], 0
    if block:
        yield from opened.iter_batches(num_rows, row_groups=block, **options)


@contextmanager
def reading(file: object) -> Iterator[None]:
    """Turns the errors of a damaged file into `InputError`."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: must be a whole parquet file, but cannot be read ({reason})") from error


def _ids(source: Source, field: Field, table: pl.DataFrame) -> Array | tuple[Array, ...]:
    column = table[field.name]
    _check_kind(source, column, field.multi_valued, "ids")
    if not field.multi_valued:
        return values_without_null(source, column)
    offsets = _offsets(source, column)
    ids = values_without_null(source, _flatten(column), offsets)
    if field.weight_column is None:
        return ids, offsets
    weights = table[field.weight_column]
    _check_kind(source, weights, True, "weights")
    differ = np.diff(_offsets(source, weights)) != np.diff(offsets)
    reject(source, weights.name, differ, f"must have as many weights as {field.name!r} has ids", differ)
    values = _flatten(weights)
    if not values.dtype.is_numeric():
        raise InputError(f"{source}: column {weights.name!r} must hold numbers, not {values.dtype}")
    return ids, offsets, values_without_null(source, values, offsets)


def _check_kind(source: Source, column: pl.Series, lists: bool, content: str) -> None:
    if isinstance(column.dtype, pl.List) != lists:
        rule = f"lists of {content}" if lists else "one id a row"
        raise InputError(f"{source}: column {column.name!r} must hold {rule}, not {column.dtype}")


def _offsets(source: Source, column: pl.Series) -> Array:
    _check_no_null(source, column)
    return np.concatenate([[0], column.list.len().cast(pl.Int64).cum_sum().to_numpy()])


def _flatten(lists: pl.Series) -> pl.Series:
    return lists.filter(lists.list.len() > 0).explode()


def values_without_null(source: Source, column: pl.Series, offsets: Array | None = None) -> Array:
    _check_no_null(source, column, offsets)
    return column.to_numpy()


def _check_no_null(source: Source, column: pl.Series, offsets: Array | None = None) -> None:
    null = column.is_null().to_numpy()
    reject(source, column.name, null, "must not be null", null, offsets)


def floats(source: Source, table: pl.DataFrame, columns: Sequence[str]) -> Array:
    """Returns columns as float32 [N, columns], with NaN for null."""
    for column in columns:
        if not (table[column].dtype.is_numeric() or table[column].dtype == pl.Boolean):
            raise InputError(f"{source}: column {column!r} must hold numbers, not {table[column].dtype}")
    floats = [table[column].cast(pl.Float32).to_numpy() for column in columns]
    return np.stack(floats, axis=1) if floats else np.empty((table.height, 0), np.float32)
