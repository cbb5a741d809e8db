"""Reads what the ids of a prepared data set stand for, from its files."""

import json
from pathlib import Path

import polars as pl


def read_vocabularies(directory: Path) -> dict[str, list[int]]:
    """Returns the raw ids of each field, that of code 1 first."""
    fitted = json.loads((directory / "encoders.json").read_text())["fitted"]
    return {
        field: pl.read_parquet(directory / values["values"]["file"])["value"].to_list()
        for field, values in fitted.items()
    }
