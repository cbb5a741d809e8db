import re
from typing import Any

import numpy as np
import pytest
import torch

from torchrec_mtl.data import BatchLoader, Field, Schema, Split
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain

SCHEMA = Schema(
    "shop", [Field("store", 9), Field("tags", 5, multi_valued=True)], TaskChain(["click", "buy"]), ["price"]
)
ARGUMENTS: dict[str, Any] = {
    "ids": {"store": [8, 0, 3], "tags": ([4, 4, 1], [0, 2, 2, 3])},
    "labels": [[1, 1], [0, 0], [1, 0]],
    "dense": [[0.5], [1.5], [2.5]],
}


def make_split(**changes: Any) -> Split:
    return Split(SCHEMA, **{**ARGUMENTS, **changes})


def with_ids(**changes: Any) -> dict[str, Any]:
    return {"ids": {**ARGUMENTS["ids"], **changes}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (with_ids(store=[8, 0]), "Split: column 'store' must have as many rows as the labels (3), not 2"),
        (with_ids(tags=([4], [0, 1])), "Split: column 'tags' must have as many rows as the labels (3), not 1"),
        ({"dense": [[1.0]]}, "Split: dense must be of shape [3, 1], not [1, 1]"),
        ({"dense": None}, "Split: dense must be of shape [3, 1], not [3, 0]"),
        ({"labels": [[1, 1], [0, 0]]}, "Split: dense must be of shape [2, 1], not [3, 1]"),
        ({"labels": [1, 0, 1]}, "Split: labels must be of shape [3, 2], not [3]"),
        ({"labels": np.empty((0, 2))}, "Split: must have at least one row"),
        ({"weights": [[1, 1], [1, 1]]}, "Split: weights must be of shape [3, 2], not [2, 2]"),
        ({"weights": [[1, 1], [1, -1], [1, 1]]}, "Split: column 'buy', row 1 (counted"),
        ({"groups": [1, 2]}, "Split: groups must have as many rows as the labels (3), not 2"),
        ({"groups": [0.5, 1, 2]}, "Split: column 'groups' must hold integers, not float64"),
        ({"ids": {"store": [8, 0, 3]}}, "Split: column 'tags' is missing"),
        (with_ids(tags=[4, 4, 1]), "Split: column 'tags' must be a tuple of values and offsets"),
        (
            with_ids(tags=([4, 4, 1], [0, 2, 1, 3])),
            "Split: offsets of column 'tags' must rise from 0 to its number of",
        ),
        (
            with_ids(tags=([4, 4, 1], [0, 2, 2, 2])),
            "Split: offsets of column 'tags' must rise from 0 to its number of",
        ),
        (with_ids(tags=([4, 4, 1], [1, 2, 2, 3])), "values (3)"),
        (with_ids(store=[8, 9, 3]), "Split: column 'store', row 1 (counted"),
        ({"source": "the log", **with_ids(store=[8, 9, 3])}, "the log: column 'store', row 1"),
    ],
)
def test_wrong_arrays(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        make_split(**changes)


def test_a_batch_has_the_rows_in_the_order_asked_for() -> None:
    batch = make_split().batch(torch.tensor([2, 0, 2]))
    assert batch.sparse_features["store"].values().tolist() == [3, 8, 3]
    assert batch.sparse_features["tags"].values().tolist() == [1, 4, 4, 1]
    assert batch.sparse_features["tags"].lengths().tolist() == [1, 2, 1]
    assert batch.labels.tolist() == [[1, 0], [1, 1], [1, 0]]
    assert batch.dense_features.tolist() == [[2.5], [0.5], [2.5]]
    assert batch.weights is None
    assert batch.groups is None


def test_a_batch_has_the_groups_of_its_rows_padded_ones_included() -> None:
    split = make_split(groups=np.array([7, -(2**40), 9]))
    assert split.batch(torch.tensor([2, 0, 2])).groups.tolist() == [9, 7, 9]
    last = list(BatchLoader(split, batch_size=1, rank=1, world_size=2))[-1]
    assert (last.num_padded, last.groups.tolist()) == (1, [9])


def test_an_empty_batch_has_every_key() -> None:
    batch = make_split(weights=np.ones((3, 2))).batch(torch.tensor([], dtype=torch.int64))
    assert batch.sparse_features.keys() == ["store", "tags"]
    assert batch.sparse_features.stride() == 0
    assert batch.sparse_features.values().numel() == 0
    assert (batch.labels.shape, batch.weights.shape, batch.dense_features.shape) == ((0, 2), (0, 2), (0, 1))


def test_tensors_and_read_only_arrays_are_accepted() -> None:
    labels = np.array(ARGUMENTS["labels"], np.float32)
    labels.flags.writeable = False
    batch = make_split(labels=labels, dense=torch.tensor([[0.5], [1.5], [2.5]])).batch(torch.arange(3))
    assert batch.labels.tolist() == ARGUMENTS["labels"]


def test_batches_do_not_share_memory() -> None:
    split = make_split()
    first = split.batch(torch.arange(3))
    first.sparse_features.values().zero_()
    first.labels.zero_()
    first.dense_features.zero_()
    second = split.batch(torch.arange(3))
    assert second.sparse_features["store"].values().tolist() == [8, 0, 3]
    assert second.labels.tolist() == ARGUMENTS["labels"]
    assert second.dense_features.tolist() == ARGUMENTS["dense"]


def test_base_rates_count_labelled_rows():
    assert Split(SCHEMA, **ARGUMENTS).base_rates().tolist() == pytest.approx([2 / 3, 1 / 3])
    schema = Schema("shop", SCHEMA.fields, TaskChain(["click", "buy"], weight_columns=["w1", "w2"]), ["price"])
    weighted = Split(schema, **{**ARGUMENTS, "weights": [[1, 0], [2, 1], [1, 1]]})
    assert weighted.base_rates().tolist() == pytest.approx([2 / 3, 0])  # the only purchase is masked


@pytest.mark.parametrize("fields", [["store"], ["tags"], ["store", "tags"]])
def test_a_batch_changed_in_place_changes_no_other(fields: list[str]) -> None:
    split = Split.from_arrays(SCHEMA, make_split(weights=[[1, 1]] * 3).arrays, fields, "rows", "fingerprint")
    rows = torch.arange(3)

    def contents() -> list[Any]:
        batch = split.batch(rows)
        sparse = batch.sparse_features
        tensors = (batch.dense_features, batch.labels, batch.weights, sparse.values(), sparse.lengths())
        return [x.tolist() for x in (*tensors, sparse.offsets())] + [sparse.keys()]

    first = contents()
    batch = split.batch(rows)
    sparse = batch.sparse_features
    for tensor in (batch.dense_features, batch.labels, batch.weights, sparse.values(), sparse.lengths()):
        tensor.zero_()
    sparse.offsets().zero_()
    sparse.keys().reverse()
    assert contents() == first
