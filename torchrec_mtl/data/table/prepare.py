"""Prepares a declared table: fits its encoders on the training rows, and writes the encoded splits."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.hashes import to_unit_interval
from torchrec_mtl.data.raw.preparation import REPORT_FILE, without_progress
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.table.declaration import ByHash, ByTime, Table
from torchrec_mtl.data.table.encoders import TableEncoder, group_column
from torchrec_mtl.data.table.fitting import Fitting
from torchrec_mtl.data.table.hashes import stable_hashes
from torchrec_mtl.data.table.history import HistoryBuilder
from torchrec_mtl.data.table.late_labels import LateLabels, with_copies
from torchrec_mtl.data.table.rows import TypedRows, read_rows
from torchrec_mtl.data.table.sources import SourceFile, find_files, read_parts
from torchrec_mtl.data.writer import SplitFiles, build_once
from torchrec_mtl.errors import LARGEST, InputError
from torchrec_mtl.files import to_json

Progress = Callable[[str, int, float], None]


@dataclass(frozen=True)
class _File:
    file: SourceFile
    split: str | None  # None if rows say their split


def prepare_table(
    table: Table,
    output: str | Path,
    *,
    bad_rows: str = "strict",
    bad_rows_limit: int = 1000,
    progress: Progress = without_progress,
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
        progress: function called with the stage, the rows so far and their share.

    Raises:
        InputError: if a file is missing, damaged or has other columns; a row breaks a rule, under "strict"; a split is
            empty; a vocabulary is larger than a table can be; or ``output`` was prepared from another declaration.
    """
    files = _files(table)
    preparation = to_json({"declaration": repr(table), "bad_rows": bad_rows, "bad_rows_limit": bad_rows_limit})

    def build(folder: Path) -> Schema:
        with BadRows(bad_rows, bad_rows_limit, folder) as aside:
            schema = _Preparation(table, files, folder, aside, progress).run()
        return replace(schema, notes={"preparation": preparation})

    directory = build_once(output, build)
    used = Schema.load(directory).notes.get("preparation")
    if used != preparation:
        raise InputError(f"`output` (={str(output)!r}) must be a new folder: it was prepared with {used}")
    return directory


def first_rows(table: Table, num_rows: int = 5) -> tuple[pl.DataFrame, TableEncoder]:
    """Fits the encoders on the first part of the source, and returns its first rows as encoded, without histories."""
    for file in _files(table):
        for part in read_parts(file.file, table.columns):
            rows = read_rows(table, part)
            for position in np.flatnonzero(part.bad)[:1].tolist():
                raise InputError(f"{part.source}: {part.reasons[position]}")
            fitting = Fitting(table)
            fitting.look(rows)
            fitting.add(rows)
            encoder = fitting.fit()
            nothing = np.empty(0, np.int64), np.zeros(len(rows) + 1, np.int64)
            return encoder.encode_rows(rows, {each.name: nothing for each in table.histories}).head(num_rows), encoder
    raise InputError("`source` must have at least one row")


def _files(table: Table) -> list[_File]:
    if not isinstance(table.source, Mapping):
        return [_File(file, None) for file in find_files(table.source, table.format)]
    files = [_File(file, split) for split in SPLITS for file in find_files(table.source[split], table.format)]
    for name, count in Counter(each.file.name for each in files).items():
        if count > 1:
            raise InputError(f"{name}: must be in one split, or splits overlap")
    return files


