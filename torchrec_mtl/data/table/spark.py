"""Prepares a declared table on Spark, for more rows than one machine should read.

Spark shares out the files of the source among its workers, which read, check and encode them with `Preparation`, as one
machine does. It adds up the counts of values, and brings the rows of a group together for histories.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from torchrec_mtl.data.parquet import read_batches
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.preparation import without_progress
from torchrec_mtl.data.schema import SPLITS
from torchrec_mtl.data.table.declaration import Table
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.fitting import Fitting
from torchrec_mtl.data.table.prepare import FileOfSplit, Preparation, Progress, prepare_table
from torchrec_mtl.data.table.spark_tasks import (
    COUNTS,
    ROWS_WRITTEN,
    Job,
    Task,
    build_lists,
    columns_of_lists,
    columns_of_rows,
    count_values,
    encode_files,
    encode_with_lists,
    found_in_files,
    rows_for_histories,
    rows_written,
    run_task,
)
from torchrec_mtl.data.writer import SplitFiles
from torchrec_mtl.errors import InputError, check_at_least, redacts

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

JOINED_ROWS = 2**24
_SENTENCE = re.compile(r"torchrec_mtl\.errors\.InputError: (.*)")


def prepare_table_on_spark(
    table: Table,
    output: str | Path,
    spark: "SparkSession | None" = None,
    *,
    bad_rows: str = "strict",
    bad_rows_limit: int = 1000,
    sample: float = 1.0,
    joined_rows: int = JOINED_ROWS,
    progress: Progress = without_progress,
) -> Path:
    """Prepares a declared table as `prepare_table` does, on Spark; rows, ids, encoders and messages are the same.

    A worker reads whole files, so the source should be files of some hundred MB at most; every worker needs this
    package, and reaches the source and ``output`` at the same paths. Rows are read as often as by `prepare_table`. A
    broken row is named once all files have been read. The driver holds the values that occur ``min_count`` times; a
    worker holds the encoders, the counts of one file, and all rows of one group.

    Args:
        table: the declaration.
        output: folder of the prepared data set, which all workers reach; it also gets the encoders.
        spark: session of Spark 4; by default the one that ``spark-submit`` has set up, or a new one.
        bad_rows: "strict" to refuse the first row that breaks a rule, or "quarantine" to put such rows into
            ``bad_rows.tsv``.
        bad_rows_limit: largest number of rows to put aside.
        sample: share of the rows to use, see `prepare_table`.
        joined_rows: largest number of rows for which each split becomes one file, ``train.parquet``. With more, it is a
            folder of that name, with one part for each file of the source, in the same order.
        progress: function called with the stage, the rows so far and their share.

    Raises:
        InputError: as `prepare_table` does, or if there is no pyspark.

    Example::

        >>> prepare_table_on_spark(shop, "/mnt/shared/shop", spark)  # doctest: +SKIP
    """
    check_at_least(0, joined_rows=joined_rows)
    engine = partial(_OnSpark, spark=spark, joined_rows=joined_rows)
    limits: dict[str, Any] = {"bad_rows": bad_rows, "bad_rows_limit": bad_rows_limit, "sample": sample}
    return prepare_table(table, output, **limits, progress=progress, engine=engine)


class _OnSpark(Preparation):
    def __init__(
        self,
        table: Table,
        files: list[FileOfSplit],
        folder: Path,
        bad_rows: BadRows,
        progress: Progress,
        sample: float,
        *,
        spark: "SparkSession | None",
        joined_rows: int,
    ) -> None:
        files = [_absolute(each) for each in files]  # workers have folders of their own
        super().__init__(table, files, folder.absolute(), bad_rows, progress, sample)
        self.spark, self.joined_rows = _session() if spark is None else spark, joined_rows

    def fit(self) -> Fitting:
        self.progress("fit", 0, 0.0)
        fitting, limit = Fitting(self.table), self.bad_rows.limit if self.bad_rows.policy == "quarantine" else 0
        rows = self._on_files(count_values, self._job(limit), COUNTS)
        least = ", ".join(str(getattr(self.table.by_name[name], "min_count", 1)) for name in fitting.counts)
        counts = rows.groupBy("field", "text", "integer", "number", "found").sum("count")
        with _sentences():
            collected = counts.where(f"found IS NOT NULL OR `sum(count)` >= array({least})[field]").toArrow()
        for found in found_in_files(collected):
            for source, reason, row in found.bad_rows:
                self.bad_rows.add_row(source, reason, lambda text=row: text)  # type: ignore[misc]
            for claim, source in found.noted.items():
                fitting.note(source, *claim)
            if found.error is not None:
                raise InputError(found.error)
            self.num_rows += found.num_rows
            self.late_labels.merge(found.late_labels)
        for number, of_field in enumerate(fitting.counts.values()):
            chosen = collected.filter((pc.field("field") == number) & pc.field("found").is_null())
            for column in ("text", "integer", "number"):
                if chosen[column].null_count < chosen.num_rows:
                    values = {"value": pl.Series(chosen[column]), "count": pl.Series(chosen["sum(count)"])}
                    of_field.add_table(pl.DataFrame(values))
        self.progress("fit", int(self.num_rows.sum()), 1.0)
        return fitting

    def encode(self, encoder: TableEncoder) -> Mapping[str, int]:
        job = self._job(0, encoder, self.late_labels)
        job.parts_folder.mkdir()
        self.progress("encode", 0, 0.0)
        if self.table.histories:
            rows = self._on_files(rows_for_histories, job, columns_of_rows(encoder))
            rows = rows.repartition("group").sortWithinPartitions("group", "time", "file", "row")
            lists = rows.mapInArrow(self._task(build_lists, job), columns_of_lists(encoder))
            lists = lists.repartition(len(self.files), "file").sortWithinPartitions("file", "row")
            written = lists.mapInArrow(self._task(encode_with_lists, job), ROWS_WRITTEN)
        else:
            written = self._on_files(encode_files, job, ROWS_WRITTEN)
        with _sentences():
            num_rows = rows_written(written.toArrow(), self.late_labels)
        copies = {"train": self.late_labels.num_copies}
        if [num_rows[split] - copies.get(split, 0) for split in SPLITS] != self.num_rows.tolist():
            raise InputError(f"`source` (={self.table.source!r}) must not change while it is prepared")
        shutil.rmtree(job.parts_folder)
        if self.num_rows.sum() <= self.joined_rows:
            _join_parts(self.folder, long_lists=bool(self.table.histories))
        self.progress("encode", int(self.num_rows.sum()), 1.0)
        return num_rows

    def _job(self, limit: int, *fitted: Any) -> Job:
        return Job(self.table, self.files, self.folder, limit, self.sample, redacts(), *fitted)

    def _on_files(self, task: Task, job: Job, columns: str) -> "DataFrame":
        """Runs a task on each file's number."""
        number = len(self.files)
        return self.spark.range(0, number, 1, number).mapInArrow(self._task(task, job), columns)

    def _task(self, task: Task, job: Job) -> Callable[..., Iterator[pa.RecordBatch]]:
        return partial(run_task, task, self.spark.sparkContext.broadcast(job))


def _absolute(given: FileOfSplit) -> FileOfSplit:
    if not isinstance(given.file.filesystem, pa.fs.LocalFileSystem):
        return given
    return replace(given, file=replace(given.file, path=os.path.abspath(given.file.path)))


def _session() -> "SparkSession":
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise InputError("`engine` (='spark') must be installed: pip install 'torchrec_mtl[spark]'") from error
    return SparkSession.builder.getOrCreate()


@contextmanager
def _sentences() -> Iterator[None]:
    """Raises a worker's `InputError` here."""
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        found = _SENTENCE.search(str(error))
        if found is None:
            raise
        raise InputError(found[1]) from error


def _join_parts(folder: Path, long_lists: bool) -> None:
    for split in SPLITS:
        (folder / f"{split}.parquet").rename(folder / split)
    with SplitFiles(folder, long_lists) as splits:
        for split in SPLITS:
            for part in sorted((folder / split).iterdir()):
                with pq.ParquetFile(part, page_checksum_verification=True) as opened:
                    for batch in read_batches(opened, 2**17):
                        splits.write(split, pl.DataFrame(pl.from_arrow(batch)))
            shutil.rmtree(folder / split)
