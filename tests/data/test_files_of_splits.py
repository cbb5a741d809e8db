"""Parquet files that were changed, flipped, replaced or are of another kind, and the columns written from them."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import torchrec_mtl
from tests.data.prepared import SCHEMA, write
from torchrec_mtl.data import SPLITS, Field, Schema, read_split
from torchrec_mtl.data.writer import SplitFiles, write_parquet
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import Task, TaskChain

SHOP = Schema("shop", [Field("store", 2**20), Field("tags", 2**20, multi_valued=True)], TaskChain(["click"]), ["price"])


def rows(num_rows: int = 500, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "store": rng.integers(0, 2**20, num_rows),
            "tags": [rng.integers(0, 2**20, 3).tolist() for _ in range(num_rows)],
            "price": rng.random(num_rows),
            "click": rng.integers(0, 2, num_rows),
        }
    )


def stores(folder: Path) -> list[int]:
    split = read_split(folder, "train")
    return split.batch(torch.arange(len(split))).sparse_features["store"].values().tolist()


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """The sentence of an `InputError` and None, or no sentence and what the call returns."""
    try:
        return "", call()
    except InputError as error:
        return str(error), None


def replace_in_place(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def replace_by_rename(file: Path, content: bytes) -> None:
    (file.parent / "new").write_bytes(content)
    (file.parent / "new").rename(file)


@pytest.mark.parametrize("change", [replace_in_place, replace_by_rename])
def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path: Path, change) -> None:
    SHOP.save(tmp_path)
    file, other = tmp_path / "train.parquet", tmp_path / "other.parquet"
    first, second = rows(), rows().with_columns(pl.col("store").reverse())
    for frame, name in ((first, file), (second, other)):
        pq.write_table(frame.to_arrow(), name, compression="none", use_dictionary=False)
    assert stores(tmp_path) == first["store"].to_list()
    status, content = file.stat(), other.read_bytes()
    assert len(content) == status.st_size
    change(file, content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert stores(tmp_path) == second["store"].to_list()


def test_columns_of_a_copied_or_touched_file_are_kept(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    write(tmp_path / "shop")
    before = read_split(tmp_path / "shop", "train")
    shutil.copytree(tmp_path / "shop", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "train.parquet", (1, 1))
    columns = next(path for path in (tmp_path / "copy" / ".columns").iterdir() if path.is_dir())
    inode = (columns / "labels.npy").stat().st_ino
    for _ in range(2):
        assert read_split(tmp_path / "copy", "train").fingerprint == before.fingerprint
        assert (columns / "labels.npy").stat().st_ino == inode


def write_whole_frame(folder: Path) -> None:
    write_parquet(rows(), folder / "train.parquet")


def write_in_parts(folder: Path) -> None:
    with SplitFiles(folder, long_lists=True) as files:
        for seed in range(3):
            files.write("train", rows(200, seed))


@pytest.mark.parametrize("writer", [write_whole_frame, write_in_parts])
def test_no_flipped_bit_of_a_page_is_trained_on(tmp_path: Path, writer) -> None:
    SHOP.save(tmp_path)
    writer(tmp_path)
    file = tmp_path / "train.parquet"
    whole, expected = file.read_bytes(), read_split(tmp_path, "train").fingerprint
    metadata, rng = pq.read_metadata(file), np.random.default_rng(0)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = [group.column(column) for group in groups for column in range(metadata.num_columns)]
    begin = min(chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks)
    end = begin + sum(chunk.total_compressed_size for chunk in chunks)
    refused = 0
    for position in rng.integers(begin, end, 60):
        content = bytearray(whole)
        content[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        sentence, split = outcome(lambda: read_split(tmp_path, "train"))
        assert sentence.startswith(str(file)) if split is None else split.fingerprint == expected  # a page's statistic
        refused += split is None
    assert refused > 50


def test_every_writer_of_splits_gives_pages_checksums() -> None:
    package = Path(torchrec_mtl.__file__).parent
    for source in package.rglob("*.py"):
        if source.name == "encoders.py":  # vocabularies have a digest
            continue
        code = "\n".join(line for line in source.read_text().splitlines() if ">>>" not in line and "..." not in line)
        assert ".write_parquet(" not in code, source
        assert code.count("pq.write_table(") + code.count("pq.ParquetWriter(\n") <= code.count(
            "write_page_checksum=True"
        )


@pytest.mark.parametrize("kind", ["us", "ns", "ms"])
@pytest.mark.parametrize("column", ["store", "tags", "group"])
def test_durations_are_no_ids(tmp_path: Path, column: str, kind: str) -> None:
    fields = [Field("store", 9), Field("tags", 9, multi_valued=True)]
    Schema("s", fields, TaskChain(["click"]), group="group").save(tmp_path)
    kinds = {"store": pl.Int64(), "tags": pl.List(pl.Int64), "group": pl.Int64()}
    frame = pl.DataFrame({"store": [1, 2], "tags": [[1], [2]], "group": [1, 2], "click": [0, 1]})
    duration = pl.List(pl.Duration(kind)) if column == "tags" else pl.Duration(kind)
    frame.cast({**kinds, column: duration}).write_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=rf"column '{column}' must hold integers, not timedelta64"):
        read_split(tmp_path, "train")


def test_a_folder_of_parts_is_one_sentence(tmp_path: Path) -> None:
    SHOP.save(tmp_path)
    (tmp_path / "train.parquet").mkdir()
    rows().write_parquet(tmp_path / "train.parquet" / "part-0.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: must be one parquet file, not a folder"):
        read_split(tmp_path, "train")


def test_lists_of_fixed_size_are_lists(tmp_path: Path) -> None:
    SHOP.save(tmp_path)
    frame = rows()
    frame.write_parquet(tmp_path / "train.parquet")
    expected = read_split(tmp_path, "train").fingerprint
    frame.with_columns(pl.col("tags").list.to_array(3)).write_parquet(tmp_path / "train.parquet")
    assert pa.types.is_fixed_size_list(pq.read_schema(tmp_path / "train.parquet").field("tags").type)
    assert read_split(tmp_path, "train").fingerprint == expected


def test_a_column_whose_name_begins_another_is_read_alone(tmp_path: Path) -> None:
    Schema("s", [Field("user", 9)], TaskChain(["click"])).save(tmp_path)
    pl.DataFrame({"user.id": [7, 7], "user": [1, 2], "click": [0, 1]}).write_parquet(tmp_path / "train.parquet")
    assert read_split(tmp_path, "train").batch(torch.arange(2)).sparse_features.values().tolist() == [1, 2]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"labels": null}', '{"labels": {}}', "3"])
def test_a_damaged_index_is_one_sentence(tmp_path: Path, content: str) -> None:
    write(tmp_path)
    read_split(tmp_path, "train")
    folder = next(path for path in (tmp_path / ".columns").iterdir() if path.is_dir())
    (folder / "arrays.json").write_text(content)
    with pytest.raises(InputError, match="^" + re.escape(str(folder / "arrays.json"))) as raised:
        read_split(tmp_path, "train")
    assert "and it is written again" in str(raised.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", "3", '{"layout": 2}'])
def test_columns_of_unknown_origin_are_written_again(tmp_path: Path, content: str) -> None:
    write(tmp_path)
    expected = read_split(tmp_path, "train").fingerprint
    folder = next(path for path in (tmp_path / ".columns").iterdir() if path.is_dir())
    (folder / "parquet.json").write_text(content)
    assert read_split(tmp_path, "train").fingerprint == expected
    assert '"sha256"' in (folder / "parquet.json").read_text()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "{}"])
def test_a_damaged_schema_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "schema.json").write_text(content)
    with pytest.raises(InputError, match=r"schema\.json: "):
        Schema.load(tmp_path)


@pytest.mark.parametrize("key", ["version", "name", "fields", "tasks", "dense", "group", "num_rows", "notes"])
@pytest.mark.parametrize("value", ["null", "3", "[]", '"x"', "[null]", "{}", "[[]]", "true"])
def test_a_wrong_value_in_a_schema_is_one_sentence(tmp_path: Path, key: str, value: str) -> None:
    SCHEMA.save(tmp_path)
    pattern = rf'(?ms)^  "{key}": .*?(?=,\n  "|\n\}})'
    text, times = re.subn(pattern, f'  "{key}": {value}', (tmp_path / "schema.json").read_text())
    assert times == 1
    (tmp_path / "schema.json").write_text(text)
    right = {("name", '"x"'), ("dense", "[]"), ("dense", "{}"), ("group", "null"), ("group", '"x"')}
    right |= {("num_rows", "{}"), ("notes", "{}")}
    sentence, schema = outcome(lambda: Schema.load(tmp_path))
    assert (key, value) in right if schema else sentence.startswith(str(tmp_path / "schema.json"))


@pytest.mark.parametrize("name", [None, 3, 0.5, b"x", "", ".", "..", "../../x", "/x", "a/b", "a\\b", "a\nb", "x" * 300])
def test_names_that_are_no_names(name) -> None:
    with pytest.raises(InputError, match="name"):
        Schema(name, [Field("a", 2)], TaskChain(["click"]))
    with pytest.raises(InputError, match="name"):
        Task(name)


def test_names_in_any_language() -> None:
    assert Schema("магазин 1.0", [Field("a", 2)], TaskChain(["клик", "add to cart"])).name == "магазин 1.0"
    assert list(SPLITS) == ["train", "valid", "test"]
