"""A small prepared data set whose labels depend on whether, and how late, the offered item was seen before."""

from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data import Field, Schema, build_once
from torchrec_mtl.tasks import TaskChain

ROWS = {"train": 1500, "valid": 300, "test": 200}
NUM_ITEMS = 12
SCHEMA = Schema(
    name="seen",
    fields=[
        Field("user", 20),
        Field("item", NUM_ITEMS, unknown_row=0),
        Field("last.items", NUM_ITEMS, multi_valued=True, shares="item", unknown_row=0, pooling="mean"),
        Field("liked", NUM_ITEMS, multi_valued=True, shares="item", pooling="mean"),
        Field("tags", 6, multi_valued=True),
    ],
    tasks=TaskChain(["click", "purchase"]),
    dense=["price"],
    group="user",
)


def columns(num_rows: int, seed: int) -> dict[str, list]:
    """Items that were seen are clicked more; 0 to 6 were seen, and those not in the vocabulary are ids 99."""
    rng = np.random.default_rng(seed)
    item = rng.integers(1, NUM_ITEMS, num_rows)
    seen = [rng.integers(1, NUM_ITEMS, rng.integers(0, 7)).tolist() for _ in range(num_rows)]
    known = np.array([number in items for number, items in zip(item, seen, strict=True)])
    labels = np.cumprod(rng.random((num_rows, 2)) < np.where(known, 0.9, 0.3)[:, None], axis=1)
    return {
        "user": rng.integers(0, 20, num_rows).tolist(),
        "item": item.tolist(),
        "last.items": [[99, *items] if items[:1] == [1] else items for items in seen],
        "liked": [rng.integers(0, NUM_ITEMS, rng.integers(0, 3)).tolist() for _ in range(num_rows)],
        "tags": [rng.integers(0, 6, rng.integers(0, 3)).tolist() for _ in range(num_rows)],
        "price": rng.normal(size=num_rows).tolist(),
        "click": labels[:, 0].tolist(),
        "purchase": labels[:, 1].tolist(),
    }


def prepare(directory: Path, **rows: int) -> Path:
    def build(folder: Path) -> Schema:
        for seed, (split, num_rows) in enumerate({**ROWS, **rows}.items()):
            pl.DataFrame(columns(num_rows, seed)).write_parquet(folder / f"{split}.parquet")
        return SCHEMA

    return build_once(directory, build)
