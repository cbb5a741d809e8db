import math
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from torchrec_mtl.data.raw.guards import PRIOR_ROWS, Duplicates, LeakCheck

hashes = st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), min_size=1).map(
    lambda values: np.array(values, np.uint64)
)


@given(hashes, hashes, st.integers(0, 9))
def test_duplicates(train: np.ndarray, test: np.ndarray, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        duplicates = Duplicates(Path(folder) / "hashes")
        for split, split_hashes in (("train", train), ("test", test)):
            for part in (split_hashes[:cut], split_hashes[cut:]):
                duplicates.add(split, part)
        known = set(train.tolist())
        assert duplicates.count() == (len(train) - len(known), sum(value in known for value in test.tolist()))


def test_leak_auc_takes_rates_as_scores() -> None:
    rng = np.random.default_rng(0)
    rows = {
        split: pl.DataFrame({"f": rng.integers(0, 9, size), "click": 0, "purchase": 0}).with_columns(
            click=pl.col("f").map_elements(lambda code: int(rng.random() < code / 10), return_dtype=pl.Int64)
        )
        for split, size in (("train", 600), ("valid", 300))
    }
    check = LeakCheck({"f": 10}, ("click", "purchase"))
    for split, table in rows.items():
        for part in (table.head(100), table.tail(-100)):
            check.add(split, part)
    check.add("test", rows["train"])  # ignored
    train, valid = rows["train"], rows["valid"]
    base = train["click"].mean()
    rates = {
        code: (group["click"].sum() + PRIOR_ROWS * base) / (group.height + PRIOR_ROWS)
        for (code,), group in train.group_by("f")
    }
    expected = roc_auc_score(valid["click"], [rates.get(code, base) for code in valid["f"]])
    assert check.aucs()["f", "click"] == pytest.approx(expected)
    assert math.isnan(check.aucs()["f", "purchase"])


def test_leak_auc_of_lists_looks_at_first_ids() -> None:
    lists = pl.DataFrame({"f": [[1, 2], [2, 1], [], [1]] * 20, "click": [1, 0, 0, 1] * 20})
    firsts = lists.with_columns(f=pl.Series([1, 2, 0, 1] * 20))
    aucs = []
    for rows in (lists, firsts):
        check = LeakCheck({"f": 3}, ["click"])
        check.add("train", rows)
        check.add("valid", rows)
        aucs.append(check.aucs())
    assert aucs == [{("f", "click"): 1.0}] * 2
