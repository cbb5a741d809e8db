"""The second pass: encodes rows as ids of embedding tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.hashes import is_valid
from torchrec_mtl.data.raw.lines import Progress, map_in_order
from torchrec_mtl.data.table.declaration import Table
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.parts import as_batch
from torchrec_mtl.datasets.ali_ccp.common import Columns, CommonFeatures
from torchrec_mtl.datasets.ali_ccp.impressions import BROKEN, Impressions
from torchrec_mtl.datasets.ali_ccp.layout import LABELS
from torchrec_mtl.datasets.ali_ccp.protocols import KNOWN


def fit(table: Table, columns: Columns, common: CommonFeatures, impressions: Impressions) -> TableEncoder:
    """Returns the encoders, fitted on the raw train file; common features count once for each of their rows."""
    start, counts = 0, impressions.counts
    for features in common.tables():
        references = impressions.references[start : start + features.height]
        start += features.height
        for field in columns.fields:
            ids, rows = columns.raw_ids(features, field)
            counts[field].add_table(pl.DataFrame({"value": ids, "count": references[rows]}))
    fitted = {each.name: each.fit(counts[each.name].table()) for each in table.fields}
    lists = columns.fields if columns.multi_valued else ()
    return TableEncoder(table, fitted, frozenset(lists), dict.fromkeys(columns.fields, "integer"))


class MappedRows:
    """The rows of concatenated tables in memory-mapped files, so that only the rows in use need memory.

    Args:
        folder: folder for the files.
        tables: tables with the same columns, at least one.

    Example::

        >>> import tempfile
        >>> rows = MappedRows(Path(tempfile.mkdtemp()), (pl.DataFrame({"a": a}) for a in ([0, 10], [20], [30, 40])))
        >>> rows.take(np.array([4, 0, 2, 0]))["a"].to_list()
        [40, 0, 20, 0]
    """

    def __init__(self, folder: Path, tables: Iterator[pl.DataFrame]) -> None:
        self._parts = []
        for number, table in enumerate(tables):
            file = folder / f"coded-{number}.arrow"
            table.write_ipc(file)
            mapped = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
            self._parts.append(cast(pl.DataFrame, pl.from_arrow(mapped, rechunk=False)))
        self._bounds = np.cumsum([0, *(part.height for part in self._parts)])

    def take(self, places: Array) -> pl.DataFrame:
        """Returns the rows at ``places``, in that order."""
        order = np.argsort(places, kind="stable")
        ordered = places[order]
        cuts = np.searchsorted(ordered, self._bounds)
        parts = zip(self._parts, self._bounds, cuts, cuts[1:], strict=False)
        pieces = [part[ordered[first:last] - bound] for part, bound, first, last in parts if first < last]
        taken = pl.concat(pieces) if pieces else self._parts[0].clear()
        return taken[np.argsort(order)]


@dataclass(frozen=True)
class Encoder:
    """Encodes impressions.

    Args:
        columns: form of the features.
        encoder: encoders, fitted on the raw train file.
        seed: seed that draws the rows of valid.
    """

    columns: Columns
    encoder: TableEncoder
    seed: int

    def tables(
        self, common: CommonFeatures, impressions: Impressions, stage: str, progress: Progress, num_threads: int
    ) -> Iterator[tuple[pl.DataFrame, Array]]:
        """Yields the rows of each part, with all columns of the data set, and whether a train row is for valid."""
        is_masked = KNOWN in self.encoder.table.tasks.weight_columns
        known = [(~BROKEN).cast(pl.UInt8).alias(KNOWN)] if is_masked else []
        common_rows = MappedRows(common.parts[0].parent, (self._codes(table) for table in common.tables()))

        def encode(table: pl.DataFrame) -> tuple[pl.DataFrame, Array]:
            joined = self.columns.join(common_rows.take(table["place"].to_numpy()), self._codes(table))
            rows = table.select(*LABELS, *known, "user").hstack(joined)
            return rows, is_valid(table["line"].to_numpy(), self.seed)

        done = 0
        for rows, for_valid in map_in_order(encode, impressions.tables(), num_threads):
            done += rows.height
            progress(stage, done, done / impressions.tally["kept"])
            yield rows, for_valid

    def _codes(self, table: pl.DataFrame) -> pl.DataFrame:
        return self.encoder.encode(as_batch(table))
