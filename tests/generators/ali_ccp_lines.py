"""Turns generated features into lines of the raw files."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array
from torchrec_mtl.datasets.ali_ccp.layout import CROSS, USER

HISTORIES = tuple(field for field in USER if field.endswith("_14"))
USER_FIELDS = tuple(field for field in USER if field not in HISTORIES)
MISSING = 3  # code of a user or cross field that stands for a missing value, and is not written
HISTORY_IDS = 10_000
VALUES = pl.Series([f"{value:.5f}".rstrip("0") for value in np.log1p(np.arange(1, 200))])


class RawLines:
    """Turns codes into lines.

    Args:
        first_ids: raw id of code 0 of each field.
        history_length: mean number of ids in each history.
    """

    def __init__(self, first_ids: Mapping[str, int], history_length: int) -> None:
        self._first_ids, self._history_length = first_ids, history_length

    def common(self, rng: np.random.Generator, users: pl.DataFrame, keys: pl.Series) -> pl.DataFrame:
        """Returns a line per user, with random histories."""
        features = users.select(self._feature(field) for field in USER_FIELDS)
        for field in HISTORIES:
            lengths = rng.poisson(self._history_length, users.height)
            codes = rng.zipf(1.3, lengths.sum()) % HISTORY_IDS
            values = VALUES.gather(rng.integers(len(VALUES), size=len(codes)))
            texts = self._texts(field, pl.Series(codes), values)
            features = features.with_columns(_join_texts(texts, lengths).alias(field))
        return _line(rng, [keys], features)

    def skeleton(self, rng: np.random.Generator, items: pl.DataFrame, columns: list[pl.Series]) -> pl.DataFrame:
        """Returns a line per row, ``columns`` first; column ``list`` of ``items`` is field 210."""
        features = items.select(self._feature(field) for field in items.columns if field != "list")
        codes, lengths = items["list"].explode().drop_nulls(), items["list"].list.len().to_numpy()
        values = pl.repeat("1.0", len(codes), eager=True)
        features = features.with_columns(_join_texts(self._texts("210", codes, values), lengths).alias("210"))
        return _line(rng, columns, features)

    def _feature(self, field: str) -> pl.Expr:
        """Returns the feature as text, null if it is missing."""
        ids = (pl.col(field).cast(pl.Int64) + self._first_ids[field]).cast(pl.String)
        if field in USER_FIELDS or field in CROSS:
            ids = pl.when(pl.col(field) != MISSING).then(ids)
        value = pl.lit("2.99573" if field in CROSS else "1.0")
        return pl.concat_str(pl.lit(f"{field}\x02"), ids, pl.lit("\x03"), value).alias(field)

    def _texts(self, field: str, codes: pl.Series, values: pl.Series) -> pl.Series:
        ids = codes.cast(pl.Int64) + self._first_ids[field]
        parts = pl.DataFrame({"id": ids, "value": values})
        return parts.select(pl.format(f"{field}\x02{{}}\x03{{}}", "id", "value")).to_series()


def _join_texts(texts: pl.Series, lengths: Array) -> pl.Series:
    """Joins the texts of each row; null for a row without texts."""
    rows = pl.DataFrame({"row": np.repeat(np.arange(len(lengths)), lengths), "text": texts})
    joined = rows.group_by("row", maintain_order=True).agg(pl.col("text").str.join("\x01"))
    return pl.DataFrame({"row": np.arange(len(lengths))}).join(joined, on="row", how="left")["text"]


def _line(rng: np.random.Generator, columns: list[pl.Series], features: pl.DataFrame) -> pl.DataFrame:
    """Returns the columns, the number of features and the features, in an order that differs between blocks."""
    order = rng.permutation(features.columns).tolist()
    text = features.select(pl.concat_str(order, separator="\x01", ignore_nulls=True)).to_series()
    return pl.DataFrame([*columns, text.str.count_matches("\x02", literal=True).alias("feature_num"), text])
