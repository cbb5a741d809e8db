"""The rows of one day of a declared table: read, counted, and encoded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timezone
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import Schema
from torchrec_mtl.data.table.counts import Counts
from torchrec_mtl.data.table.declaration import Table
from torchrec_mtl.data.table.drift import FieldCounts, added, count_rows_of_fields
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.fields import DAY
from torchrec_mtl.data.table.fitting import Fitting
from torchrec_mtl.data.table.formats import SourceFile
from torchrec_mtl.data.table.history import HistoryBuilder
from torchrec_mtl.data.table.ids import Vocabulary
from torchrec_mtl.data.table.prepare import listed_values, with_further_columns
from torchrec_mtl.data.table.rows import TypedRows, read_rows
from torchrec_mtl.data.table.sources import find_files, read_parts
from torchrec_mtl.data.writer import SplitFiles
from torchrec_mtl.errors import InputError


@dataclass
class DayCounts:
    """What is counted of a day's rows.

    Attributes:
        num_rows: number of rows.
        num_read: number of rows, with the earlier ones that histories list.
        values: ``value`` and ``count`` of each vocabulary's values.
        fields: values, missing and unknown ones, and bins of each field, with the encoders of the day before.
    """

    num_rows: int = 0
    num_read: int = 0
    values: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    fields: dict[str, FieldCounts] = field(default_factory=dict)


def check_days(table: Table) -> None:
    """Raises `InputError` unless the rows of a table can be told apart by day."""
    if table.time is None:
        raise InputError(f"`time` of table {table.name!r} must name the column by which its rows have a day")
    if table.delays:
        raise InputError(f"`delays` of table {table.name!r} must be empty, as each day is trained on at its end")
    if isinstance(table.source, Mapping):
        raise InputError(f"`source` of table {table.name!r} must not name splits, as each day is scored and trained on")


def fit_day(table: Table, day: date) -> TableEncoder:
    """Fits the encoders of a table on the rows of a day, the first one.

    Raises:
        InputError: if there is no row of the day, or a row that is read breaks a rule.
    """
    fitting, num_rows = Fitting(table), 0
    for rows, of_day in _read(table, day, with_earlier=False):
        fitting.look(rows)
        fitting.add(rows.take(of_day))
        num_rows += int(of_day.sum())
    _check_rows(table, day, num_rows)
    return fitting.fit()


def count_day(encoder: TableEncoder, day: date) -> DayCounts:
    """Counts the rows of a day, and the values in them.

    Raises:
        InputError: as `fit_day` does.
    """
    counts, table = DayCounts(), encoder.table
    values = {each.name: Counts() for each in table.fields if isinstance(each, Vocabulary) and each.shares is None}
    for rows, of_day in _read(table, day, with_earlier=bool(table.histories)):
        counts.num_read += len(rows)
        counts.num_rows += int(of_day.sum())
        rows = rows.take(of_day)
        for name, counted in values.items():
            counted.add(rows.values[name].flat)
        counts.fields = added(counts.fields, count_rows_of_fields(encoder, rows))
    _check_rows(table, day, counts.num_rows)
    counts.values = {name: counted.table() for name, counted in values.items()}
    return counts


def write_day(encoder: TableEncoder, day: date, num_read: int, folder: Path) -> Schema:
    """Writes the encoded rows of a day as ``train.parquet``, with schema and encoders, into a new folder.

    Histories list earlier rows of earlier days too.

    Args:
        encoder: the encoders.
        day: the day, UTC.
        num_read: number of rows that `count_day` has read.
        folder: folder that is made.

    Raises:
        InputError: as `fit_day` does, or if a field has more ids than a table can have rows.
    """
    table = encoder.table
    encoder.check_tables()
    folder.mkdir()
    histories = _histories(encoder, day, num_read, folder / ".histories") if table.histories else None
    try:
        with SplitFiles(folder, long_lists=bool(table.histories)) as splits:
            reader = None if histories is None else histories.read()
            for rows, of_day in _read(table, day, with_earlier=histories is not None):
                lists = None if reader is None else reader.take(len(rows))
                whole = with_further_columns(table, encoder.encode_rows(rows, lists), rows)
                splits.write("train", whole if of_day.all() else whole.filter(pl.Series(of_day)))
    finally:
        if histories is not None:
            histories.close()
    schema = replace(encoder.schema(), notes={"day": str(day)}, vocabulary_digest=encoder.save(folder))
    schema = replace(schema, num_rows={"train": splits.num_rows["train"]})
    schema.save(folder)
    return schema


def _histories(encoder: TableEncoder, day: date, num_read: int, folder: Path) -> HistoryBuilder:
    histories = HistoryBuilder(encoder.table.histories, num_read, folder, encoder.wide_histories)
    for rows, _ in _read(encoder.table, day, with_earlier=True):
        assert rows.time is not None
        histories.add(rows.group_numbers(), rows.time, *listed_values(encoder, rows))
    return histories


def _read(table: Table, day: date, *, with_earlier: bool) -> Iterator[tuple[TypedRows, Array]]:
    """Yields rows and whether each is of the day [N]: only such rows, or earlier ones that histories list too."""
    start = _microseconds(day)
    first = start
    if with_earlier:
        spans = [each.within_us for each in table.histories]
        first = -(2**63) if None in spans else start - max(span for span in spans if span is not None)
    assert isinstance(table.source, (str, list, tuple))
    for file in find_files(table.source, table.format):
        if not _may_hold(file, table, first, start + DAY):
            continue
        for part in read_parts(file, table.columns):
            rows = read_rows(table, part)
            for position in np.flatnonzero(part.bad)[:1].tolist():
                raise InputError(f"{part.source}: {part.reasons[position]}")
            assert rows.time is not None
            chosen = (rows.time >= first) & (rows.time < start + DAY)
            if chosen.any():
                rows = rows.take(chosen)
                assert rows.time is not None
                yield rows, rows.time >= start


def _may_hold(file: SourceFile, table: Table, first: int, end: int) -> bool:
    """Whether a file may hold rows from ``first`` to ``end``: not if its hive partition is the time, and another."""
    try:
        value = datetime.fromisoformat(file.partition.get(table.time or "") or "")
    except ValueError:
        return True
    time = value.replace(tzinfo=value.tzinfo or timezone.utc).timestamp() * 10**6
    return first <= time < end


def _microseconds(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY


def _check_rows(table: Table, day: date, num_rows: int) -> None:
    if not num_rows:
        raise InputError(f"{table.source}: day {day} must have rows (UTC, by column {table.time!r}), but has none")
