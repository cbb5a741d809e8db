"""A log whose purchases come late, with the true probability of each."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

START = datetime(2026, 11, 1)
NUM_ITEMS, NUM_SEGMENTS = 40, 5
WINDOW = 7  # days
DAY = 24 * 3600 * 10**6


def time_of(day: float) -> datetime:
    return START + timedelta(days=day)


def write_log(folder: Path, seed: int, num_days: int, rows_per_day: int, drift: float) -> dict[str, str]:
    """Writes ``train.parquet``, of ``num_days``, and ``valid.parquet`` and ``test.parquet``, of the day after.

    Purchases follow clicks after a delay that is exponential, with a mean of half a day to six days by item. Column
    ``p`` is the true probability of a purchase within `WINDOW` days, marginal.

    Args:
        folder: where the files go.
        seed: of all random numbers.
        num_days: days of training rows.
        rows_per_day: rows of each day, and of each of the other splits.
        drift: standard deviation over items of the daily change of the logit of P(buy | click).

    Returns:
        The file of each split, as `torchrec_mtl.data.table.Table` takes them.
    """
    rng = np.random.default_rng(seed)
    click_of, buy_of = rng.normal(-0.5, 0.5, NUM_ITEMS), rng.normal(-0.5, 0.7, NUM_ITEMS)
    mean_of, drift_of = np.geomspace(0.5, 6.0, NUM_ITEMS), rng.normal(0.0, drift, NUM_ITEMS)
    rng.shuffle(mean_of)
    click_by, buy_by = rng.normal(0, 0.5, NUM_SEGMENTS), rng.normal(0, 0.5, NUM_SEGMENTS)
    spans = {"train": (0, num_days), "valid": (num_days, num_days + 1), "test": (num_days, num_days + 1)}
    files = {}
    for split, (first, last) in spans.items():
        num_rows = rows_per_day * (last - first)
        day = np.sort(rng.uniform(first, last, num_rows))
        item, segment = rng.integers(0, NUM_ITEMS, num_rows), rng.integers(0, NUM_SEGMENTS, num_rows)
        p_click = 1 / (1 + np.exp(-click_of[item] - click_by[segment]))
        p_buy = 1 / (1 + np.exp(-buy_of[item] - buy_by[segment] - drift_of[item] * (day - num_days)))
        click = rng.random(num_rows) < p_click
        buy = click & (rng.random(num_rows) < p_buy)
        bought = day + rng.exponential(mean_of[item])
        rows = pl.DataFrame(
            {
                "at": pl.Series((day * DAY).astype(np.int64)).cast(pl.Duration("us")) + START,
                "item": item,
                "segment": segment,
                "click": click.astype(np.int8),
                "buy": buy.astype(np.int8),
                "bought_at": pl.Series((bought * DAY).astype(np.int64)).cast(pl.Duration("us")) + START,
                "p": p_click * p_buy * -np.expm1(-WINDOW / mean_of[item]),
            }
        )
        rows = rows.with_columns(bought_at=pl.when(pl.col("buy") == 1).then("bought_at"))
        rows.write_parquet(folder / f"{split}.parquet")
        files[split] = str(folder / f"{split}.parquet")
    return files


def known_at(file: str, day: float) -> str:
    """Writes a log as it was read at a time, with what had happened by then within `WINDOW`; returns its file."""
    in_time = pl.col("bought_at") - pl.col("at") <= timedelta(days=WINDOW)
    known = in_time & (pl.col("bought_at") <= time_of(day))
    rows = pl.read_parquet(file).with_columns(
        buy=pl.when(known).then("buy").otherwise(0).cast(pl.Int8), bought_at=pl.when(known).then("bought_at")
    )
    other = file.replace(".parquet", "_known.parquet")
    rows.write_parquet(other)
    return other
