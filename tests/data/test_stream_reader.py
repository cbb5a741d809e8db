"""What is wrong with a file is said of a stream as of mapped columns: the same tests, and what only streams have."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import test_files_of_splits, test_parquet
from tests.data.test_files_of_splits import test_durations_are_no_ids, test_no_flipped_bit_of_a_page_is_trained_on
from tests.data.test_parquet import (
    test_a_purchase_without_a_click_and_with_a_masked_cart,
    test_file_cut_short,
    test_no_rows,
    test_no_such_file_or_split,
    test_wrong_column,
    test_wrong_value,
)
from tests.data.test_stream_loader import ids, numbered
from torchrec_mtl.data import Field, Schema, StreamLoader, stream_split
from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.tasks import TaskChain

__all__ = [
    "test_a_purchase_without_a_click_and_with_a_masked_cart",
    "test_durations_are_no_ids",
    "test_file_cut_short",
    "test_no_flipped_bit_of_a_page_is_trained_on",
    "test_no_rows",
    "test_no_such_file_or_split",
    "test_wrong_column",
    "test_wrong_value",
]


@dataclass
class AllRows:
    """Every batch of a stream."""

    fingerprint: str


def read_stream(*arguments, **options) -> AllRows:
    digest = hashlib.sha256()
    split = stream_split(*arguments, **options)
    for batch in StreamLoader(split, 100):
        for tensor in (batch.dense_features, batch.sparse_features.values(), batch.sparse_features.lengths()):
            digest.update(tensor.numpy().tobytes())
        digest.update(batch.labels.numpy().tobytes())
    for groups in StreamLoader(split, 100).groups() or ():
        digest.update(groups.numpy().tobytes())
    return AllRows(digest.hexdigest())


@pytest.fixture(autouse=True)
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (test_parquet, test_files_of_splits):
        monkeypatch.setattr(module, "read_split", read_stream)


def test_a_row_is_numbered_in_its_own_file(tmp_path: Path) -> None:
    numbered(tmp_path, [[100, 50], [70, 40]])
    file = tmp_path / "train.parquet" / "part-00001.parquet"
    rows = np.arange(110)
    wrong = pa.table({"row": rows, "click": np.where(rows == 93, 5, 0)})
    pq.write_table(wrong, file, row_group_size=70)
    sentence = re.escape(f"{file}: column 'click', row 93 (counted from 0): label (=5.0) must be 0 or 1")
    with pytest.raises(InputError, match=f"^{sentence}$"):
        list(StreamLoader(stream_split(tmp_path, "train"), 10, shuffle=True))
    with pytest.raises(InputError, match=f"^{sentence}$"):
        stream_split(tmp_path, "train").base_rates()


def test_a_file_that_changes_is_not_read_on(tmp_path: Path) -> None:
    split = numbered(tmp_path, [[100], [100]])
    file = tmp_path / "train.parquet" / "part-00001.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(TrainingError, match=re.escape(f"{file}: has changed since the split was opened")):
        list(StreamLoader(split, 10))
    file.unlink()
    sentence = rf"^{re.escape(str(file))}: cannot be read \(.*No such file or directory\)$"
    with pytest.raises(InputError, match=sentence):
        list(StreamLoader(split, 10))


def test_only_the_columns_of_the_chosen_fields_are_read(tmp_path: Path) -> None:
    fields = [Field("a", 9), Field("b", 9)]
    Schema("shop", fields, TaskChain(["click"])).save(tmp_path)
    pq.write_table(pa.table({"a": [1, 2], "b": [3, 99], "click": [0, 1]}), tmp_path / "train.parquet")
    loader = StreamLoader(stream_split(tmp_path, "train", fields=["a"]), 2)
    assert [ids(batch) for batch in loader] == [[1, 2]]
    assert next(iter(loader)).sparse_features.keys() == ["a"]
