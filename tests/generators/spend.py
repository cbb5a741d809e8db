"""A log of a shop with a funnel: how long a click is read, what a purchase costs, and how it is rated."""

from pathlib import Path

import numpy as np
import polars as pl

NUM_USERS, NUM_ITEMS = 40, 12


def rows(num_rows: int, seed: int = 0) -> pl.DataFrame:
    """Items of high number are bought less and cost more; a value is null where the step before did not happen."""
    rng = np.random.default_rng(seed)
    item = rng.integers(0, NUM_ITEMS, num_rows)
    click = rng.random(num_rows) < 0.5
    buy = click & (rng.random(num_rows) < np.where(item < 6, 0.6, 0.3))
    dwell = np.where(click, rng.exponential(10.0 + item), np.nan)
    paid = rng.random(num_rows) < 0.8  # others have a voucher
    spend = np.where(buy, paid * rng.lognormal(2.0 + item / 6, 0.5, num_rows), np.nan)
    stars = np.clip(np.round(rng.normal(1 + item / 4, 0.7, num_rows)), 0, 4)
    return pl.DataFrame(
        {
            "split": rng.choice(["train", "valid", "test"], num_rows, p=[0.6, 0.2, 0.2]),
            "user": [f"u{number}" for number in rng.integers(0, NUM_USERS, num_rows)],
            "item": [f"i{number}" for number in item],
            "click": click,
            "buy": buy,
            "spend": spend,
            "dwell": dwell,
            "stars": np.where(buy, stars, np.nan),
        }
    ).with_columns(pl.col("spend", "dwell", "stars").fill_nan(None))


def write_log(file: Path, num_rows: int, seed: int = 0) -> Path:
    rows(num_rows, seed).write_parquet(file)
    return file
