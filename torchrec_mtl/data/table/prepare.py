"""Prepares a declared table: fits its encoders on the training rows, and writes the encoded splits."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.hashes import to_unit_interval
from torchrec_mtl.data.raw.preparation import prepare_once, without_progress, write_report
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.table.any_id import shown_size
from torchrec_mtl.data.table.declaration import ByColumn, ByHash, ByTime, Table
from torchrec_mtl.data.table.encoders import FORMAT_VERSION, TableEncoder
from torchrec_mtl.data.table.fitting import Fitting
from torchrec_mtl.data.table.formats import SourceFile
from torchrec_mtl.data.table.hashes import stable_hashes
from torchrec_mtl.data.table.history import HistoryBuilder
from torchrec_mtl.data.table.late_labels import LateLabels, with_copies
from torchrec_mtl.data.table.parts import Part, WrongLine
from torchrec_mtl.data.table.rows import TypedRows, given_splits, read_rows, sampled
from torchrec_mtl.data.table.sources import find_files, read_parts
from torchrec_mtl.data.writer import SplitFiles
from torchrec_mtl.errors import InputError, check_positive_share
from torchrec_mtl.files import to_json

Progress = Callable[[str, int, float], None]
TakeLists = Callable[[int], dict[str, tuple[Array, Array]]]


@dataclass(frozen=True)
class FileOfSplit:
    """A file of a source, and its split; None if its rows say their split."""

    file: SourceFile
    split: str | None


@checked
def prepare_table(
    table: Table,
    output: str | Path,
    *,
    bad_rows: str = "strict",
    bad_rows_limit: int = 1000,
    sample: float = 1.0,
    progress: Progress = without_progress,
    engine: Callable[..., "Preparation"] | None = None,
) -> Path:
    """Prepares a declared table, unless ``output`` is prepared already, and returns its folder.

    Encoders are fitted on the training rows alone. Every row of the source is read two times, and three times if there
    are histories; memory follows the numbers of distinct values, not of rows.

    Args:
        table: the declaration.
        output: folder of the prepared data set; it also gets the encoders, see `TableEncoder`.
        bad_rows: "strict" to refuse the first row that breaks a rule, or "quarantine" to put such rows into
            ``bad_rows.tsv``.
        bad_rows_limit: largest number of rows to put aside.
        sample: share of the rows to use, chosen by a hash of their group; without a group, of the column by which rows
            are split, or of their place in the source.
        progress: function called with the stage, the rows so far and their share.
        engine: what reads, fits and writes; by default `Preparation`, in this process.

    Raises:
        InputError: if ``sample`` is not above 0 and at most 1; a file is missing, damaged or has other columns; a row
            breaks a rule, under "strict"; a split is empty; a vocabulary is larger than a table can be; or ``output``
            was prepared from another declaration, or before a file of the source changed.
    """
    check_positive_share(sample=sample)
    files = files_of(table)
    key = table_key(table, files)

    def prepare(folder: Path, aside: BadRows) -> Schema:
        return (engine or Preparation)(table, files, folder, aside, progress, sample).run()

    how = {"bad_rows": bad_rows, "bad_rows_limit": bad_rows_limit, **({} if sample == 1 else {"sample": sample})}
    arguments = {"declaration": repr(table), **how}
    directory = prepare_once(output, arguments, prepare, {"source": key})
    if Schema.load(directory).notes.get("source") != key:
        rule = f"must be a new folder: files of `source` (={table.source!r}) have changed since it was prepared"
        raise InputError(f"`output` (={str(output)!r}) {rule}")
    return directory


def files_of(table: Table) -> list[FileOfSplit]:
    """Returns the files of a table's source.

    Raises:
        InputError: if there is none, one cannot be reached, or one is in two splits.
    """
    if not isinstance(table.source, Mapping):
        return [FileOfSplit(file, None) for file in find_files(table.source, table.format)]
    files = [FileOfSplit(file, split) for split in SPLITS for file in find_files(table.source[split], table.format)]
    for name, count in Counter(each.file.name for each in files).items():
        if count > 1:
            raise InputError(f"{name}: must be in one split, or splits overlap")
    return files


def table_key(table: Table, found: Sequence[FileOfSplit] | None = None) -> str:
    """Returns a digest of a declaration and of its source's files, by path, size and time of the last change.

    Args:
        table: the declaration.
        found: what `files_of` returns for it, if that was called before.
    """
    files = [each.file for each in (files_of(table) if found is None else found)]
    paths = [file.name if "://" in file.name else os.path.abspath(file.name) for file in files]
    states = [[path, file.size, file.changed] for path, file in zip(paths, files, strict=True)]
    return hashlib.sha256(to_json([FORMAT_VERSION, repr(table), states]).encode()).hexdigest()[:16]


def splits_of_rows(table: Table, rows: TypedRows, split: str | None) -> Array:
    """Returns the position of each row's split in `SPLITS`, int64 [N]; ``split`` is that of the file, if it has one."""
    if split is not None:
        return np.full(len(rows), SPLITS.index(split))
    how = table.split
    if isinstance(how, ByTime):
        assert rows.time is not None
        return np.searchsorted(np.array(how.edges), rows.time, side="right")
    assert rows.key is not None
    if isinstance(how, ByColumn):
        return given_splits(rows.key)
    assert isinstance(how, ByHash)
    return splits_by_hash(how, rows.key)


