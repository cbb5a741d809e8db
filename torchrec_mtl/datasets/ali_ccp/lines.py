"""Parses blocks of raw lines into columns, with Polars."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.lines import BadLine, Block, bad_lines, good_lines
from torchrec_mtl.datasets.ali_ccp.layout import FIELDS, LABELS, line_pattern, reason

TYPES = {
    "sample_id": pl.Int64,
    **dict.fromkeys(LABELS, pl.UInt8),
    "common_feature_index": pl.String,
    "feature_num": pl.UInt32,
    "features": pl.String,
}
FEATURES_TO_CSV = bytes.maketrans(b"\x01\x02\x03", b"\n,,")


@dataclass(frozen=True)
class Lines:
    """The good lines of a block, and the bad ones.

    Args:
        table: a row per good line: ``click`` and ``purchase`` (uint8, only of a skeleton file), ``key`` (uint64),
            ``num_features``, ``features`` (text) and ``line``, its number counted from 1.
        bad: bad lines.
    """

    table: pl.DataFrame
    bad: list[BadLine]


@dataclass(frozen=True)
class Triples:
    """The V features of N lines, in the order of the file.

    Args:
        rows: line of each feature, counted from 0, ``[V]``.
        fields: field of each feature, as its position among the requested fields, ``[V]``.
        ids: id of each feature, int64 ``[V]``.
        values: value of each feature, float32 ``[V]``; None if not requested.
    """

    rows: Array
    fields: Array
    ids: Array
    values: Array | None


def parse_lines(block: Block, columns: tuple[str, ...]) -> Lines:
    """Parses the lines of ``block``, whose columns before the features are ``columns``."""
    data, numbers = good_lines(block, line_pattern(columns))
    table = _split_columns(data, columns).with_columns(line=numbers)
    table = table.filter(pl.col("feature_num") == pl.col("num_features")).drop("feature_num")
    return Lines(table, bad_lines(block, table["line"].to_numpy(), lambda line: reason(columns, line)))


def _split_columns(data: bytes, columns: tuple[str, ...]) -> pl.DataFrame:
    schema = {column: TYPES[column] for column in (*columns, "features")}
    if not data:
        parts = pl.DataFrame(schema=schema)
    else:
        parts = pl.read_csv(data, has_header=False, quote_char=None, schema=schema)
    return parts.select(
        pl.col(label for label in LABELS if label in columns),
        pl.col("common_feature_index").str.to_integer(base=16, dtype=pl.UInt64).alias("key"),
        "feature_num",
        pl.col("features").str.count_matches("\x02", literal=True).alias("num_features"),
        "features",
    )


def pick_features(table: pl.DataFrame, fields: Sequence[str]) -> pl.DataFrame:
    """Returns good lines with only the features of ``fields``; saves time in `split_features` if these are few."""
    wanted = f"(?:{'|'.join(fields)})\x02[^\x01]+"  # no name of a field ends in the name of another
    picked = table["features"].str.extract_all(wanted)
    return table.with_columns(features=picked.list.join("\x01"), num_features=picked.list.len())


def split_features(table: pl.DataFrame, fields: Sequence[str], with_values: bool = False) -> Triples:
    """Returns the features of ``fields`` in good lines.

    Polars's CSV reader parses them as one text with a feature per line, which is faster than splitting strings.
    """
    positions = np.full(2 + max(_number(field) for field in FIELDS), -1)
    positions[[_number(field) for field in fields]] = range(len(fields))
    types = {"field": pl.Int32, "id": pl.Int64, "value": pl.Float32}
    texts = table.filter(pl.col("num_features") > 0)["features"]
    csv = texts.str.join("\x01").item().encode().translate(FEATURES_TO_CSV, delete=b"_")
    if csv:
        wanted = [0, 1, 2] if with_values else [0, 1]
        parts = pl.read_csv(csv, has_header=False, quote_char=None, schema=types, columns=wanted)
    else:
        parts = pl.DataFrame(schema=types)
    codes = positions[parts["field"].to_numpy()]
    rows = np.repeat(np.arange(table.height), table["num_features"].to_numpy())
    kept = slice(None) if len(fields) == len(FIELDS) else codes >= 0
    values = parts["value"].to_numpy()[kept] if with_values else None
    return Triples(rows[kept], codes[kept], parts["id"].to_numpy()[kept], values)


def _number(field: str) -> int:
    """Returns the name of a field without its underscore as a number: 10914 for 109_14. Numbers stay distinct."""
    return int(field.replace("_", ""))
