"""Labels of a tree of tasks, one of which has weights."""

import polars as pl
import pytest
import torch

from torchrec_mtl.data import Field, Schema, read_split
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import Task, TaskForest

TREE = TaskForest(
    Task("click"),
    Task("like", after="click"),
    Task("buy", after="click", weight_column="known"),
    Task("back", after="buy"),
)
LABELS = {
    "click": [1, 1, 0, 1],
    "like": [1, 0, 0, 0],  # siblings may both happen
    "buy": [1, 1, 0, None],
    "back": [0, 1, 0, 0],
}


def write_tree(tmp_path, **changes):
    rows = {"item": [0, 1, 2, 3], **LABELS, "known": [1.0, 2.0, 1.0, 0.0], **changes}
    for split in ("train", "valid", "test"):
        pl.DataFrame(rows).write_parquet(tmp_path / f"{split}.parquet")
    Schema("tree", [Field("item", 9)], TREE).save(tmp_path)
    return tmp_path


def test_tasks_without_weights_have_weight_1(tmp_path):
    batch = read_split(write_tree(tmp_path), "train").batch(torch.arange(4))
    assert batch.labels.tolist() == [[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert batch.weights.tolist() == [[1, 1, 1, 1], [1, 1, 2, 1], [1, 1, 1, 1], [1, 1, 0, 1]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"like": [1, 0, 1, 0]}, r"column 'like', row 2 .*: 'like' \(=1\) must not happen without 'click' \(=0\)"),
        ({"back": [0, 1, 1, 0]}, r"'back' \(=1\) must not happen without 'buy' \(=0\)"),
        ({"click": [1, 1, 0, 0], "back": [0, 1, 0, 1]}, r"'back' \(=1\) must not happen without 'click' \(=0\)"),
    ],
)
def test_a_label_without_its_ancestor_is_refused(tmp_path, changes, sentence):
    """In the last case, the label between the two is unknown."""
    with pytest.raises(InputError, match=sentence):
        read_split(write_tree(tmp_path, **changes), "train")