def splits_by_hash(how: ByHash, key: pa.Array) -> Array:
    """Returns the position in `SPLITS` of the split of each key, int64 [N]."""
    shares = to_unit_interval(stable_hashes(key) ^ np.uint64(0x9E3779B97F4A7C15))
    return np.where(shares < how.test, 2, np.where(shares < how.test + how.valid, 1, 0))


class Preparation:
    """Prepares a table in this process, file by file.

    Args:
        table: the declaration.
        files: files of its source.
        folder: folder to write into.
        bad_rows: what happens to rows that break a rule.
        progress: function called with the stage, the rows so far and their share.
        sample: share of the rows to use.

    Attributes:
        fitted_on: splits whose rows the encoders are fitted on.
        num_rows: number of rows of each split, int64 [3], without the bad ones; `fit` counts them.
    """

    fitted_on: tuple[str, ...] = ("train",)

    def __init__(
        self,
        table: Table,
        files: list[FileOfSplit],
        folder: Path,
        bad_rows: BadRows,
        progress: Progress,
        sample: float = 1.0,
    ) -> None:
        self.table, self.files, self.folder, self.sample = table, files, folder, sample
        self.bad_rows, self.progress = bad_rows, progress
        self.num_rows = np.zeros(len(SPLITS), np.int64)
        self.late_labels = LateLabels(table)

    def run(self) -> Schema:
        """Writes everything but the schema, which is returned."""
        fitting = self.fit()
        for name, found in zip(SPLITS, self.num_rows.tolist(), strict=True):
            if not found:
                raise InputError(f"split {name!r} of `source` (={self.table.source!r}) must have at least one row")
        self.late_labels.check()
        encoder = fitting.fit()
        encoder.check_tables()
        num_rows = self.encode(encoder)
        schema = replace(encoder.schema(), num_rows=num_rows, vocabulary_digest=encoder.save(self.folder))
        self.report(schema)
        return schema

    def fit(self) -> Fitting:
        """Reads all rows: counts the training rows, and handles the bad ones."""
        fitting = Fitting(self.table)
        for rows, split in self.read("fit", again=False):
            fitting.look(rows)
            fitting.add(rows, np.isin(split, [SPLITS.index(name) for name in self.fitted_on]))
            self.late_labels.look(rows, split == SPLITS.index("train"))
            self.num_rows += np.bincount(split, minlength=len(SPLITS))
        return fitting

    def encode(self, encoder: TableEncoder) -> Mapping[str, int]:
        """Writes the splits, and returns their rows, with the copies of those whose labels came late."""
        histories = self._histories(encoder) if self.table.histories else None
        try:
            return self.write_splits(encoder, None if histories is None else histories.read().take)
        finally:
            if histories is not None:
                histories.close()

    def _histories(self, encoder: TableEncoder) -> HistoryBuilder:
        histories = HistoryBuilder(
            self.table.histories, int(self.num_rows.sum()), self.folder / ".histories", encoder.wide_histories
        )
        for rows, _ in self.read("histories", again=True):
            assert rows.time is not None
            histories.add(rows.group_numbers(), rows.time, *listed_values(encoder, rows))
        return histories

    def write_splits(self, encoder: TableEncoder, take_lists: TakeLists | None) -> dict[str, int]:
        """Writes the splits, and returns their rows; ``take_lists(n)`` gives the next n rows' ids and offsets."""
        with SplitFiles(self.folder, long_lists=take_lists is not None) as splits:
            for rows, split in self.read("encode", again=True):
                lists = None if take_lists is None else take_lists(len(rows))
                self._write(splits, encoder.encode_rows(rows, lists), rows, split)
        return splits.num_rows

    def read(self, stage: str, *, again: bool) -> Iterator[tuple[TypedRows, Array]]:
        """Yields the rows that break no rule, with the position of each one's split in `SPLITS`, int64 [N]."""
        num_rows = 0
        for part, split, share in self.parts(again=again):
            rows = read_rows(self.table, part)
            chosen = sampled(self.table, rows, self.sample)
            part.reasons = {position: reason for position, reason in part.reasons.items() if chosen[position]}
            for position, reason in () if again else sorted(part.reasons.items()):
                self.bad_rows.add_row(part.source, reason, lambda at=position, of=part: _as_json(of, at))  # type: ignore[misc]
            chosen &= ~part.bad
            rows = rows if chosen.all() else rows.take(chosen)
            num_rows += len(rows)
            self.progress(stage, num_rows, share)
            yield rows, splits_of_rows(self.table, rows, split)
        self.progress(stage, num_rows, 1.0)

    def parts(self, *, again: bool) -> Iterator[tuple[Part, str | None, float]]:
        """Yields the rows as they are read, the split of their file if it has one, and the share of the rows before.

        Lines that are no rows are handled the first time, and not ``again``.
        """
        size, total = 0, sum(each.file.size for each in self.files)
        for each in self.files:
            wrong: list[WrongLine] = []
            num_refused = 0
            for part in read_parts(each.file, self.table.columns, wrong):
                num_refused = self._refuse_lines(each.file.name, [] if again else wrong, num_refused)
                yield part, each.split, size / total
            self._refuse_lines(each.file.name, [] if again else wrong, num_refused)
            size += each.file.size

    def written(self, split: str, rows: pl.DataFrame) -> None:
        """Notes encoded rows that were written, for the report."""

    def report(self, schema: Schema) -> None:
        """Writes the report of what was prepared."""
        counts = ", ".join(f"{rows:,} {split}" for split, rows in schema.num_rows.items())
        ids = [f"field {each.name}: {shown_size(each.num_embeddings)} ids" for each in schema.fields]
        findings = [f"rows: {counts}", *ids, *self.late_labels.findings()]
        write_report(self.folder, schema, self.bad_rows, lambda report: findings)

    def _refuse_lines(self, source: str, lines: Sequence[WrongLine], num_refused: int) -> int:
        """Handles those ``lines`` of a file that it has not handled yet, and returns the number of all."""
        for line in lines[num_refused:]:
            self.bad_rows.add_row(source, str(line), lambda of=line: of.text)  # type: ignore[misc]
        return len(lines)

    def _write(self, splits: SplitFiles, encoded: pl.DataFrame, rows: TypedRows, of_rows: Array) -> None:
        labels, copies = self.late_labels.known(rows, of_rows == SPLITS.index("train"))
        whole, of_rows = with_copies(with_further_columns(self.table, encoded, rows, labels), of_rows, copies)
        for number, split in enumerate(SPLITS):
            chosen = of_rows == number
            if chosen.any():
                of_split = whole if chosen.all() else whole.filter(pl.Series(chosen))
                splits.write(split, of_split)
                self.written(split, of_split)


