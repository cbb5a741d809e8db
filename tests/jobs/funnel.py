"""A small prepared data set with signal in it, for whole runs."""

from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data import Field, Schema, build_once
from torchrec_mtl.tasks import TaskChain

ROWS = {"train": 1500, "valid": 300, "test": 501}
SCHEMA = Schema(
    name="tiny",
    fields=[Field("user", 20), Field("item", 10), Field("tags", 6, multi_valued=True)],
    tasks=TaskChain(["click", "cart", "purchase"]),
    dense=["price"],
    group="user",
)


def columns(num_rows: int, seed: int) -> dict[str, list]:
    """Items of low number are clicked and bought more."""
    rng = np.random.default_rng(seed)
    item = rng.integers(0, 10, num_rows)
    happened = rng.random((num_rows, 3)) < np.where(item < 5, 0.9, 0.4)[:, None]
    labels = np.cumprod(happened, axis=1)
    return {
        "user": rng.integers(0, 20, num_rows).tolist(),
        "item": item.tolist(),
        "tags": [rng.integers(0, 6, rng.integers(0, 3)).tolist() for _ in range(num_rows)],
        "price": rng.normal(size=num_rows).tolist(),
        "click": labels[:, 0].tolist(),
        "cart": labels[:, 1].tolist(),
        "purchase": labels[:, 2].tolist(),
    }


def prepare(directory: Path, **rows: int) -> Path:
    def build(folder: Path) -> Schema:
        for seed, (split, num_rows) in enumerate({**ROWS, **rows}.items()):
            pl.DataFrame(columns(num_rows, seed)).write_parquet(folder / f"{split}.parquet")
        return SCHEMA

    return build_once(directory, build)
