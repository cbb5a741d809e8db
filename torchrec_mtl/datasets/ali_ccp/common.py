"""The common features: features of a user that all impressions with the same ``common_feature_index`` share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array, find
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.lines import BadLine, Block, Progress, read_lines
from torchrec_mtl.datasets.ali_ccp.columns import ListColumns, SingleColumns
from torchrec_mtl.datasets.ali_ccp.layout import COMMON, USER_ID
from torchrec_mtl.datasets.ali_ccp.lines import parse_lines, pick_features, split_features
from torchrec_mtl.errors import shown

Columns = SingleColumns | ListColumns


@dataclass(frozen=True)
class CommonFeatures:
    """C sets of common features.

    Args:
        file: raw file of the sets.
        keys: keys of the sets, sorted, uint64 ``[C]``.
        places: position of the set of each key in the raw file, int64 ``[C]``.
        index: ``user`` (raw id, 0 if missing), ``hash`` (of all features) and ``line`` of each set, in the order of the
            raw file.
        parts: files with the tables of the sets, in the same order.
    """

    file: RawFile
    keys: Array
    places: Array
    index: pl.DataFrame
    parts: list[Path]

    def find(self, keys: Array) -> Array:
        """Returns the places of the sets with these keys; -1 where a key is unknown."""
        positions = find(self.keys, keys)
        return np.where(positions < 0, -1, self.places[positions])

    def tables(self) -> Iterator[pl.DataFrame]:
        """Yields the tables of the sets, part by part."""
        return (pl.read_ipc(part) for part in self.parts)


def first_ids(ids: Array, rows: Array, num_rows: int) -> Array:
    """Returns the first of the ``ids`` of each row, ``[num_rows]``; 0 for a row without one."""
    found = np.zeros(num_rows, np.int64)
    rows_with_ids, positions = np.unique(rows, return_index=True)
    found[rows_with_ids] = ids[positions]
    return found


def read_common(
    file: RawFile, columns: Columns, folder: Path, bad_rows: BadRows, progress: Progress, num_threads: int
) -> CommonFeatures:
    """Reads a file of common features, and writes their tables to ``folder``.

    Raises:
        InputError: on a bad row, as `BadRows.add` raises it; a row whose key has occurred before is bad.
    """
    user = columns.fields.index(USER_ID)

    def parse(block: Block) -> tuple[pl.DataFrame, list[BadLine], Path]:
        lines = parse_lines(block, COMMON)
        features = lines.table if columns.multi_valued else pick_features(lines.table, columns.fields)
        triples = split_features(features, columns.fields, columns.multi_valued)
        table = columns.make_table(triples, features.height)
        is_user = triples.fields == user
        index = lines.table.select("key", "line").with_columns(
            user=first_ids(triples.ids[is_user], triples.rows[is_user], table.height), hash=columns.hash_rows(table)
        )
        part = folder / f"common-{block.first_line}.arrow"
        table.write_ipc(part, compression="lz4")
        return index, lines.bad, part

    indices, parts = [], []
    for index, bad, part in read_lines(file, parse, file.name, progress, num_threads):
        bad_rows.add_lines(file, bad)
        indices.append(index)
        parts.append(part)
    index = pl.concat(indices).with_row_index("place")
    for key, line in index.filter(~pl.col("key").is_first_distinct()).select("key", "line").iter_rows():
        text = f"{key:016x}"
        bad_rows.add(file, line, text, f"`common_feature_index` (={shown(repr(text))}) must occur once")
    keys = index.unique("key", keep="first").sort("key")
    places = keys["place"].cast(pl.Int64).to_numpy()
    return CommonFeatures(file, keys["key"].to_numpy(), places, index.select("user", "hash", "line"), parts)
