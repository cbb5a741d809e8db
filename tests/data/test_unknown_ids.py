"""An id outside its table is refused, or its field's `unknown_row` stands for it: the same wherever ids are read."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.fx import symbolic_trace
from torchrec.inference.modules import quantize_inference_model

from tests.support import NUM_DENSE, NUM_EMBEDDINGS, TASKS, build, feature_arch
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import BatchLoader, Field, MultiTaskBatch, Schema, Split, UnknownIds, check_batch, read_split
from torchrec_mtl.data.fingerprint import columns_text
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

KEYS = [f"f{i}" for i in range(len(NUM_EMBEDDINGS))]
ROW, SIZE = 3, 6
every_system = pytest.mark.parametrize("name", SYSTEMS)


def schema(unknown_row: int | None, multi_valued: bool = False) -> Schema:
    fields = [Field(key, n, multi_valued, unknown_row=unknown_row) for key, n in zip(KEYS, NUM_EMBEDDINGS, strict=True)]
    return Schema("rows", fields, TASKS, dense=[f"d{i}" for i in range(NUM_DENSE)])


def ids(unknown: bool) -> dict[str, np.ndarray]:
    """Ids [SIZE] of each field, three of which are unknown, or `ROW` in their place."""
    columns = {}
    for key, size in zip(KEYS, NUM_EMBEDDINGS, strict=True):
        columns[key] = np.arange(SIZE) % size
        columns[key][[1, 3, 4]] = [-1, size, 2**40] if unknown else ROW
    return columns


LABELS, DENSE = np.zeros((SIZE, len(TASKS))), np.random.default_rng(0).normal(size=(SIZE, NUM_DENSE))
LABELS[::2] = 1


def own_batch(unknown: bool) -> MultiTaskBatch:
    """The same rows, from a loop of the user's own."""
    values = torch.from_numpy(np.concatenate(list(ids(unknown).values())))
    sparse = KeyedJaggedTensor(KEYS, values, lengths=torch.ones(len(values), dtype=torch.int64))
    return MultiTaskBatch(torch.from_numpy(DENSE).float(), sparse, torch.from_numpy(LABELS).float())


def loaded(unknown_row: int | None) -> MultiTaskBatch:
    return next(iter(BatchLoader(Split(schema(unknown_row), ids(True), LABELS, DENSE), SIZE)))


