"""A raw log of several days, to which every day brings new items and of which prices drift; and its declaration."""

from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl

FIRST = date(2026, 11, 1)
DECLARATION = """
from torchrec_mtl import ByTime, Dense, Hashed, History, Bins, Table, TaskChain, Vocabulary

TABLE = Table({name!r}, {source!r}, TaskChain(["click", "buy"]), time="ts", group="user", fields=[
    Vocabulary("user", spare_rows={spare}),
    Vocabulary("item", spare_rows={spare}),
    History("recent", "item", last=3, within="2d"),
    Bins("price", 8),
    Dense("age"),
], split=ByTime("2026-11-08", "2026-11-09"))
"""


def rows_of(number: int, num_rows: int = 400, num_items: int = 30) -> pl.DataFrame:
    """The rows of the day with this number: one more item in ten is new."""
    random = np.random.default_rng(number)
    first = number * num_items // 10
    item = first + random.integers(0, num_items, num_rows)
    user = random.integers(0, 40, num_rows)
    click = random.random(num_rows) < 0.2 + 0.6 * (item % 2) * (user % 3 > 0)
    buy = click & (random.random(num_rows) < 0.3 + 0.4 * (item % 3 == 0))
    start = datetime.combine(FIRST + timedelta(days=number), datetime.min.time(), timezone.utc)
    seconds = np.sort(random.integers(0, 86_400, num_rows))
    return pl.DataFrame(
        {
            "ts": [(start + timedelta(seconds=int(each))).strftime("%Y-%m-%dT%H:%M:%S") for each in seconds],
            "user": [f"u{each}" for each in user],
            "item": [f"i{each}" for each in item],
            "price": [None if each % 17 == 0 else float(each) + 5 * number for each in item],
            "age": random.normal(40, 10, num_rows).round(1),
            "click": click.astype(int),
            "buy": buy.astype(int),
        }
    )


def write_days(folder: Path, num_days: int, spare: int = 50, name: str = "shop") -> Path:
    """Writes a file for each day and the declaration; returns the latter."""
    source = folder / "log"
    source.mkdir()
    for number in range(num_days):
        rows_of(number).write_csv(source / f"day_{number:02}.csv")
    file = folder / "shop.py"
    file.write_text(DECLARATION.format(name=name, source=str(source), spare=spare))
    return file
