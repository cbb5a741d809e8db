"""The common features: a user's, shared by all impressions with the same ``common_feature_index``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.encoders import find
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.lines import BadLine, Block, Progress, read_lines
from torchrec_mtl.datasets.ali_ccp.columns import ListColumns, SingleColumns
from torchrec_mtl.datasets.ali_ccp.layout import COMMON, USER_ID
from torchrec_mtl.datasets.ali_ccp.lines import parse_lines, pick_features, split_features

Columns = SingleColumns | ListColumns


@dataclass(frozen=True)
class CommonFeatures:
    """C sets of common features; those of the last two arguments are in the files' order.

    Args:
        file: where they are from.
        keys: sorted, uint64 ``[C]``.
        places: where the set of each key is among all, int64 ``[C]``.
        index: ``user`` (raw id, 0 if there is none), ``hash`` (of all its features) and ``line``.
        parts: files with their tables.
    """

    file: RawFile
    keys: Array
    places: Array
    index: pl.DataFrame
    parts: list[Path]

    def find(self, keys: Array) -> Array:
        """The places of the sets with these keys; -1 where there is none."""
        found = find(self.keys, keys)
        return np.where(found < 0, -1, self.places[found])

    def tables(self) -> Iterator[pl.DataFrame]:
        return (pl.read_ipc(part) for part in self.parts)


def users(ids: Array, rows: Array, num_rows: int) -> Array:
    """The first id ``[num_rows]`` of each row that has one, else 0."""
    found = np.zeros(num_rows, np.int64)
    first, positions = np.unique(rows, return_index=True)
    found[first] = ids[positions]
    return found


def read_common(
    file: RawFile, columns: Columns, folder: Path, bad_rows: BadRows, progress: Progress, num_threads: int
) -> CommonFeatures:
    """Reads a file of common features; their tables go to ``folder``.

    Raises:
        InputError: on a bad row, as ``bad_rows`` has it; a key that occurs before is one.
    """
    user = columns.fields.index(USER_ID)

    def parse(block: Block) -> tuple[pl.DataFrame, list[BadLine], Path]:
        lines = parse_lines(block, COMMON)
        features = lines.table if columns.multi_valued else pick_features(lines.table, columns.fields)
        triples = split_features(features, columns.fields, columns.multi_valued)
        table = columns.table(triples, features.height)
        is_user = triples.fields == user
        index = lines.table.select("key", "line").with_columns(
            user=users(triples.ids[is_user], triples.rows[is_user], table.height), hash=columns.hashes(table)
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
        bad_rows.add(file, line, f"{key:016x}", f"`common_feature_index` (='{key:016x}') must occur once")
    keys = index.unique("key", keep="first").sort("key")
    places = keys["place"].cast(pl.Int64).to_numpy()
    return CommonFeatures(file, keys["key"].to_numpy(), places, index.select("user", "hash", "line"), parts)
