"""The table of `benchmarks.table_preparation` in pandas, as one writes it by hand: all rows in memory."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

VOCABULARIES = {"user": (3, 200_000), "item": (2, None), "shop": (1, None), "category": (1, None)}
VOCABULARIES |= {"city": (1, None), "device": (1, None)}  # smallest count, largest size
LAST, WITHIN = 20, 30 * 86400 * 10**6  # of the history, in microseconds


def prepare(raw: Path, folder: Path, valid_from: str, test_from: str) -> tuple[int, dict[str, int], int]:
    """Prepares the table; returns the number of rows, of ids of each field, and of values in histories."""
    rows = pd.read_parquet(raw)
    train = rows["ts"] < pd.Timestamp(valid_from)
    columns: dict[str, Any] = {}
    num_ids = {}
    for name, (min_count, max_size) in VOCABULARIES.items():
        counts = rows.loc[train, name].value_counts().rename_axis("value").reset_index(name="count")
        counts = counts.sort_values(["count", "value"], ascending=[False, True])
        values = counts.loc[counts["count"] >= min_count, "value"].iloc[:max_size]
        ids = rows[name].map(pd.Series(np.arange(2, len(values) + 2), index=values))
        columns[name] = ids.fillna(rows[name].notna().astype(int)).astype(np.int32)  # missing is 0, unknown 1
        num_ids[name] = len(values) + 2
    edges = np.unique(rows.loc[train, "price"].dropna().quantile(np.arange(1, 32) / 32, interpolation="lower"))
    columns["price"] = np.where(rows["price"].isna(), 0, np.searchsorted(edges, rows["price"], side="left") + 1)
    rounds = np.rint(np.log2(1 + rows["dwell"]))
    smallest, largest = rounds[train].min(), rounds[train].max()
    columns["dwell"] = (rounds.clip(smallest, largest) - smallest + 1).fillna(0).astype(np.int32)
    columns["hour"] = rows["ts"].dt.hour + 1
    num_ids |= {"price": len(edges) + 2, "dwell": int(largest - smallest) + 2, "hour": 25, "recent": num_ids["item"]}
    for name in ("age", "ctr"):
        low, high = rows.loc[train, name].quantile([0.001, 0.999])
        values = rows[name].clip(low, high)
        columns[name] = ((values - values[train].mean()) / values[train].std()).fillna(0).astype(np.float32)
        columns[f"{name}_missing"] = rows[name].isna().astype(np.float32)
    columns["recent"] = histories(rows, columns["item"])
    encoded = pd.DataFrame({**columns, "ts": rows["ts"], "click": rows["click"], "cart": rows["cart"]})
    valid = ~train & (rows["ts"] < pd.Timestamp(test_from))
    for split, chosen in {"train": train, "valid": valid, "test": ~train & ~valid}.items():
        encoded[chosen].to_parquet(folder / f"{split}.parquet", compression="zstd")
    return len(rows), num_ids, int(encoded["recent"].str.len().sum())


def histories(rows: pd.DataFrame, items: pd.Series) -> pd.Series:
    """The ids of each user's last items strictly before the row, within the window."""
    users, times = pd.factorize(rows["user"])[0], rows["ts"].astype("datetime64[us]").astype(np.int64).to_numpy()
    order = np.lexsort((times, users))
    lists: list[list[int]] = [[]] * len(rows)
    user, seen, waiting = -1, deque[tuple[int, int]](maxlen=LAST), list[tuple[int, int]]()
    ids = items.to_numpy()
    for row, row_user, time, item in zip(
        order.tolist(), users[order].tolist(), times[order].tolist(), ids[order].tolist(), strict=True
    ):
        if row_user != user:
            user, seen, waiting = row_user, deque(maxlen=LAST), []
        if waiting and waiting[-1][0] < time:  # rows of equal time do not see each other
            seen.extend(waiting)
            waiting = []
        lists[row] = [each for at, each in seen if at >= time - WITHIN]
        waiting.append((time, item))
    return pd.Series(lists, index=rows.index)