class _Preparation:
    def __init__(self, table: Table, files: list[_File], folder: Path, bad_rows: BadRows, progress: Progress) -> None:
        self.table, self.files, self.folder = table, files, folder
        self.bad_rows, self.progress = bad_rows, progress
        self.total_size = sum(each.file.size for each in files)
        self.num_rows = 0  # of all files, without the bad ones
        self.late_labels = LateLabels(table)

    def run(self) -> Schema:
        encoder = self._fit()
        for each in self.table.id_fields:
            if (number := encoder.num_embeddings(each.name)) > LARGEST:
                rule = f"must have at most {LARGEST} ids, not {number}"
                raise InputError(f"field {each.name!r} {rule}: set `max_size`, or use `Hashed`")
        histories = self._histories(encoder) if self.table.histories else None
        try:
            with SplitFiles(self.folder, long_lists=bool(self.table.histories)) as splits:
                reader = None if histories is None else histories.read()
                for rows, split in self._read("encode", again=True):
                    lists = None if reader is None else reader.take(len(rows))
                    self._write(splits, encoder.encode_rows(rows, lists), rows, split)
                splits.check_not_empty(str(self.table.source))
        finally:
            if histories is not None:
                histories.close()
        self._report(encoder, splits.num_rows)
        return replace(encoder.schema({}), vocabulary_digest=encoder.save(self.folder))

    def _fit(self) -> TableEncoder:
        fitting = Fitting(self.table)
        for rows, split in self._read("fit", again=False):
            fitting.look(rows)
            fitting.add(rows.take(split == SPLITS.index("train")))
            self.late_labels.look(rows, split == SPLITS.index("train"))
            self.num_rows += len(rows)
        if not self.num_rows:
            raise InputError(f"`source` (={self.table.source!r}) must have at least one row")
        self.late_labels.check()
        return fitting.fit()

    def _histories(self, encoder: TableEncoder) -> HistoryBuilder:
        histories = HistoryBuilder(self.table.histories, self.num_rows, self.folder / ".histories")
        for rows, _ in self._read("histories", again=True):
            values, listed = {}, {}
            for each in self.table.histories:
                values[each.name] = encoder.ids(each.name, rows.values[each.of].flat)
                task = None if each.where is None else self.table.tasks.tasks[self.table.tasks.index(each.where)]
                listed[each.name] = np.ones(len(rows), bool) if task is None else rows.labels[task.label_column] == 1
            assert rows.time is not None
            histories.add(rows.group_numbers(), rows.time, values, listed)
        return histories

    def _read(self, stage: str, *, again: bool) -> Iterator[tuple[TypedRows, Array]]:
        """Yields the rows that break no rule, with the position of each one's split in `SPLITS`, int64 [N]."""
        num_rows, size = 0, 0
        for each in self.files:
            for part in read_parts(each.file, self.table.columns):
                rows = read_rows(self.table, part)
                if part.bad.any():
                    if not again:
                        for position, reason in sorted(part.reasons.items()):
                            self.bad_rows.add_row(part.source, reason, lambda at=position, of=part: _as_json(of, at))  # type: ignore[misc]
                    rows = rows.take(~part.bad)
                num_rows += len(rows)
                self.progress(stage, num_rows, size / self.total_size)
                yield rows, self._splits(rows, each.split)
            size += each.file.size
            self.progress(stage, num_rows, size / self.total_size)

    def _splits(self, rows: TypedRows, split: str | None) -> Array:
        if split is not None:
            return np.full(len(rows), SPLITS.index(split))
        how = self.table.split
        if isinstance(how, ByTime):
            assert rows.time is not None
            return np.searchsorted(np.array(how.edges), rows.time, side="right")
        assert isinstance(how, ByHash)
        assert rows.key is not None
        shares = to_unit_interval(stable_hashes(rows.key) ^ np.uint64(0x9E3779B97F4A7C15))
        return np.where(shares < how.test, 2, np.where(shares < how.test + how.valid, 1, 0))

    def _write(self, splits: SplitFiles, encoded: pl.DataFrame, rows: TypedRows, of_rows: Array) -> None:
        table = self.table
        labels, copies = self.late_labels.known(rows, of_rows == SPLITS.index("train"))
        further: dict[str, Any] = dict(labels)
        if rows.groups is not None:
            further[group_column(table) or ""] = rows.group_numbers()
        if rows.time is not None and table.time not in table.names:
            further[table.time or ""] = pl.Series(rows.time).cast(pl.Datetime("us", "UTC"))
        columns = [pl.Series(name, column) for name, column in further.items() if name not in encoded.columns]
        kept = [name for name in table.keep if name not in encoded.columns and name not in further]
        columns += [pl.Series(name, pa.array(rows.part.column(name))) for name in kept]
        whole, of_rows = with_copies(encoded.hstack(columns), of_rows, copies)
        for number, split in enumerate(SPLITS):
            chosen = of_rows == number
            if chosen.any():
                splits.write(split, whole if chosen.all() else whole.filter(pl.Series(chosen)))

    def _report(self, encoder: TableEncoder, num_rows: Mapping[str, int]) -> None:
        ids = {each.name: encoder.num_embeddings(each.name) for each in self.table.id_fields}
        counts = ", ".join(f"{rows:,} {split}" for split, rows in num_rows.items())
        findings = [f"rows: {counts}", *(f"field {name}: {number:,} ids" for name, number in ids.items())]
        findings += self.late_labels.findings()
        findings += [f"{name}: {number:,} bad rows were put aside" for name, number in self.bad_rows.counts.items()]
        report = {"num_rows": dict(num_rows), "num_embeddings": ids, "bad_rows": dict(self.bad_rows.counts)}
        text = to_json({**report, "findings": findings}, indent=2)
        (self.folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")


def _as_json(part: Any, position: int) -> str:
    row = part.batch.slice(position, 1).to_pylist()[0]
    return to_json(
        {
            name: value if isinstance(value, (int, float, str, list, type(None))) else str(value)
            for name, value in row.items()
        }
    )
