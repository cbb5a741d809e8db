"""The two forms that features take in columns: one id a field and row, or lists of ids with weights.

A *table* has a column for each field, named as the field is. Before encoding ids are raw (int64), afterwards they
are codes of a vocabulary. `SingleColumns` has 0 for a missing feature, before and after. `ListColumns` has an empty
list, and another column with the weights.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array, from_lists, to_lists
from torchrec_mtl.data.raw.hashes import mix
from torchrec_mtl.datasets.ali_ccp.lines import Triples

Encode = Callable[[str, Array], Array]  # field, raw ids -> codes, from 0


class SingleColumns:
    """One id a field: of several the last, and of those the common features' one, as a dict updated by them has it."""

    multi_valued = False

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)

    def table(self, triples: Triples, num_rows: int) -> pl.DataFrame:
        """Raw ids of ``num_rows`` lines."""
        ids = np.zeros((len(self.fields), num_rows), np.int64)
        ids[triples.fields, triples.rows] = triples.ids
        if not np.array_equal(ids[triples.fields, triples.rows], triples.ids):  # a field occurs twice in a line
            cells = pl.DataFrame({"field": triples.fields, "row": triples.rows, "id": triples.ids})
            last = cells.unique(["field", "row"], keep="last", maintain_order=True)
            ids[last["field"].to_numpy(), last["row"].to_numpy()] = last["id"].to_numpy()
        return pl.DataFrame(dict(zip(self.fields, ids, strict=True)))

    def without(self, table: pl.DataFrame, common: pl.DataFrame) -> pl.DataFrame:
        """``table`` without the features that its rows' ``common`` features have too."""
        own = {field: np.where(common[field].to_numpy() == 0, table[field].to_numpy(), 0) for field in self.fields}
        return pl.DataFrame(own)

    def raw_ids(self, table: pl.DataFrame, field: str) -> tuple[Array, Array]:
        """The ids of all features there are of a field, and their rows."""
        ids = table[field].to_numpy()
        rows = np.flatnonzero(ids)
        return ids[rows], rows

    def hashes(self, table: pl.DataFrame) -> Array:
        """A uint64 a row that, added to that of its common features, stands for all its features."""
        hashed = np.zeros(table.height, np.uint64)
        for position, field in enumerate(self.fields):
            ids = table[field].to_numpy()
            hashed += np.where(ids == 0, np.uint64(0), mix(ids, position))
        return hashed

    def encode(self, table: pl.DataFrame, encode: Encode) -> pl.DataFrame:
        return pl.DataFrame({field: encode(field, table[field].to_numpy()) for field in self.fields})

    def join(self, common: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
        """Encoded features of rows, common ones included; at most one of the two is not 0."""
        return pl.DataFrame({field: table[field].to_numpy() + common[field].to_numpy() for field in self.fields})


class ListColumns:
    """All ids of a field with their values as weights; common features first, then those of the row itself."""

    multi_valued = True

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)

    def table(self, triples: Triples, num_rows: int) -> pl.DataFrame:
        """Raw ids and weights of ``num_rows`` lines."""
        assert triples.values is not None
        order = np.argsort(triples.fields, kind="stable")
        bounds = np.searchsorted(triples.fields[order], np.arange(len(self.fields) + 1))
        columns = {}
        for field, start, end in zip(self.fields, bounds, bounds[1:], strict=False):
            own = order[start:end]
            lengths = np.bincount(triples.rows[own], minlength=num_rows)
            offsets = np.concatenate([[0], lengths.cumsum()])
            columns[field] = to_lists(triples.ids[own], offsets)
            columns[weight_column(field)] = to_lists(triples.values[own], offsets)
        return pl.DataFrame(columns)

    def without(self, table: pl.DataFrame, common: pl.DataFrame) -> pl.DataFrame:
        """``table``: nothing is dropped."""
        return table

    def raw_ids(self, table: pl.DataFrame, field: str) -> tuple[Array, Array]:
        """The ids of all features there are of a field, and their rows."""
        ids, offsets = from_lists(table[field])
        return ids, np.repeat(np.arange(table.height), np.diff(offsets))

    def hashes(self, table: pl.DataFrame) -> Array:
        """A uint64 a row that, added to that of its common features, stands for all its features."""
        hashed = np.zeros(table.height, np.uint64)
        for position, field in enumerate(self.fields):
            ids, offsets = from_lists(table[field])
            weights, _ = from_lists(table[weight_column(field)])
            each = mix(ids ^ (weights.view(np.int32).astype(np.int64) << 31), position)
            summed = np.concatenate([np.zeros(1, np.uint64), each.cumsum(dtype=np.uint64)])
            hashed += summed[offsets[1:]] - summed[offsets[:-1]]
        return hashed

    def encode(self, table: pl.DataFrame, encode: Encode) -> pl.DataFrame:
        columns = {}
        for field in self.fields:
            ids, offsets = from_lists(table[field])
            columns[field] = to_lists(encode(field, ids), offsets)
            columns[weight_column(field)] = table[weight_column(field)]
        return pl.DataFrame(columns)

    def join(self, common: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
        """Encoded features of rows, common ones included."""
        return table.select(pl.concat_list(common[name], pl.col(name)).alias(name) for name in table.columns)


def weight_column(field: str) -> str:
    return f"{field}_weights"
