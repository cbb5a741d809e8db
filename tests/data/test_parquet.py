import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.data.prepared import COLUMNS, SCHEMA, write
from torchrec_mtl.data import SPLITS, Schema, read_split
from torchrec_mtl.errors import InputError

NAN, INF = math.nan, math.inf
ALL = torch.arange(4)


def test_reads_every_kind_of_column(tmp_path: Path) -> None:
    write(tmp_path)
    split = read_split(tmp_path, "train")
    batch = split.batch(ALL)
    assert batch.sparse_features.keys() == ["store", "user", "tags"]
    assert batch.sparse_features["store"].values().tolist() == COLUMNS["store"]
    assert batch.sparse_features["user"].values().tolist() == COLUMNS["user"]  # ids above 2**31
    assert batch.sparse_features["tags"].values().tolist() == [3, 0, 1]
    assert batch.sparse_features["tags"].lengths().tolist() == [2, 0, 1, 0]
    assert batch.sparse_features.values().dtype == torch.int64
    assert batch.dense_features.T.tolist() == [COLUMNS["price"], COLUMNS["age"]]
    assert batch.labels.T.tolist() == [[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 0, 1]]
    assert batch.weights.T.tolist() == [COLUMNS["w1"], COLUMNS["w2"], COLUMNS["w3"]]
    assert (batch.labels.dtype, batch.weights.dtype) == (torch.float32, torch.float32)
    assert split.groups.tolist() == COLUMNS["user"]


def test_keys_are_the_fields_asked_for_in_that_order(tmp_path: Path) -> None:
    write(tmp_path)
    split = read_split(tmp_path, "train", fields=["tags", "store"])
    assert split.batch(ALL).sparse_features.keys() == ["tags", "store"]
    assert split.groups.tolist() == COLUMNS["user"]


def test_a_given_schema_replaces_the_one_in_the_directory(tmp_path: Path) -> None:
    write(tmp_path)
    schema = replace(SCHEMA, fields=SCHEMA.fields[:1], dense=(), group=None)
    batch = read_split(tmp_path, "train", schema=schema).batch(ALL)
    assert batch.sparse_features.keys() == ["store"]
    assert batch.dense_features.shape == (4, 0)


def test_a_directory_with_pattern_characters(tmp_path: Path) -> None:
    directory = tmp_path / "sh[o]p *"
    directory.mkdir()
    write(directory)
    assert len(read_split(directory, "train")) == 4


OUTSIDE_5 = "must be at least 0 and below `num_embeddings` (=5)"
OUTSIDE_4 = "must be at least 0 and below `num_embeddings` (=4)"
MASKED = "may be missing only where its weight is 0"
WEIGHT = "must be finite and at least 0"


@pytest.mark.parametrize(
    ("column", "values", "row", "rule"),
    [
        ("store", [4, 0, -1, 1], 2, f"id (=-1) {OUTSIDE_5}"),
        ("store", [4, 5, 1, 9], 1, f"id (=5) {OUTSIDE_5}"),
        ("store", [4, None, 1, 1], 1, "must not be null"),
        (
            "user",
            [0, 0, 0, 2**40],
            3,
            f"id (={2**40}) must be at least 0 and below `num_embeddings` (={2**40})",
        ),
        ("tags", [[3], [], [1, 4], [9]], 2, f"id (=4) {OUTSIDE_4}"),
        ("tags", [[], [], [], [-2]], 3, f"id (=-2) {OUTSIDE_4}"),
        ("tags", [[3], [], [1, None], []], 2, "must not be null"),
        ("tags", [[3], None, [1], []], 1, "must not be null"),
        ("price", [0, NAN, 0, 0], 1, "value (=nan) must be finite"),
        ("age", [0, 0, 0, -INF], 3, "value (=-inf) must be finite"),
        ("age", [0, 0, None, 0], 2, "value (=nan) must be finite"),
        ("click", [1, 2, 0, 1], 1, "label (=2.0) must be 0 or 1"),
        ("click", [1, 0.5, 0, 1], 1, "label (=0.5) must be 0 or 1"),
        ("click", [1, -1, 0, 1], 1, "label (=-1.0) must be 0 or 1"),
        ("click", [1, 1, 0, None], 3, f"label (=nan) {MASKED}"),
        ("cart", [NAN, 0, 0, 0], 0, f"label (=nan) {MASKED}"),
        ("cart", [1, 0, 0, 7], 3, "label (=7.0) must be 0 or 1"),  # though its weight is 0
        ("cart", [1, 0, 1, 0], 2, "'cart' (=1) must not happen without 'click' (=0)"),
        ("purchase", [1, 1, 0, 1], 1, "'purchase' (=1) must not happen without 'cart' (=0)"),
        ("w1", [1, 1, -1, 1], 2, f"weight (=-1.0) {WEIGHT}"),
        ("w2", [1, INF, 1, 0], 1, f"weight (=inf) {WEIGHT}"),
        ("w3", [1, NAN, 1, 1], 1, f"weight (=nan) {WEIGHT}"),
        ("w3", [1, None, 1, 1], 1, f"weight (=nan) {WEIGHT}"),
    ],
)
def test_wrong_value(tmp_path: Path, column: str, values: list[Any], row: int, rule: str) -> None:
    file = write(tmp_path, **{column: values})
    sentence = f"{file}: column {column!r}, row {row} (counted from 0): {rule}"
    with pytest.raises(InputError, match="^" + re.escape(sentence) + "$"):
        read_split(tmp_path, "train")


