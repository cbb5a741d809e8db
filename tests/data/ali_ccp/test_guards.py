import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from torchrec_mtl.data.ali_ccp import golden
from torchrec_mtl.data.ali_ccp.columns import SingleColumns
from torchrec_mtl.data.ali_ccp.guards import PRIOR_ROWS, LeakCheck, count_duplicates
from torchrec_mtl.data.ali_ccp.vocabulary import ValueCounts, Vocabularies

hashes = st.lists(st.integers(0, 8), min_size=1).map(lambda of: np.array(of, np.uint64))


@given(hashes, hashes)
def test_duplicates(train: np.ndarray, test: np.ndarray) -> None:
    expected = len(train) - len(set(train.tolist())), sum(value in set(train.tolist()) for value in test.tolist())
    assert count_duplicates(train, test) == expected


def test_leak_auc_is_that_of_rates_as_scores() -> None:
    rng = np.random.default_rng(0)
    rows = {
        split: pl.DataFrame({"f": rng.integers(0, 9, size), "click": 0, "purchase": 0}).with_columns(
            click=pl.col("f").map_elements(lambda code: int(rng.random() < code / 10), return_dtype=pl.Int64)
        )
        for split, size in (("train", 600), ("valid", 300))
    }
    check = LeakCheck({"f": 10})
    for split, table in rows.items():
        for part in (table.head(100), table.tail(-100)):
            check.add(split, part, SingleColumns(["f"]))
    check.add("test", rows["train"], SingleColumns(["f"]))  # left out
    train, valid = rows["train"], rows["valid"]
    base = train["click"].mean()
    rates = {
        code: (of["click"].sum() + PRIOR_ROWS * base) / (of.height + PRIOR_ROWS) for (code,), of in train.group_by("f")
    }
    expected = roc_auc_score(valid["click"], [rates.get(code, base) for code in valid["f"]])
    assert check.aucs()["f", "click"] == pytest.approx(expected)
    assert math.isnan(check.aucs()["f", "purchase"])


def test_golden_figures_that_differ() -> None:
    assert golden.differences(golden.NUM_ROWS, golden.NUM_EMBEDDINGS) == []
    moved = {"train": 38_070_669, "valid": 4_229_236, "test": 43_016_614}  # another draw of valid
    assert golden.differences(moved, golden.NUM_EMBEDDINGS) == []
    assert golden.differences({**moved, "train": 38_070_670}, golden.NUM_EMBEDDINGS) == [
        "train and valid: 42,299,906 rows, not 42,299,905"
    ]
    assert golden.differences({**moved, "test": 1}, {**golden.NUM_EMBEDDINGS, "301": 5}) == [
        "test: 1 rows, not 43,016,614",
        "field 301: 5 ids, not 4",
    ]
    assert golden.looks_true(moved)
    assert not golden.looks_true({"train": 38_000, "valid": 4_000, "test": 43_000})


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 2**40), st.integers(0, 5)), min_size=1), min_size=1),
    st.integers(1, 6),
)
def test_ids_that_occur_often_enough(parts: list[list[tuple[int, int]]], min_count: int) -> None:
    counts, expected = ValueCounts(), Counter()
    for part in parts:
        counts.add(pl.DataFrame(part, schema={"id": pl.Int64, "weight": pl.Int64}, orient="row"))
        for number, weight in part:
            expected[number] += weight
    found = counts.at_least(min_count)
    assert found.tolist() == sorted(number for number, count in expected.items() if count >= min_count)


@given(st.sets(st.integers(1, 10**18 - 1)), st.lists(st.integers(0, 10**18 - 1)))
def test_codes(known: set[int], sought: list[int]) -> None:
    vocabularies = Vocabularies({"101": np.array(sorted(known), np.int64)})
    codes = {number: code for code, number in enumerate(sorted(known), 1)}
    both = [*sought, *known]
    assert vocabularies.encode("101", np.array(both, np.int64)).tolist() == [codes.get(of, 0) for of in both]


def test_another_vocabulary_has_another_digest() -> None:
    of = [
        {"101": [1, 2], "121": [3]},
        {"101": [1, 2], "121": [4]},
        {"101": [1], "121": [2, 3]},
        {"101": [1, 2], "122": [3]},
    ]
    digests = {Vocabularies({field: np.array(ids, np.int64) for field, ids in one.items()}).digest for one in of}
    assert len(digests) == 4