def with_further_columns(
    table: Table, encoded: pl.DataFrame, rows: TypedRows, labels: Mapping[str, Array] | None = None
) -> pl.DataFrame:
    """Returns encoded rows with their ``labels``, by default as read; group, time and what the declaration keeps."""
    events = table.prepared_tasks.funnel.tasks
    never_missing = [task.label_column for task in events if task.weight_column is None]
    further: dict[str, Any] = {
        name: column.astype(np.uint8) if name in never_missing else column
        for name, column in (rows.labels if labels is None else labels).items()
    }
    if rows.groups is not None:
        further[table.group_column or ""] = rows.group_numbers()
    if rows.time is not None and table.time not in table.names:
        further[table.time or ""] = pl.Series(rows.time).cast(pl.Datetime("us", "UTC"))
    columns = [pl.Series(name, column) for name, column in further.items() if name not in encoded.columns]
    columns += [pl.Series(name, rows.part.column(name)) for name in table.keep]
    return encoded.hstack(columns)


def listed_values(encoder: TableEncoder, rows: TypedRows) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns for each history the ids [N] of rows, and whether later rows list them [N]."""
    values, listed, tasks = {}, {}, encoder.table.tasks
    for each in encoder.table.histories:
        values[each.name] = encoder.ids(each.name, rows.values[each.of].flat)
        task = None if each.where is None else tasks.tasks[tasks.index(each.where)]
        listed[each.name] = np.ones(len(rows), bool) if task is None else rows.labels[task.label_column] == 1
    return values, listed


def _as_json(part: Any, position: int) -> str:
    row = part.batch.slice(position, 1).to_pylist()[0]
    return to_json(row, default=str)
