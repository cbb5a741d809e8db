"""The two forms of features in columns: one id per field and row, or lists of ids with weights.

A *table* has a column for each field, under its name. Ids are raw (int64) before encoding, and codes of a vocabulary
afterwards. For a missing feature, `SingleColumns` has 0, before and after, and `ListColumns` an empty list.
`ListColumns` has a second column per field, with the weights.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array, from_lists, to_lists
from torchrec_mtl.data.raw.hashes import mix
from torchrec_mtl.data.table.declaration import weight_column
from torchrec_mtl.datasets.ali_ccp.lines import Triples


class SingleColumns:
    """One id per field: the last of several. The common features win, as in a dict that is updated with them."""

    multi_valued = False

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)

    def make_table(self, triples: Triples, num_rows: int) -> pl.DataFrame:
        """Returns the raw ids of ``num_rows`` lines."""
        ids = np.zeros((len(self.fields), num_rows), np.int64)
        ids[triples.fields, triples.rows] = triples.ids
        if not np.array_equal(ids[triples.fields, triples.rows], triples.ids):  # a line has a field twice
            cells = pl.DataFrame({"field": triples.fields, "row": triples.rows, "id": triples.ids})
            last = cells.unique(["field", "row"], keep="last", maintain_order=True)
            ids[last["field"].to_numpy(), last["row"].to_numpy()] = last["id"].to_numpy()
        return pl.DataFrame(dict(zip(self.fields, ids, strict=True)))

    def drop_overridden(self, table: pl.DataFrame, common: pl.DataFrame) -> pl.DataFrame:
        """Returns ``table`` without the features that the ``common`` features of its rows override."""
        kept = {field: np.where(common[field].to_numpy() == 0, table[field].to_numpy(), 0) for field in self.fields}
        return pl.DataFrame(kept)

    def raw_ids(self, table: pl.DataFrame, field: str) -> tuple[Array, Array]:
        """Returns the ids of a field in ``table``, and the row of each."""
        ids = table[field].to_numpy()
        rows = np.flatnonzero(ids)
        return ids[rows], rows

    def hash_rows(self, table: pl.DataFrame) -> Array:
        """Returns a uint64 per row; its sum with the hash of the common features stands for all features of the row."""
        hashed = np.zeros(table.height, np.uint64)
        for position, field in enumerate(self.fields):
            ids = table[field].to_numpy()
            hashed += np.where(ids == 0, np.uint64(0), mix(ids, position))
        return hashed

    def join(self, common: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
        """Returns all encoded features of rows; at most one of ``common`` and ``table`` is not 0."""
        return pl.DataFrame({field: table[field].to_numpy() + common[field].to_numpy() for field in self.fields})


class ListColumns:
    """All ids of a field, with the values as weights; common features first, then the features of the row itself."""

    multi_valued = True

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)

    def make_table(self, triples: Triples, num_rows: int) -> pl.DataFrame:
        """Returns the raw ids and the weights of ``num_rows`` lines."""
        assert triples.values is not None
        order = np.argsort(triples.fields, kind="stable")
        bounds = np.searchsorted(triples.fields[order], np.arange(len(self.fields) + 1))
        columns = {}
        for field, start, end in zip(self.fields, bounds, bounds[1:], strict=False):
            positions = order[start:end]
            lengths = np.bincount(triples.rows[positions], minlength=num_rows)
            offsets = np.concatenate([[0], lengths.cumsum()])
            columns[field] = to_lists(triples.ids[positions], offsets)
            columns[weight_column(field)] = to_lists(triples.values[positions], offsets)
        return pl.DataFrame(columns)

    def drop_overridden(self, table: pl.DataFrame, common: pl.DataFrame) -> pl.DataFrame:
        """Returns ``table``: common features override nothing."""
        return table

    def raw_ids(self, table: pl.DataFrame, field: str) -> tuple[Array, Array]:
        """Returns the ids of a field in ``table``, and the row of each."""
        ids, offsets = from_lists(table[field])
        return ids, np.repeat(np.arange(table.height), np.diff(offsets))

    def hash_rows(self, table: pl.DataFrame) -> Array:
        """Returns a uint64 per row; its sum with the hash of the common features stands for all features of the row."""
        hashed = np.zeros(table.height, np.uint64)
        for position, field in enumerate(self.fields):
            ids, offsets = from_lists(table[field])
            weights, _ = from_lists(table[weight_column(field)])
            each = mix(ids ^ (weights.view(np.int32).astype(np.int64) << 31), position)
            sums = np.concatenate([np.zeros(1, np.uint64), each.cumsum(dtype=np.uint64)])
            hashed += sums[offsets[1:]] - sums[offsets[:-1]]
        return hashed

    def join(self, common: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
        """Returns all encoded features of rows."""
        return table.select(pl.concat_list(common[name], pl.col(name)).alias(name) for name in table.columns)
