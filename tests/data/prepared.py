"""A small data set with every kind of column."""

from pathlib import Path
from typing import Any

import polars as pl

from torchrec_mtl.data import Field, Schema
from torchrec_mtl.tasks import TaskChain

SCHEMA = Schema(
    name="shop",
    fields=[Field("store", 5), Field("user", 2**40), Field("tags", 4, multi_valued=True)],
    tasks=TaskChain(["click", "cart", "purchase"], weight_columns=["w1", "w2", "w3"]),
    dense=["price", "age"],
    group="user",
    num_rows={"train": 4},
    notes={"licence": "CC0"},
)
COLUMNS: dict[str, list[Any]] = {
    "store": [4, 0, 1, 1],
    "user": [2**40 - 1, 7, 2**31, 7],
    "tags": [[3, 0], [], [1], []],
    "price": [0.5, 1.5, 2.5, 3.5],
    "age": [40.0, 30.0, 20.0, 10.0],
    "click": [1, 1, 0, 1],
    "cart": [1, 0, 0, None],
    "purchase": [1, 0, 0, 1],
    "w1": [1.0, 2.0, 1.0, 1.0],
    "w2": [1.0, 1.0, 1.0, 0.0],
    "w3": [0.5, 1.0, 0.0, 1.0],
}


def write(directory: Path, split: str = "train", schema: Schema = SCHEMA, **changes: list[Any] | None) -> Path:
    """Writes ``schema.json`` and a split with some columns changed, or left out if None; returns the split's file."""
    columns = {name: values for name, values in {**COLUMNS, **changes}.items() if values is not None}
    frame = pl.DataFrame({name: pl.Series(name, values, strict=False) for name, values in columns.items()})
    if "tags" not in changes:
        frame = frame.with_columns(pl.col("tags").cast(pl.List(pl.Int64)))
    schema.save(directory)
    file = directory / f"{split}.parquet"
    frame.write_parquet(file)
    return file
