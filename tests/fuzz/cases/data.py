"""Schemas, splits and loaders: what is accepted is read back as it was given."""

import math
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torchrec import KeyedJaggedTensor

from tests.fuzz.cases.drawn import batch, integer, one_of, tables
from tests.fuzz.cell import Case
from tests.fuzz.kinds import generator
from torchrec_mtl import MultiTaskTrain, TaskChain, losses, models
from torchrec_mtl.data import (
    BatchLoader,
    Field,
    MultiTaskBatch,
    Schema,
    Split,
    StreamLoader,
    UnknownIds,
    build_once,
    check_batch,
    load_schema,
    log_round,
    stream_split,
)
from torchrec_mtl.data import read_split as read
from torchrec_mtl.errors import InputError
from torchrec_mtl.systems import System

CHAIN = TaskChain(["click", "cart", "buy"])
FIELDS = (Field("f0", 11), Field("f1", 7), Field("f2", 5))
SCHEMA = Schema("shop", FIELDS, CHAIN, dense=["d0", "d1"])


@cache
def folder() -> Path:
    """Removed when the process ends."""
    made = tempfile.TemporaryDirectory()
    _KEPT.append(made)
    return Path(made.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


def _judge_log_round(given, result):
    values, resolution = np.asarray(given["values"], float), given["resolution"]
    expected = np.rint(resolution * np.log2(1 + values))
    np.testing.assert_array_equal(result, expected)
    assert (result >= 0).all()


def _judge_field(given, field):
    assert type(field.num_embeddings) is int
    assert field.num_embeddings >= 1
    assert field.name == given["name"]


def _schema(rng):
    return {
        "name": "shop",
        "fields": list(FIELDS),
        "tasks": CHAIN,
        "dense": one_of(rng, ["d0"], ["d0", "d1"]),
        "group": one_of(rng, None, "f0", "user"),
        "num_rows": {"train": 4},
        "notes": {"source": "drawn"},
        "vocabulary_digest": one_of(rng, None, "abc"),
    }


def _judge_schema(given, schema):
    with tempfile.TemporaryDirectory() as directory:
        schema.save(directory)
        assert Schema.load(directory) == schema
    assert schema.embedding_configs(4)


def _ids(rng, num_rows):
    return {field.name: rng.integers(0, field.num_embeddings, num_rows).tolist() for field in FIELDS}


def _split(rng):
    num_rows = integer(rng, 1, 6)
    happened = (rng.random((num_rows, 3)) < 0.7).cumprod(axis=1)
    return {
        "schema": SCHEMA,
        "ids": _ids(rng, num_rows),
        "labels": torch.from_numpy(happened),
        "dense": torch.from_numpy(rng.normal(size=(num_rows, 2))),
        "weights": torch.from_numpy(rng.integers(0, 3, (num_rows, 3)).astype(float)),
        "groups": torch.from_numpy(rng.integers(0, 4, num_rows)),
    }


def _judge_split(given, split):
    rows = split.batch(torch.arange(len(split)))
    known = given["weights"] > 0
    assert torch.equal(rows.labels[known], given["labels"].float()[known])
    assert torch.equal(rows.weights, given["weights"].float())
    torch.testing.assert_close(rows.dense_features, given["dense"].float())
    for name, ids in given["ids"].items():
        assert rows.sparse_features[name].values().tolist() == list(ids)


@cache
def _rows():
    rng = np.random.default_rng(0)
    return Split(SCHEMA, _ids(rng, 9), np.zeros((9, 3)), rng.normal(size=(9, 2)))


def _loader(rng):
    world_size = integer(rng, 1, 3)
    return {
        "split": _rows(),
        "batch_size": integer(rng, 1, 3),
        "shuffle": one_of(rng, True, False),
        "seed": integer(rng, 0, 9),
        "rank": integer(rng, 0, world_size - 1),
        "world_size": world_size,
        "drop_last": one_of(rng, True, False),
        "shuffle_window": integer(rng, 1, 9),
        "pin_memory": False,
    }


@cache
def _stream():
    rng, directory = np.random.default_rng(0), folder() / "streamed"
    directory.mkdir()
    Schema("shop", FIELDS, CHAIN).save(directory)
    columns = {**_ids(rng, 9), **{task: np.zeros(9, int) for task in CHAIN}}
    pl.DataFrame(columns).write_parquet(directory / "train.parquet", row_group_size=2)
    return stream_split(directory, "train")


def _judge_loader(given, loader):
    batches = list(loader)
    assert len(batches) == len(loader)
    assert all(len(rows.labels) <= given["batch_size"] for rows in batches)
    if given["world_size"] == 1 and not given["drop_last"] and given.get("negative_rate", 1) == 1:
        assert sorted(row for rows in loader.rows() for row in rows.tolist()) == list(range(9))


def _checked(dense_features, values, lengths, labels, weights, expected, tasks, skip):
    if not isinstance(values, torch.Tensor) or not isinstance(lengths, torch.Tensor) or lengths.ndim != 1:
        raise InputError("TorchRec makes no KeyedJaggedTensor of these")
    sparse = KeyedJaggedTensor(["f0", "f1", "f2"], values, lengths=lengths)
    rows = MultiTaskBatch(dense_features, sparse, labels, weights)
    check_batch(rows, expected, tasks, skip=skip)
    return rows


def _unknown(rng):
    return {
        "expected": models.SharedBottom(tables([2, 3, 2]), CHAIN),
        "unknown_rows": {"f0": integer(rng, 0, 10), "f1": integer(rng, 0, 6)},
    }


def _judge_unknown(given, unknown_ids):
    ids = KeyedJaggedTensor(["f0", "f1", "f2"], torch.tensor([11, -1, 7, 2, 0, 4]), lengths=torch.ones(6).int())
    row, of_second = (given["unknown_rows"][key] for key in ("f0", "f1"))
    assert unknown_ids(ids).values().tolist() == [row, row, of_second, 2, 0, 4]


def _batch(rng):
    rows = batch(rng, CHAIN)
    weights = torch.ones_like(rows.labels) if rows.weights is None or not rows.weights.any() else rows.weights
    return {
        "dense_features": rows.dense_features,
        "values": rows.sparse_features.values(),
        "lengths": rows.sparse_features.lengths(),
        "labels": rows.labels,
        "weights": weights,
        "expected": SCHEMA,
        "tasks": CHAIN,
        "skip": [],
    }


def _judge_batch(given, rows):
    assert rows.dense_features.isfinite().all()
    known = torch.ones_like(rows.labels, dtype=torch.bool) if rows.weights is None else rows.weights > 0
    if "labels" not in given["skip"]:
        assert torch.isin(rows.labels[known], torch.tensor([0.0, 1.0])).all()
        assert rows.labels.shape == (len(rows.dense_features), 3)
    for key, size in (("f0", 11), ("f1", 7), ("f2", 5)):
        ids = rows.sparse_features[key].values()
        assert ((ids >= 0) & (ids < size)).all()


@cache
def prepared() -> Path:
    def build(into):
        for split in ("train", "valid", "test"):
            rows = pl.DataFrame({"f0": [8, 0], "click": [0, 1]})
            rows.write_parquet(into / f"{split}.parquet")
        return Schema("shop", [Field("f0", 9)], TaskChain(["click"]))

    return build_once(folder() / "prepared", build)


def _judge_read(given, split):
    assert split.batch(torch.arange(2)).sparse_features["f0"].values().tolist() == [8, 0]


def _judge_stream(given, split):
    assert [batch.sparse_features["f0"].values().tolist() for batch in StreamLoader(split, 2)] == [[8, 0]]


def _build(directory):
    def build(into):
        for split in ("train", "valid", "test"):
            pl.DataFrame({"f0": [8, 0], "click": [0, 1]}).write_parquet(into / f"{split}.parquet")
        return Schema("shop", [Field("f0", 9)], TaskChain(["click"]))

    return build_once(directory, build)


def _judge_built(given, directory):
    _judge_prepared(given, Schema.load(directory))


def _judge_prepared(given, schema):
    assert schema.num_rows == {"train": 2, "valid": 2, "test": 2}


def _train(model, loss):
    return MultiTaskTrain(model, loss)


def _judge_train(given, made):
    rows = batch(generator("rows"), CHAIN)
    rows.dense_features = rows.dense_features[:, :0]
    loss, (_, logits, labels) = made(rows)
    assert math.isfinite(loss)
    assert torch.equal(labels, rows.labels)
    assert logits.shape == labels.shape


def _judge_system(given, system):
    assert system.base == (given["ablation_of"] or given["name"])
    assert callable(system.model)


DATA = {
    "log_round": Case(
        log_round,
        lambda rng: {"values": [float(x) for x in rng.exponential(size=4) * 100], "resolution": one_of(rng, 1.0, 2.5)},
        _judge_log_round,
        typed=False,  # a single number is an array too
    ),
    "Field": Case(
        Field,
        lambda rng: {
            "name": "store",
            "num_embeddings": integer(rng, 1, 99),
            "multi_valued": True,
            "weight_column": one_of(rng, None, "weight"),
        },
        _judge_field,
    ),
    "Schema": Case(Schema, _schema, _judge_schema),
    "Schema.select": Case(
        SCHEMA.select,
        lambda rng: {"names": one_of(rng, ["f0"], ["f2", "f0"])},
        lambda given, schema: np.testing.assert_array_equal(schema.field_names, given["names"]),
    ),
    "Schema.embedding_configs": Case(
        SCHEMA.embedding_configs,
        lambda rng: {"embedding_dim": integer(rng, 1, 9)},
        lambda given, configs: np.testing.assert_array_equal([c.num_embeddings for c in configs], [11, 7, 5]),
    ),
    "Split": Case(Split, _split, _judge_split),
    "BatchLoader": Case(
        BatchLoader, lambda rng: {**_loader(rng), "negative_rate": one_of(rng, 1.0, 0.3)}, _judge_loader
    ),
    "StreamLoader": Case(StreamLoader, lambda rng: {**_loader(rng), "split": _stream()}, _judge_loader),
    "UnknownIds": Case(UnknownIds, _unknown, _judge_unknown),
    "check_batch": Case(_checked, _batch, _judge_batch),
    "read_split": Case(
        read,
        lambda rng: {
            "directory": one_of(rng, prepared(), str(prepared())),
            "split": one_of(rng, "train", "valid", "test"),
            "schema": None,
            "fields": one_of(rng, None, ["f0"]),
        },
        _judge_read,
    ),
    "stream_split": Case(
        stream_split,
        lambda rng: {
            "directory": one_of(rng, prepared(), str(prepared()), f"file://{prepared()}"),
            "split": one_of(rng, "train", "valid", "test"),
            "schema": None,
            "fields": one_of(rng, None, ["f0"]),
        },
        _judge_stream,
    ),
    "load_schema": Case(
        load_schema,
        lambda rng: {"directory": one_of(rng, prepared(), f"file://{prepared()}")},
        _judge_prepared,
    ),
    "build_once": Case(_build, lambda rng: {"directory": str(folder() / f"built {rng.integers(2**40)}")}, _judge_built),
}
TRAINING = {
    "MultiTaskTrain": Case(
        _train,
        lambda rng: {"model": models.SharedBottom(tables([2, 3, 2]), CHAIN), "loss": losses.DependenceLoss(CHAIN)},
        _judge_train,
    ),
}
SYSTEMS = {
    "System": Case(
        System,
        lambda rng: {
            "name": "mine",
            "title": "Mine",
            "model": models.SharedBottom,
            "loss": losses.CrossEntropyLoss,
            "model_args": {},
            "loss_args": {},
            "fixed": ("alpha",),
            "small": {},
            "ablation_of": one_of(rng, None, "other"),
        },
        _judge_system,
    ),
}
