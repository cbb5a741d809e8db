"""A split of a prepared data set that is read where it lies, one row group at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data import checks, parquet
from torchrec_mtl.data.checks import Source
from torchrec_mtl.data.fingerprint import columns_text
from torchrec_mtl.data.label_statistics import LabelCounts
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.stream_files import Location, load_schema, locate
from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.modules.heads import LabelStatistics

OPEN_FILES = 16  # of a reader
FOOTERS_AT_ONCE = 16


@checked
def stream_split(
    directory: str | Path, split: str, schema: Schema | None = None, fields: Sequence[str] | None = None
) -> "StreamedSplit":
    """Returns a split that is read where it lies, for `StreamLoader`; now only the files' footers are read.

    Args:
        directory: folder of a prepared data set, or its URI, see `torchrec_mtl.data.stream_files.locate`.
        split: name of the split: "train", "valid" or "test". It is the file ``<split>.parquet``, a folder of that name
            with parquet files, or the folder ``<split>`` with parquet files.
        schema: schema to read the files with; by default the one in ``directory``.
        fields: keys of the batches, in this order; all fields by default. The columns of others are not read.

    Raises:
        InputError: if a file is missing, cut short, lacks a column, or cannot be reached; or if the rows are none, or
            not as many as the schema says.

    Example::

        >>> import polars as pl, tempfile
        >>> from torchrec_mtl.data import Field
        >>> from torchrec_mtl.tasks import TaskChain
        >>> directory = tempfile.mkdtemp()
        >>> Schema("shop", [Field("store", 9)], TaskChain(["click"])).save(directory)
        >>> frame = pl.DataFrame({"store": [8, 0, 2, 1], "click": [0, 1, 0, 0]})
        >>> frame.write_parquet(f"{directory}/train.parquet", row_group_size=2)
        >>> split = stream_split(directory, "train")
        >>> len(split), split.group_rows.tolist(), split.base_rates().tolist()
        (4, [2, 2], [0.25])
    """
    if split not in SPLITS:
        raise InputError(f"`split` (={split!r}) must be one of {list(SPLITS)}")
    schema = load_schema(directory) if schema is None else schema
    location = locate(directory)
    selected = schema if fields is None else schema.select(fields)
    files = location.parts(split)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(lambda file: Footer.of(open_parquet(location, file, selected.columns)), files))
    source = f"{location.name}/{split}.parquet" if files[0] == f"{split}.parquet" else f"{location.name}/{split}"
    streamed = StreamedSplit(selected, location, files, footers, source)
    if schema.num_rows.get(split) not in (None, len(streamed)):
        raise InputError(f"{source}: has {len(streamed)} rows, but its schema says {schema.num_rows[split]}")
    return streamed


@dataclass(frozen=True)
class Footer:
    """What the end of a parquet file says: rows of each row group, and a digest of everything."""

    group_rows: list[int]
    digest: str

    @classmethod
    def of(cls, opened: pq.ParquetFile) -> "Footer":
        content = pa.BufferOutputStream()
        opened.metadata.write_metadata_file(content)
        rows = [opened.metadata.row_group(number).num_rows for number in range(opened.metadata.num_row_groups)]
        return cls(rows, hashlib.sha256(content.getvalue()).hexdigest())


def open_parquet(location: Location, file: str, columns: Sequence[str]) -> pq.ParquetFile:
    """Opens a parquet file with ``columns``."""
    with location.reaching(file):
        handle = location.filesystem.open_input_file(f"{location.path}/{file}")
        # over a network, all columns of a row group are asked for at once
        return parquet.open_file(f"{location.name}/{file}", columns, handle, pre_buffer=location.is_remote)


class StreamedSplit:
    """Rows of parquet files; `stream_split` makes one.

    Args:
        schema: columns to read.
        location: folder of the data set.
        files: files of the split, relative to it.
        footers: the files' footers.
        source: name of the split in error messages.

    Attributes:
        group_rows: number of rows of each row group, int64 [R]; empty ones are left out.
        num_unknown: empty: unknown ids are not counted before they are read.
        fingerprint: digest of the columns, their meaning, and the files' footers, by which a run knows its data. A
            footer has the sizes of all columns and their least and greatest values, but not every value.
    """

    def __init__(
        self, schema: Schema, location: Location, files: Sequence[str], footers: Sequence[Footer], source: str
    ) -> None:
        self.schema, self.source = schema, source
        self._location, self.num_unknown = location, dict[str, tuple[int, int]]()
        self._digests = {file: footer.digest for file, footer in zip(files, footers, strict=True)}
        self._groups = [  # file, number in the file, first row in the file
            (file, number, first)
            for file, footer in zip(files, footers, strict=True)
            for number, first in enumerate(np.cumsum([0, *footer.group_rows])[:-1].tolist())
            if footer.group_rows[number]
        ]
        self.group_rows = np.array([rows for footer in footers for rows in footer.group_rows if rows], np.int64)
        if not len(self.group_rows):
            raise InputError(f"{source}: must have at least one row")
        content = " ".join([columns_text(schema), *(footer.digest for footer in footers)])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return int(self.group_rows.sum())

    def reader(self) -> "RowGroupReader":
        """Returns a new reader, for one thread."""
        return RowGroupReader(self._location, self.schema, self._groups, self._digests)

    @cached_property
    def _counts(self) -> LabelCounts:
        reader, tasks = self.reader(), self.schema.tasks
        targets = tuple(dict.fromkeys(c for c in (*tasks.label_columns, *tasks.weight_columns) if c))
        counts, columns = LabelCounts(tasks), [task.weight_column or task.name for task in tasks.tasks]
        for group in range(len(self.group_rows)):
            for source, table in reader.tables(group, targets, parquet.SLAB_ROWS):
                weights = parquet.label_weights(source, table, tasks.weight_columns)
                labels = parquet.floats(source, table, tasks.label_columns)
                if weights is not None:
                    checks.check_weights(source, columns, weights)
                checks.check_labels(
                    source, tasks, labels, np.ones(labels.shape, bool) if weights is None else weights > 0
                )
                counts.add(labels, weights)
        return counts

    def base_rates(self) -> Tensor:
        """Returns the share of positives among the labelled rows of each task that happens or does not.

        The first call reads the labels."""
        return self._counts.base_rates()

    def value_statistics(self) -> dict[str, LabelStatistics]:
        """Returns the statistics of each task that is a value, by name; the first call reads the labels."""
        return self._counts.values()


class RowGroupReader:
    """Reads row groups of a split's files, of which the last few stay open.

    Args:
        location, schema: folder of the data set, and columns to read.
        groups: file of each row group, its number there, and the number of its first row there.
        digests: digest of each file's footer.
    """

    def __init__(
        self,
        location: Location,
        schema: Schema,
        groups: Sequence[tuple[str, int, int]],
        digests: Mapping[str, str],
    ) -> None:
        self._location, self._schema, self._groups, self._digests = location, schema, groups, digests
        self._open = lru_cache(OPEN_FILES)(self._open_unchanged)

    def _open_unchanged(self, file: str) -> pq.ParquetFile:
        opened = open_parquet(self._location, file, self._schema.columns)
        if Footer.of(opened).digest != self._digests[file]:
            raise TrainingError(f"{self._location.name}/{file}: has changed since the split was opened")
        return opened

    def slabs(self, group: int) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yields the rows of a row group in order, checked, some at a time: their number, and the arrays of `Split`.

        Raises:
            InputError: as `read_split` does for a bad row; names the file and its row.
            TrainingError: if the file has changed, or cannot be read over a network.
        """
        has_lists = any(field.multi_valued for field in self._schema.fields)
        num_rows = parquet.LIST_SLAB_ROWS if has_lists else parquet.SLAB_ROWS
        for source, table in self.tables(group, self._schema.columns, num_rows):
            yield table.height, dict(parquet.to_split(source, table, self._schema).arrays)
            del table  # before the next rows are read

    def groups(self, group: int) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yields the array "groups" only, and reads no other column; otherwise as `slabs`."""
        column = self._schema.group
        assert column is not None
        for source, table in self.tables(group, [column], parquet.SLAB_ROWS):
            values = parquet.values_without_null(source, table[column])
            checks.check_integers(source, column, values)
            yield table.height, {"groups": values.astype(np.int64)}

    def tables(self, group: int, columns: Sequence[str], num_rows: int) -> Iterator[tuple[Source, pl.DataFrame]]:
        """Yields some columns of a row group, ``num_rows`` rows at a time, and where the rows are."""
        file, number, first = self._groups[group]
        name = f"{self._location.name}/{file}"
        with self._location.reaching(file, TrainingError):
            opened = self._open(file)
            for table in parquet.read_tables(name, opened, columns, num_rows, row_groups=[number], use_threads=False):
                yield Source(name, first), table
                first += table.height
                del table  # before the next rows are read
