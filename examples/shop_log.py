"""Writes a small log of a shop as CSV, as raw as logs are: ids that are text, missing values, times, a funnel.

``python examples/shop_log.py shop.csv``; docs/your_own_table.md goes on from there.
"""

import csv
import sys
from datetime import datetime, timedelta

import numpy as np

NUM_ROWS, NUM_USERS, NUM_ITEMS, NUM_CATEGORIES = 20_000, 600, 250, 12
BEGIN = datetime(2026, 11, 1)
COLUMNS = ["ts", "user", "item", "category", "device", "price", "ctr_7d", "click", "cart", "buy"]


def rows(seed: int = 0) -> list[list[object]]:
    """Returns the rows, oldest first. Users prefer some categories, and items of high quality are bought more often."""
    rng = np.random.default_rng(seed)
    category_of = rng.integers(0, NUM_CATEGORIES, NUM_ITEMS)
    quality, taste = rng.normal(size=NUM_ITEMS), rng.normal(size=(NUM_USERS, NUM_CATEGORIES))
    user = (NUM_USERS * rng.random(NUM_ROWS) ** 2).astype(int)  # few users have many rows
    item = (NUM_ITEMS * rng.random(NUM_ROWS) ** 2).astype(int)
    price = np.round(np.exp(rng.normal(2.5, 0.8, NUM_ITEMS)), 2)[item]
    score = quality[item] + taste[user, category_of[item]]
    steps = [score - 1.0, score - 0.7, score - 0.03 * price]
    happened = np.cumprod([rng.random(NUM_ROWS) < 1 / (1 + np.exp(-step)) for step in steps], axis=0)
    seconds = np.sort(rng.integers(0, 20 * 86_400, NUM_ROWS))
    shown = rng.random((NUM_ROWS, 3)) > 0.05  # the others are missing
    device = rng.choice(["phone", "web", "tablet"], NUM_ROWS, p=[0.6, 0.3, 0.1])
    rate = np.round(1 / (1 + np.exp(1 - quality[item] - rng.normal(0, 0.5, NUM_ROWS))), 3)
    return [
        [
            (BEGIN + timedelta(seconds=int(seconds[n]))).isoformat(),
            f"u{user[n]:04}",
            f"sku-{item[n]:03}",
            f"c{category_of[item[n]]}",
            device[n] if shown[n, 0] else "",
            price[n] if shown[n, 1] else "",
            rate[n] if shown[n, 2] else "",
            *happened[:, n],
        ]
        for n in range(NUM_ROWS)
    ]


if __name__ == "__main__":
    with open(sys.argv[1], "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows())