def test_a_purchase_without_a_click_and_with_a_masked_cart(tmp_path: Path) -> None:
    write(tmp_path, click=[1, 1, 0, 0])  # row 3 has a purchase and an unknown cart
    sentence = "column 'purchase', row 3 (counted from 0): 'purchase' (=1) must not happen without 'click' (=0)"
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_split(tmp_path, "train")


GROUPED = replace(SCHEMA, group="group")


@pytest.mark.parametrize(
    ("schema", "changes", "sentence"),
    [
        (SCHEMA, {"store": [4.0, 0.0, 1.0, 1.0]}, "column 'store' must hold integers, not float64"),
        (SCHEMA, {"store": ["a", "b", "c", "d"]}, "column 'store' must hold integers, not str"),
        (SCHEMA, {"store": [[4], [0], [1], [1]]}, "column 'store' must hold one id a row, not List(Int64)"),
        (SCHEMA, {"store": None}, "column 'store' is missing"),
        (SCHEMA, {"tags": [1, 1, 1, 1]}, "column 'tags' must hold lists of ids, not Int64"),
        (SCHEMA, {"tags": [["a"], [], [], []]}, "column 'tags' must hold integers, not str"),
        (SCHEMA, {"age": ["a", "b", "c", "d"]}, "column 'age' must hold numbers, not String"),
        (SCHEMA, {"purchase": None}, "column 'purchase' is missing"),
        (SCHEMA, {"w2": None}, "column 'w2' is missing"),
        (GROUPED, {}, "column 'group' is missing"),
        (GROUPED, {"group": [1, None, 2, 3]}, "column 'group', row 1 (counted from 0): must not be null"),
        (GROUPED, {"group": ["a", "b", "c", "d"]}, "column 'group' must hold integers, not str"),
        (SCHEMA, {name: column[:3] for name, column in COLUMNS.items()}, "has 3 rows, but its schema says 4"),
    ],
)
def test_wrong_column(tmp_path: Path, schema: Schema, changes: dict[str, Any], sentence: str) -> None:
    file = write(tmp_path, schema=schema, **changes)
    with pytest.raises(InputError, match="^" + re.escape(f"{file}: {sentence}") + "$"):
        read_split(tmp_path, "train")


def test_no_rows(tmp_path: Path) -> None:
    file = write(tmp_path, schema=replace(SCHEMA, num_rows={}))
    pl.read_parquet(file).clear().write_parquet(file)
    with pytest.raises(InputError, match="^" + re.escape(f"{file}: must have at least one row")):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.9])
def test_file_cut_short(tmp_path: Path, kept: float) -> None:
    file = write(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        InputError, match="^" + re.escape(f"{file}: must be a whole parquet file, but cannot be read (")
    ):
        read_split(tmp_path, "train")


def test_no_such_file_or_split(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=r"test\.parquet: no such file"):
        read_split(tmp_path, "test")
    with pytest.raises(InputError, match=re.escape(f"`split` (='dev') must be one of {list(SPLITS)}")):
        read_split(tmp_path, "dev")
    with pytest.raises(InputError, match="field 'shop' must be one of"):
        read_split(tmp_path, "train", fields=["shop"])