class Serving(nn.Module):
    def __init__(self, unknown_ids: UnknownIds, model: nn.Module) -> None:
        super().__init__()
        self.unknown_ids, self.model = unknown_ids, model

    def forward(self, dense_features: torch.Tensor, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        return self.model(dense_features, self.unknown_ids(sparse_features))


def serve(model: nn.Module, unknown_ids: UnknownIds) -> dict[str, nn.Module]:
    """The model with quantised tables behind the policy: as it is, and as one graph."""
    serving = Serving(unknown_ids, quantize_inference_model(copy.deepcopy(model))).eval()
    traced = copy.deepcopy(serving)  # TorchRec's quantised tables keep what they saw while they were traced
    return {
        "eager": serving,
        "graph": symbolic_trace(traced, leaf_modules=["IntNBitTableBatchedEmbeddingBagsCodegen"]),
    }


@every_system
def test_the_named_row_stands_for_unknown_ids_in_training_evaluation_and_serving(name):
    torch.manual_seed(0)
    model, named = build(name).eval(), own_batch(unknown=False)
    expected = model(named.dense_features, named.sparse_features)

    from_loader = loaded(ROW)
    assert from_loader.sparse_features.values().equal(named.sparse_features.values())
    torch.testing.assert_close(model(from_loader.dense_features, from_loader.sparse_features), expected)

    own = own_batch(unknown=True)
    for policy in (UnknownIds(schema(ROW)), UnknownIds(model, dict.fromkeys(KEYS, ROW))):
        known = replace(own, sparse_features=policy(own.sparse_features))
        check_batch(known, schema(ROW))
        assert known.sparse_features.values().equal(named.sparse_features.values())
        torch.testing.assert_close(model(known.dense_features, known.sparse_features), expected)

        exact = quantize_inference_model(copy.deepcopy(model))(named.dense_features, named.sparse_features)
        torch.testing.assert_close(exact, expected, atol=0.05, rtol=0)
        for served in serve(model, policy).values():
            torch.testing.assert_close(served(own.dense_features, own.sparse_features), exact)

    torch.testing.assert_close(own.sparse_features.values(), own_batch(unknown=True).sparse_features.values())


def _whole(value: torch.Tensor) -> torch.Tensor:
    """The values of a tensor that one rank holds whole, sharded or not."""
    shards = value.local_shards() if hasattr(value, "local_shards") else []
    return torch.cat([shard.tensor for shard in shards], dim=1).clone() if shards else value.clone()


@every_system
def test_sharded_tables_train_the_named_row_and_not_row_0(name):
    def after_a_step(read):
        torch.manual_seed(0)
        trained = MultiTaskTrain(build(name), CrossEntropyLoss(TASKS))
        sharded, optimizer = distribute(trained, TrainingConfig(), torch.device("cpu"))
        torch.manual_seed(0)  # of dropout
        loss, (_, logits, _) = sharded(read)
        loss.backward()
        optimizer.step()
        parameters = {**sharded.state_dict(), "logits": logits.detach()}
        return {name: _whole(value) for name, value in parameters.items()}

    with process_group(torch.device("cpu")):
        expected = after_a_step(own_batch(unknown=False))
        policy, own = UnknownIds(schema(ROW)), own_batch(unknown=True)
        for read in (loaded(ROW), replace(own, sparse_features=policy(own.sparse_features))):
            torch.testing.assert_close(after_a_step(read), expected, rtol=0, atol=0)


@every_system
def test_without_a_named_row_every_way_refuses(name):
    with pytest.raises(InputError, match=r"column 'f0', row 1 .*: id \(=-1\) must be at least 0 and below"):
        loaded(None)
    model, own = build(name).eval(), own_batch(unknown=True)
    for expected in (schema(None), schema(ROW), model):  # `check_batch` replaces nothing
        with pytest.raises(InputError, match=r"column 'f0', row 1 .*: id \(=-1\) must be at least 0 and below"):
            check_batch(own, expected)
    some = UnknownIds(model, dict.fromkeys(KEYS[1:], ROW))
    for policy in (UnknownIds(schema(None)), some):
        for served in (policy, *serve(model, policy).values()):
            arguments = [own.sparse_features] if served is policy else [own.dense_features, own.sparse_features]
            with pytest.raises(InputError, match="ids of 'f0' in `sparse_features` must be from 0 to 10"):
                served(*arguments)


def wrongs(size: int) -> list[int]:
    return [-1, size, 2**31, 2**40, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("weighted", [False, True])
def test_as_torchscript_alone_and_before_quantised_tables(weighted):
    torch.manual_seed(0)
    features = feature_arch().eval()
    policy = UnknownIds(features, {"f0": 2, "f3": 0})
    values = torch.tensor([*wrongs(11), 4, 4, *wrongs(13)])
    lengths = torch.tensor([6, 0, 1, 0, 0, 1, 4, 2])
    weights = torch.arange(14.0) if weighted else None
    sparse = KeyedJaggedTensor(KEYS, values, weights, lengths)
    for form in (policy, torch.jit.script(policy), symbolic_trace(policy), torch.jit.script(symbolic_trace(policy))):
        known = form(sparse)
        assert known.values().tolist() == [2] * 6 + [4, 4] + [0] * 6
        assert known.lengths().equal(lengths)
        assert known.weights_or_none() is weights
    if weighted:
        return
    serving = torch.jit.script(serve(features, policy)["graph"])
    dense, named = torch.zeros(2, NUM_DENSE), policy(sparse)
    torch.testing.assert_close(serving(dense, sparse), features(dense, named), atol=0.05, rtol=0)
    wrong = KeyedJaggedTensor(KEYS, torch.tensor([0, 7, 1, 1]), lengths=torch.tensor([1, 0] * 4))
    for scripted in (lambda: torch.jit.script(policy)(wrong), lambda: serving(dense, wrong)):
        with pytest.raises(torch.jit.Error, match="ids of 'f1' in `sparse_features` must be from 0 to 6"):
            scripted()


def test_other_keys_other_orders_other_types_and_batch_sizes_of_keys():
    policy = UnknownIds(Schema("s", [Field("a", 5, unknown_row=1), Field("b", 2**40)], TASKS))
    sparse = KeyedJaggedTensor(
        ["c", "b", "a"], torch.tensor([-7, 8, 9, 9], dtype=torch.int32), lengths=torch.ones(4).int()
    )
    sparse = KeyedJaggedTensor(
        sparse.keys(), sparse.values(), lengths=sparse.lengths(), stride_per_key_per_rank=[[1], [1], [2]]
    )
    known = policy(sparse)
    assert known.values().tolist() == [-7, 8, 1, 1]
    assert known.values().dtype == torch.int32
    assert known.stride_per_key() == [1, 1, 2]


TYPES = {
    pl.Int8: [-1, 100, 4],
    pl.UInt64: [2**64 - 1, 2**40, 4],
    pl.Int32: [2**31 - 1, -5, 4],
    pl.Int64: [-(2**63), 2**40, 4],
}


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_parquet_files_of_every_integer_type_and_lists(tmp_path, dtype, lists):
    values, row = TYPES[dtype], 90
    fields = [Field("a", 100, multi_valued=lists, unknown_row=row, weight_column="w" if lists else None)]
    written = Schema("s", [*fields, Field("plain", 9)], TASKS, group=None if lists else "a")
    columns = {"a": pl.Series(values, dtype=dtype), "plain": [1, 2, 3], **{key: [0, 1, 1] for key in TASKS}}
    if lists:
        columns["a"] = pl.Series([[values[0], values[2]], [], [values[1], values[1]]], dtype=pl.List(dtype))
        columns["w"] = [[1.0, 2.0], [], [3.0, 4.0]]
    if dtype == pl.UInt64 and not lists:
        written = replace(written, group=None)  # groups must fit int64
    written.save(tmp_path)
    pl.DataFrame(columns).write_parquet(tmp_path / "train.parquet")
    for _ in range(2):  # columns are written, then mapped
        split = read_split(tmp_path, "train")
        assert split.num_unknown == {"a": (3, 4) if lists else (2, 3)}
        batch = split.batch(torch.arange(3))
        expected = [row, 4, row, row] if lists else [row, row, 4]
        assert batch.sparse_features["a"].values().tolist() == expected
        if split.groups is not None:  # a group keeps its own number
            assert split.groups.tolist() == values
    assert read_split(tmp_path, "train", fields=["plain"]).num_unknown == {}


def test_missing_ids_and_other_types_are_refused_with_a_row_too(tmp_path):
    written = Schema("s", [Field("a", 5, unknown_row=0)], TASKS)
    written.save(tmp_path)
    for values, sentence in (([1, None, 9], "row 1 (counted from 0): must not be null"), ([1.0, 2.0, 9.0], "integers")):
        pl.DataFrame({"a": values, **{key: [0, 1, 1] for key in TASKS}}).write_parquet(tmp_path / "train.parquet")
        with pytest.raises(InputError, match=re.escape(sentence)):
            read_split(tmp_path, "train")


def test_the_counts_of_a_split_larger_than_a_slab(tmp_path, monkeypatch):
    monkeypatch.setattr("torchrec_mtl.data.parquet.SLAB_ROWS", 7)
    Schema("s", [Field("a", 50, unknown_row=0)], TASKS).save(tmp_path)
    pl.DataFrame({"a": range(100), **{key: [0, 1] * 50 for key in TASKS}}).write_parquet(tmp_path / "train.parquet")
    assert read_split(tmp_path, "train").num_unknown == {"a": (50, 100)}
    file = next(tmp_path.glob(".columns/*/parquet.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_unknown": {"b": 3}}))
    with pytest.raises(InputError, match=r"parquet.json: damaged: `num_unknown` .* remove .*, and it is written again"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("row", [-1, 5, 2**40, 1.0, "0", True, [0]])
def test_a_row_outside_the_table_is_refused(row):
    with pytest.raises(InputError, match=r"`unknown_row` \(=.*\) of field 'a' must be None or an integer from 0 to 4"):
        Field("a", 5, unknown_row=row)
    with pytest.raises(InputError, match=r"`unknown_rows` \(=.*\) must (have a row from 0 to 10 for 'f0'|be of type)"):
        UnknownIds(feature_arch(), {"f0": 11 if row == 5 else row})


def test_other_arguments_are_refused():
    with pytest.raises(
        InputError, match=r"`unknown_rows` \(=.*\) must have keys of the model: \['f0', 'f1', 'f2', 'f3'\]"
    ):
        UnknownIds(feature_arch(), {"f9": 0})
    with pytest.raises(InputError, match="`unknown_rows` must be None with a schema"):
        UnknownIds(schema(0), {"f0": 0})
    with pytest.raises(InputError, match=r"`expected` \(=Linear\) must be a `Schema` or a model"):
        UnknownIds(nn.Linear(2, 2))


def test_a_schema_keeps_its_rows_and_older_files_have_none(tmp_path):
    written = Schema("s", [Field("a", 5, unknown_row=2), Field("b", 5)], TASKS)
    written.save(tmp_path)
    assert Schema.load(tmp_path) == written
    content = json.loads((tmp_path / "schema.json").read_text())
    for field in content["fields"]:
        del field["unknown_row"]
    (tmp_path / "schema.json").write_text(json.dumps(content))
    older = Schema.load(tmp_path)
    assert [field.unknown_row for field in older.fields] == [None, None]
    assert "unknown_row" not in columns_text(older)  # so its columns and its fingerprint stay
    assert columns_text(written) != columns_text(older)
