"""The second pass: rows as ids of embedding tables, in the files of a prepared data set."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from torchrec_mtl.data.ali_ccp.common import Columns, CommonFeatures
from torchrec_mtl.data.ali_ccp.impressions import BROKEN, Impressions
from torchrec_mtl.data.ali_ccp.layout import LABELS
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.blocks import Progress, map_in_order
from torchrec_mtl.data.raw.hashes import is_valid
from torchrec_mtl.data.raw.vocabulary import Vocabularies

KNOWN = "known"  # the weight column: 0 where a row has a purchase and no click


def count_ids(columns: Columns, common: CommonFeatures, impressions: Impressions, min_count: int) -> Vocabularies:
    """The ids that occur ``min_count`` times or more in the rows, common features counted once a row."""
    start, counts = 0, impressions.counts
    for table in common.tables():
        references = impressions.references[start : start + table.height]
        start += table.height
        for field in columns.fields:
            ids, rows = columns.raw_ids(table, field)
            counts[field].add(ids, references[rows])
    return Vocabularies({field: counts[field].at_least(max(1, min_count)) for field in columns.fields})


@dataclass(frozen=True)
class Encoder:
    """Encodes impressions.

    Args:
        columns: the form of features.
        vocabularies: of train.
        keeps_broken: whether there may be rows with a purchase and no click, and a column to mask them.
        seed: of the rows for valid.
    """

    columns: Columns
    vocabularies: Vocabularies
    keeps_broken: bool
    seed: int

    def tables(
        self, common: CommonFeatures, impressions: Impressions, stage: str, progress: Progress, num_threads: int
    ) -> Iterator[tuple[pl.DataFrame, Array]]:
        """The rows of each part with all columns of the data set, and which of them are for valid if it is train."""
        of_common = self._of_common(common)

        def encode(table: pl.DataFrame) -> tuple[pl.DataFrame, Array]:
            joined = self.columns.join(of_common[table["place"].to_numpy()], self._codes(table))
            known = [(~BROKEN).cast(pl.UInt8).alias(KNOWN)] if self.keeps_broken else []
            rows = table.select(*LABELS, *known, "user").hstack(joined)
            return rows, is_valid(table["line"].to_numpy(), self.seed)

        done = 0
        for rows, for_valid in map_in_order(encode, impressions.tables(), num_threads):
            done += rows.height
            progress(stage, done, done / impressions.tally["kept"])
            yield rows, for_valid

    def _of_common(self, common: CommonFeatures) -> pl.DataFrame:
        """Column by column, so that no two copies of all are in memory at once."""
        columns: dict[str, list[pl.Series]] = {}
        for table in common.tables():
            for column in self._codes(table):
                columns.setdefault(column.name, []).append(column)
        return pl.DataFrame([pl.concat(columns.pop(name), rechunk=True) for name in list(columns)])

    def _codes(self, table: pl.DataFrame) -> pl.DataFrame:
        return self.columns.encode(table, self.vocabularies.encode)
