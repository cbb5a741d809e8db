"""What Spark's workers do for a declared table: functions from record batches to record batches."""

import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.preparation import without_progress
from torchrec_mtl.data.schema import SPLITS
from torchrec_mtl.data.table.declaration import Table
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.fitting import Fitting
from torchrec_mtl.data.table.history import earlier_values
from torchrec_mtl.data.table.late_labels import LateLabels
from torchrec_mtl.data.table.prepare import FileOfSplit, Preparation, TakeLists, listed_values
from torchrec_mtl.errors import InputError, redacted

COUNTS = "field int, text string, integer long, number double, count long, found binary"
ROWS_WRITTEN = ", ".join([*(f"{split} long" for split in SPLITS), "late_labels binary"])
_ROWS = 2**18  # of whole groups whose lists are built at once
_SLICE = 2**14  # rows of one record batch
Batches = Iterable[pa.RecordBatch]
Task = Callable[[Any, Batches], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class Job:
    """What each worker knows.

    Args:
        table: the declaration.
        files: files of the source.
        folder: folder of the prepared data set.
        limit: number of bad rows to collect from a file.
        sample: share of the rows to use.
        redact: whether values of data stay out of messages.
        encoder: the encoders, once they are fitted.
        late_labels: the late labels, once all rows have been looked at.
    """

    table: Table
    files: list[FileOfSplit]
    folder: Path
    limit: int
    sample: float
    redact: bool
    encoder: TableEncoder | None = None
    late_labels: LateLabels | None = None

    @property
    def parts_folder(self) -> Path:
        """Folder of parts that are not whole."""
        return self.folder / ".parts"

    def preparation(self, number: int, folder: Path, aside: "_RowsAside") -> Preparation:
        """Returns the preparation of one file."""
        return Preparation(self.table, [self.files[number]], folder, aside, without_progress, self.sample)  # type: ignore[arg-type]


@dataclass
class FoundInFile:
    """What reading a file has found.

    Args:
        number: the file's number.
        bad_rows: source, reason and text of each bad row, up to a limit.
        error: why the file cannot be read further.
        num_rows: rows of each split.
        noted: see `Fitting`.
        late_labels: the times of its rows and labels.
    """

    number: int
    bad_rows: list[tuple[str, str, str]]
    error: str | None
    num_rows: Array
    noted: dict[Any, str]
    late_labels: LateLabels


@dataclass
class _RowsAside:
    limit: int
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add_row(self, source: str, reason: str, row: Callable[[], str]) -> None:
        self.rows.append((source, reason, row()))
        if len(self.rows) > self.limit:
            raise InputError("enough: the driver refuses this row")


def run_task(task: Task, broadcast: Any, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Runs a task on a worker, as the driver would: within `torchrec_mtl.errors.redacted` if that is."""
    with redacted(broadcast.value.redact):
        yield from task(broadcast, batches)


def count_values(broadcast: Any, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Counts the values of training rows, for numbers of files; yields `COUNTS`."""
    job: Job = broadcast.value
    for number in _numbers(batches):
        aside, error = _RowsAside(job.limit), None
        preparation, fitting = job.preparation(number, job.folder, aside), Fitting(job.table)
        try:
            fitting = preparation.fit()
        except InputError as refusal:
            error = str(refusal)
        for position, counts in enumerate(fitting.counts.values()):
            yield from _slices(_as_counts(position, counts.table().to_arrow()))
        found = FoundInFile(number, aside.rows, error, preparation.num_rows, fitting.noted, preparation.late_labels)
        yield _count_rows(1, found=pa.array([pickle.dumps(found)]), count=pa.array([0]))


def _as_counts(position: int, counts: pa.Table) -> pa.Table:
    values = counts["value"]
    if pa.types.is_floating(values.type):
        column = {"number": values}
    elif pa.types.is_integer(values.type):
        column = {"integer": values.cast(pa.int64())}
    else:
        column = {"text": values}
    fields = pa.array(np.full(len(counts), position, np.int32))
    return pa.table({"field": fields, "count": counts["count"], **column})


def _count_rows(num_rows: int, **columns: pa.Array) -> pa.RecordBatch:
    """Rows of `COUNTS`, null where nothing is given."""
    kinds = {"field": pa.int32(), "text": pa.string(), "integer": pa.int64(), "number": pa.float64()}
    kinds |= {"count": pa.int64(), "found": pa.binary()}
    given = {name: columns.get(name, pa.nulls(num_rows, kind)).cast(kind) for name, kind in kinds.items()}
    return pa.record_batch(given)


def _slices(counts: pa.Table) -> Iterator[pa.RecordBatch]:
    for batch in counts.to_batches(max_chunksize=_SLICE):
        yield _count_rows(batch.num_rows, **dict(zip(batch.schema.names, batch.columns, strict=True)))


def found_in_files(counts: pa.Table) -> list[FoundInFile]:
    """What was found in each file, in the order of the files."""
    rows = counts["found"].drop_null().to_pylist()
    return sorted((pickle.loads(row) for row in rows), key=lambda found: found.number)


def columns_of_rows(encoder: TableEncoder) -> str:
    """Columns of `rows_for_histories`."""
    histories = (f"value{n} {kind}, listed{n} boolean" for n, kind in enumerate(_id_types(encoder)))
    return ", ".join(["group long, time long, file int, row long", *histories])


def rows_for_histories(broadcast: Any, batches: Batches) -> Iterator[pa.RecordBatch]:
    """What histories need of the rows of files, for numbers of files."""
    job: Job = broadcast.value
    assert job.encoder is not None
    for number in _numbers(batches):
        first = 0
        for rows, _ in job.preparation(number, job.folder, _RowsAside(0)).read("histories", again=True):
            assert rows.time is not None
            columns = {"group": rows.group_numbers(), "time": rows.time, "file": np.full(len(rows), number, np.int32)}
            columns["row"] = np.arange(first, first + len(rows))
            values, listed = listed_values(job.encoder, rows)
            for position, name in enumerate(values):
                kind = np.int64 if name in job.encoder.wide_histories else np.int32
                columns |= {f"value{position}": values[name].astype(kind), f"listed{position}": listed[name]}
            yield pa.record_batch(columns)
            first += len(rows)


def columns_of_lists(encoder: TableEncoder) -> str:
    """Columns of `build_lists`."""
    return ", ".join(["file int, row long", *(f"list{n} array<{kind}>" for n, kind in enumerate(_id_types(encoder)))])


def _id_types(encoder: TableEncoder) -> list[str]:
    return ["long" if each.name in encoder.wide_histories else "int" for each in encoder.table.histories]


def build_lists(broadcast: Any, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Builds the lists of rows that are sorted by group, time, file and row."""
    job: Job = broadcast.value
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        waiting.append(batch)
        if sum(each.num_rows for each in waiting) >= _ROWS and waiting[0]["group"][0] != batch["group"][-1]:
            rows = pa.Table.from_batches(waiting)
            last = int(np.searchsorted(rows["group"].to_numpy(), rows["group"][-1].as_py()))  # it may go on
            yield from _lists(job.table, rows[:last])
            waiting = rows[last:].to_batches()
    if waiting:
        yield from _lists(job.table, pa.Table.from_batches(waiting))


def _lists(table: Table, rows: pa.Table) -> Iterator[pa.RecordBatch]:
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    lists = [
        earlier_values(
            columns["group"],
            columns["time"],
            columns[f"value{number}"],
            columns[f"listed{number}"],
            last=each.last,
            within=each.within_us,
        )
        for number, each in enumerate(table.histories)
    ]
    for start in range(0, len(rows), _SLICE):
        stop = min(start + _SLICE, len(rows))
        output = {name: pa.array(columns[name][start:stop]) for name in ("file", "row")}
        for number, (values, offsets) in enumerate(lists):
            here = offsets[start : stop + 1]
            chosen = pa.array(values[here[0] : here[-1]])
            output[f"list{number}"] = pa.ListArray.from_arrays(pa.array(here - here[0], pa.int32()), chosen)
        yield pa.record_batch(output)


def encode_files(broadcast: Any, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Writes the parts of files, for numbers of files; yields `ROWS_WRITTEN`."""
    for number in _numbers(batches):
        yield _write_parts(broadcast.value, number, None)


def encode_with_lists(broadcast: Any, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Writes the parts of files, for lists that are sorted by file and row; yields `ROWS_WRITTEN`."""
    job: Job = broadcast.value
    lists = SortedLists(job.table, batches)
    while (number := lists.file()) is not None:
        yield _write_parts(job, number, lists.take)


def _write_parts(job: Job, number: int, take_lists: TakeLists | None) -> pa.RecordBatch:
    assert job.encoder is not None
    if not job.parts_folder.is_dir():
        raise InputError(f"`output`: all workers must reach the folder {str(job.folder.parent)!r}")
    with tempfile.TemporaryDirectory(dir=job.parts_folder) as folder:  # of this attempt
        preparation = job.preparation(number, Path(folder), _RowsAside(0))
        preparation.late_labels = deepcopy(job.late_labels) or preparation.late_labels  # with counts of this file
        num_rows = preparation.write_splits(job.encoder, take_lists)
        for file in Path(folder).iterdir():
            parts = job.folder / file.name
            parts.mkdir(exist_ok=True)
            os.replace(file, parts / f"part-{number:05d}.parquet")
    counts = {split: pa.array([num_rows[split]]) for split in SPLITS}
    return pa.record_batch({**counts, "late_labels": pa.array([pickle.dumps(preparation.late_labels)])})


def rows_written(written: pa.Table, late_labels: LateLabels) -> dict[str, int]:
    """The rows of each split of all files, with their copies, which are added to what ``late_labels`` counts."""
    for pickled in written["late_labels"].to_pylist():
        late_labels.merge(pickle.loads(pickled))
    return {split: int(pc.sum(written[split]).as_py()) for split in SPLITS}


class SortedLists:
    """Gives the lists of one row after the other."""

    def __init__(self, table: Table, batches: Batches) -> None:
        self._names = {each.name: f"list{number}" for number, each in enumerate(table.histories)}
        self._batches, self._waiting = iter(batches), list[pa.RecordBatch]()

    def file(self) -> int | None:
        """Number of the next row's file; None if there is no further row."""
        self._fill(1)
        return self._waiting[0]["file"][0].as_py() if self._waiting else None

    def take(self, num_rows: int) -> dict[str, tuple[Array, Array]]:
        """Ids and offsets of each history for the next rows."""
        if not num_rows:
            return {name: (np.empty(0, np.int32), np.zeros(1, np.int64)) for name in self._names}
        if self._fill(num_rows) < num_rows:
            raise InputError("`source` must not change while it is prepared")
        whole = pa.Table.from_batches(self._waiting)
        taken, self._waiting = whole[:num_rows].combine_chunks(), whole[num_rows:].to_batches()
        lists = {name: taken[column].chunk(0) for name, column in self._names.items()}
        lengths = {name: pc.list_value_length(array).to_numpy() for name, array in lists.items()}
        return {
            name: (array.flatten().to_numpy(), np.concatenate([[0], lengths[name].cumsum()]))
            for name, array in lists.items()
        }

    def _fill(self, num_rows: int) -> int:
        here = sum(batch.num_rows for batch in self._waiting)
        while here < num_rows and (batch := next(self._batches, None)) is not None:
            if batch.num_rows:
                self._waiting.append(batch)
                here += batch.num_rows
        return here


def _numbers(batches: Batches) -> Iterator[int]:
    for batch in batches:
        yield from batch.column(0).to_pylist()
