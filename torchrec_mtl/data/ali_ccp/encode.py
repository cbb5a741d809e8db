"""The second pass: rows as ids of embedding tables, in the files of a prepared data set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow.parquet as pq

from torchrec_mtl.data.ali_ccp.columns import smallest_type
from torchrec_mtl.data.ali_ccp.common import Columns, CommonFeatures
from torchrec_mtl.data.ali_ccp.impressions import BROKEN, VALID, Impressions, uniform
from torchrec_mtl.data.ali_ccp.layout import LABELS
from torchrec_mtl.data.ali_ccp.vocabulary import Vocabularies
from torchrec_mtl.data.checks import Array
from torchrec_mtl.data.raw.blocks import Progress, map_in_order

KNOWN = "known"  # the weight column: 0 where a row has a purchase and no click
LIST_ROW_GROUP = 8192  # rows with lists of several hundred ids


def count_ids(columns: Columns, common: CommonFeatures, impressions: Impressions, min_count: int) -> Vocabularies:
    """The ids that occur ``min_count`` times or more in the rows, common features counted once a row."""
    start, counts = 0, impressions.counts
    for table in common.tables():
        references = pl.Series(impressions.references[start : start + table.height])
        start += table.height
        for field in columns.fields:
            counts[field].add(columns.raw_ids(table, field, references))
    return Vocabularies({field: counts[field].at_least(max(1, min_count)) for field in columns.fields})


@dataclass(frozen=True)
class Encoder:
    """Encodes impressions.

    Args:
        columns: the form of features.
        vocabularies: of train.
        keeps_broken: whether there may be rows with a purchase and no click, and a column to mask them.
        valid_share: of train's rows, drawn by line; 0 for test.
        seed: of that draw.
    """

    columns: Columns
    vocabularies: Vocabularies
    keeps_broken: bool
    valid_share: float
    seed: int

    def tables(
        self, common: CommonFeatures, impressions: Impressions, stage: str, progress: Progress, num_threads: int
    ) -> Iterator[tuple[pl.DataFrame, Array]]:
        """The rows of each part with all columns of the data set, and which of them are for valid."""
        of_common = self._of_common(common)

        def encode(table: pl.DataFrame) -> tuple[pl.DataFrame, Array]:
            joined = self.columns.join(of_common[table["place"].to_numpy()], self._codes(table))
            known = [(~BROKEN).cast(pl.UInt8).alias(KNOWN)] if self.keeps_broken else []
            rows = table.select(*LABELS, *known, "user").hstack(joined)
            return rows, uniform(table["line"].to_numpy(), self.seed, VALID) < self.valid_share

        done = 0
        for rows, is_valid in map_in_order(encode, impressions.tables(), num_threads):
            done += rows.height
            progress(stage, done, done / impressions.tally["kept"])
            yield rows, is_valid

    def _of_common(self, common: CommonFeatures) -> pl.DataFrame:
        """Column by column, so that no two copies of all are in memory at once."""
        columns: dict[str, list[pl.Series]] = {}
        for table in common.tables():
            for column in self._codes(table):
                columns.setdefault(column.name, []).append(column)
        return pl.DataFrame([pl.concat(columns.pop(name), rechunk=True) for name in list(columns)])

    def _codes(self, table: pl.DataFrame) -> pl.DataFrame:
        def encode(field: str, ids: Array) -> Array:
            return self.vocabularies.encode(field, ids).astype(smallest_type(self.vocabularies.num_embeddings(field)))

        return self.columns.encode(table, encode)


class ParquetFiles:
    """Files that grow by row groups; ``num_rows`` says how far each is."""

    def __init__(self, files: Mapping[str, Path], multi_valued: bool) -> None:
        self.num_rows = dict.fromkeys(files, 0)
        self._files, self._multi_valued = files, multi_valued
        self._writers: dict[str, pq.ParquetWriter] = {}

    def write(self, name: str, rows: pl.DataFrame) -> None:
        table = rows.to_arrow()
        if name not in self._writers:
            # A user's lists come again row after row: zstd finds them, unless a dictionary has packed them into bits.
            self._writers[name] = pq.ParquetWriter(
                self._files[name], table.schema, compression="zstd", use_dictionary=not self._multi_valued
            )
        if rows.height:
            self._writers[name].write_table(table, row_group_size=LIST_ROW_GROUP if self._multi_valued else None)
            self.num_rows[name] += rows.height

    def __enter__(self) -> "ParquetFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
