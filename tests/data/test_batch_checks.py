"""`check_batch` refuses every wrong value in one sentence, by the schema or by the model, sharded or not."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch

from tests.support import NUM_DENSE, NUM_EMBEDDINGS, TASKS, batch, train_model
from torchrec_mtl.data import BatchLoader, Field, Schema, Split, check_batch
from torchrec_mtl.errors import InputError, redacted
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

SIZE = 6
SCHEMA = Schema(
    "rows",
    [Field(f"f{i}", size, multi_valued=True) for i, size in enumerate(NUM_EMBEDDINGS)],
    TASKS,
    dense=[f"d{i}" for i in range(NUM_DENSE)],
)


def with_id(wrong):
    """The id is the second of row 2 in the second field."""
    sparse = batch(SIZE).sparse_features
    lengths = torch.ones(4, SIZE, dtype=torch.int64)
    lengths[1, 2], lengths[1, 1] = 2, 0
    values = torch.zeros(4 * SIZE, dtype=torch.int64)
    values[SIZE + 2] = wrong
    return {"sparse_features": KeyedJaggedTensor(sparse.keys(), values, lengths=lengths.flatten())}


def with_value(name, wrong, row=1, column=1):
    def change(rows):
        tensor = {"weights": torch.ones(SIZE, 3), "labels": torch.ones(SIZE, 3)}.get(name, rows.dense_features).clone()
        tensor[row, column] = wrong
        return {name: tensor}

    return change


def with_id_weight(rows):
    sparse = rows.sparse_features
    weights = torch.ones(len(sparse.values()))
    weights[0] = torch.nan
    return {"sparse_features": KeyedJaggedTensor(sparse.keys(), sparse.values(), weights, sparse.lengths())}


ID = "column 'f1', row 2 (counted from 0): id (={}) must be at least 0 and below `num_embeddings` (=7)"
WRONG = {
    **{f"id_{i}": ("ids", lambda _, i=i: with_id(i), ID.format(i)) for i in (7, -2, 2**31, 2**63 - 1)},
    "id_weight": ("ids", with_id_weight, "weight of an id (=nan) must be finite"),
    "dense_nan": (
        "dense",
        with_value("dense_features", torch.nan),
        "row 1 (counted from 0): value (=nan) must be finite",
    ),
    "dense_inf": ("dense", with_value("dense_features", torch.inf), "value (=inf) must be finite"),
    "dense_width": ("dense", lambda _: {"dense_features": torch.zeros(SIZE, 4)}, "must be of shape [6, 3], not [6, 4]"),
    "label_2": ("labels", with_value("labels", 2), "row 1 (counted from 0): label (=2.0) must be 0 or 1"),
    "label_-1": ("labels", with_value("labels", -1), "label (=-1.0) must be 0 or 1"),
    "label_half": ("labels", with_value("labels", 0.5), "label (=0.5) must be 0 or 1"),
    "label_nan": ("labels", with_value("labels", torch.nan), "may be missing only where its weight is 0"),
    "weight_nan": ("weights", with_value("weights", torch.nan), "weight (=nan) must be finite and at least 0"),
    "weight_-1": ("weights", with_value("weights", -1), "weight (=-1.0) must be finite and at least 0"),
    "weights_0": ("weights", lambda _: {"weights": torch.zeros(SIZE, 3)}, "`weights` must not be 0 for all labels"),
    "child": ("labels", with_value("labels", 0), "'purchase' (=1) must not happen without 'cart' (=0)"),
}
SHAPES = {
    "labels_flat": (lambda _: {"labels": torch.zeros(SIZE)}, "`labels` must be of shape [6, 3], not [6]"),
    "labels_wide": (lambda _: {"labels": torch.zeros(SIZE, 4)}, "`labels` must be of shape [6, 3], not [6, 4]"),
    "weights_flat": (lambda _: {"weights": torch.ones(SIZE)}, "`weights` must be of shape [6, 3], not [6]"),
    "weights_narrow": (lambda _: {"weights": torch.ones(SIZE, 1)}, "`weights` must be of shape [6, 3], not [6, 1]"),
    "rows": (lambda _: {"sparse_features": batch(5).sparse_features}, "(of 5 rows) must have those of labels (6)"),
    "device": (lambda rows: {"labels": rows.labels.to("meta")}, "`labels` (on meta) must be on the CPU"),
}


@pytest.fixture(scope="module")
def expected():
    with process_group(torch.device("cpu")):
        sharded, _ = distribute(train_model("single_task"), TrainingConfig(), torch.device("cpu"))
        yield {"schema": SCHEMA, "model": train_model("tafe").model, "sharded": sharded}


def refuse(expected, change, sentence):
    rows = batch(SIZE)
    for by in expected.values():
        check_batch(rows, by, TASKS)
        with pytest.raises(InputError, match=re.escape(sentence)):
            check_batch(replace(rows, **change(rows)), by, TASKS)


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_value_is_refused_and_its_check_can_be_skipped(expected, kind):
    name, change, sentence = WRONG[kind]
    refuse(expected, change, sentence)
    check_batch(replace(batch(SIZE), **change(batch(SIZE))), SCHEMA, skip=[name])


@pytest.mark.parametrize("kind", [kind for kind in WRONG if kind not in ("dense_width", "weights_0", "child")])
def test_within_redacted_the_value_is_left_out(kind):
    _, change, sentence = WRONG[kind]
    (value,) = re.findall(r"(?:id|value|label|weight|weight of an id) \(=([^)]*)\)", sentence) or ["nan"]
    with redacted(), pytest.raises(InputError) as refused:
        check_batch(replace(batch(SIZE), **change(batch(SIZE))), SCHEMA)
    assert "<redacted>" in str(refused.value)
    assert f"(={value}) m" not in str(refused.value)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_wrong_shape_is_refused(expected, kind):
    refuse(expected, *SHAPES[kind])


def test_other_arguments_are_refused():
    with pytest.raises(InputError, match=r"`expected` \(=Linear\) must be a `Schema` or a model"):
        check_batch(batch(SIZE), torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"`skip` \(='label'\) must be one of"):
        check_batch(batch(SIZE), SCHEMA, skip=["label"])


def test_right_batches_pass():
    rows = batch(SIZE)
    check_batch(Batch(rows.dense_features, rows.sparse_features, rows.labels.int()), SCHEMA)  # TorchRec's
    check_batch(replace(rows, labels=rows.labels.bool()), train_model("tafe"))  # tasks are not known
    check_batch(rows.padded(2), SCHEMA)
    check_batch(rows.padded(SIZE), SCHEMA)  # a rank without rows
    masked = replace(
        rows, labels=torch.tensor([[0.0, 1, torch.nan]] * SIZE), weights=torch.tensor([[0.0, 1, 0]] * SIZE)
    )
    check_batch(masked, SCHEMA)


def test_the_loader_passes():
    schema = Schema("rows", [Field("f0", 5), Field("f1", 9)], TASKS)
    ids = {"f0": np.arange(10) % 5, "f1": np.arange(10) % 9}
    split = Split(schema, ids, labels=[[1, 1, 0]] * 10)
    for rank in range(3):
        for rows in BatchLoader(split, 2, shuffle=True, rank=rank, world_size=3):
            check_batch(rows, schema)
