"""Read a split of a prepared data set into memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.checks import reject
from torchrec_mtl.data.id_columns import Array
from torchrec_mtl.data.schema import SPLITS, Field, Schema
from torchrec_mtl.data.split import Split
from torchrec_mtl.errors import InputError


def read_split(
    directory: str | Path, split: str, schema: Schema | None = None, fields: Sequence[str] | None = None
) -> Split:
    """Read and check ``<directory>/<split>.parquet``.

    Args:
        directory: a prepared data set.
        split: "train", "valid" or "test".
        schema: that of ``directory`` by default.
        fields: the fields to read, in the order that batches shall have them as keys; all by default.

    Raises:
        InputError: if a file is missing, cut short or not of this schema, or a row breaks a rule: an id that
            is null, negative or outside its field's; a dense value or weight that is not finite, a negative
            weight; a label other than 0 and 1, missing where its weight is not 0, or without a step that it
            implies. Names the file, the column, the row (counted from 0) and the value.

    Example::

        >>> import tempfile, torch
        >>> from torchrec_mtl.tasks import TaskChain
        >>> directory = tempfile.mkdtemp()
        >>> Schema("shop", [Field("store", 9)], TaskChain(["click"])).save(directory)
        >>> pl.DataFrame({"store": [8, 0], "click": [0, 1]}).write_parquet(f"{directory}/train.parquet")
        >>> read_split(directory, "train").batch(torch.tensor([1])).labels
        tensor([[1.]])
    """
    if split not in SPLITS:
        raise InputError(f"`split` (={split!r}) must be one of {list(SPLITS)}")
    schema = Schema.load(directory) if schema is None else schema
    if fields is not None:
        schema = schema.select(fields)
    file, tasks = Path(directory) / f"{split}.parquet", schema.tasks
    source = str(file)
    table = _read(file, schema.columns)
    expected = schema.num_rows.get(split, table.height)
    if table.height != expected:
        raise InputError(f"{source}: has {table.height} rows, but its schema says {expected}")
    return Split(
        schema,
        ids={field.name: _ids(source, field, table[field.name]) for field in schema.fields},
        labels=_floats(source, table, tasks.label_columns),
        dense=_floats(source, table, schema.dense),
        weights=None if tasks.weight_columns is None else _floats(source, table, tasks.weight_columns),
        groups=None if schema.group is None else _present(source, table[schema.group]),
        source=source,
    )


def _read(file: Path, columns: Sequence[str]) -> pl.DataFrame:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        rows = pl.scan_parquet(file, glob=False)
        present = rows.collect_schema()
        for column in columns:
            if column not in present:
                raise InputError(f"{file}: column {column!r} is missing")
        return rows.select(columns).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: must be a whole parquet file, but cannot be read ({reason})") from error


def _ids(source: str, field: Field, column: pl.Series) -> Array | tuple[Array, Array]:
    if isinstance(column.dtype, pl.List) != field.multi_valued:
        wanted = "lists of ids" if field.multi_valued else "one id a row"
        raise InputError(f"{source}: column {field.name!r} must hold {wanted}, not {column.dtype}")
    if not field.multi_valued:
        return _present(source, column)
    _check_present(source, column)
    lengths = column.list.len()
    offsets = np.concatenate([[0], lengths.cast(pl.Int64).cum_sum().to_numpy()])
    return _present(source, column.filter(lengths > 0).explode(), offsets), offsets


def _present(source: str, column: pl.Series, offsets: Array | None = None) -> Array:
    """The column's values, none of them null."""
    _check_present(source, column, offsets)
    return column.to_numpy()


def _check_present(source: str, column: pl.Series, offsets: Array | None = None) -> None:
    null = column.is_null().to_numpy()
    reject(source, column.name, null, "must not be null", null, offsets)


def _floats(source: str, table: pl.DataFrame, columns: Sequence[str]) -> Array:
    """Columns as float32 [N, columns], null as NaN."""
    for column in columns:
        if not (table[column].dtype.is_numeric() or table[column].dtype == pl.Boolean):
            raise InputError(f"{source}: column {column!r} must hold numbers, not {table[column].dtype}")
    floats = [table[column].cast(pl.Float32).to_numpy() for column in columns]
    return np.stack(floats, axis=1) if floats else np.empty((table.height, 0), np.float32)
