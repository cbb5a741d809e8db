"""A batch of another form than the first is refused in one sentence, whether tables are sharded or not."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.fx import symbolic_trace
from torchrec.inference.modules import quantize_inference_model

from tests.support import MODELS, NUM_EMBEDDINGS, TASKS, batch, feature_arch, tables, train_model
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

KEYS = [f"f{i}" for i in range(len(NUM_EMBEDDINGS))]
SIZE = 6


def ids(keys, **arguments):
    """Ids and lengths of `SIZE` rows."""
    count = SIZE * len(keys)
    values, lengths = torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.int64)
    return KeyedJaggedTensor(list(keys), values, lengths=lengths, **arguments)


def with_sizes_of_their_own():
    strides = [[SIZE - 2], *[[SIZE]] * (len(KEYS) - 1)]
    inverse = (KEYS, torch.arange(SIZE).repeat(len(KEYS), 1) % 4)
    ones = torch.ones(SIZE * len(KEYS) - 2, dtype=torch.int64)
    return KeyedJaggedTensor(KEYS, ones - 1, lengths=ones, stride_per_key_per_rank=strides, inverse_indices=inverse)


ORDER = "must be those of the first batch, in the same order: ['f0', 'f1', 'f2', 'f3']"
LATER = {  # changes of a later batch, and the sentence
    "order": (lambda rows: replace(rows, sparse_features=ids(KEYS[::-1])), ORDER),
    "one_more": (lambda rows: replace(rows, sparse_features=ids(["f9", *KEYS])), ORDER),
    "one_less": (lambda rows: replace(rows, sparse_features=ids(KEYS[:-1])), ORDER),
    "sizes": (
        lambda rows: replace(rows, sparse_features=with_sizes_of_their_own()),
        "must have one batch size for all",
    ),
}
ALWAYS = {  # wrong in the first batch too
    "missing": (lambda rows: replace(rows, sparse_features=ids(KEYS[:-1])), "must have the key 'f3' of a table"),
    "twice": (lambda rows: replace(rows, sparse_features=ids([*KEYS, "f0"])), "must have each key once"),
    "weighted": (
        lambda rows: replace(rows, sparse_features=ids(KEYS, weights=torch.ones(SIZE * len(KEYS)))),
        "(with weights of ids) must be as the tables' `is_weighted` (=False) says",
    ),
    "wide": (
        lambda rows: replace(rows, dense_features=torch.zeros(SIZE, 4)),
        "`dense_features` (of shape [6, 4]) must be [B, 3], as `dense_in_features` (=3) says",
    ),
    "none": (lambda rows: replace(rows, dense_features=torch.zeros(SIZE, 0)), "(of shape [6, 0]) must be [B, 3]"),
    "flat": (lambda rows: replace(rows, dense_features=torch.zeros(SIZE)), "(of shape [6]) must be [B, 3]"),
}


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("name", MODELS)
def test_a_later_batch_of_another_form_is_refused(name, change):
    trained, (make, sentence) = train_model(name), LATER[change]
    trained(batch(SIZE))
    with pytest.raises(InputError, match=re.escape(sentence)):
        trained(make(batch(SIZE)))
    trained(batch(SIZE, seed=1))


@pytest.mark.parametrize("change", ALWAYS)
@pytest.mark.parametrize("name", MODELS)
def test_a_first_batch_of_the_wrong_form_is_refused(name, change):
    trained, (make, sentence) = train_model(name), ALWAYS[change]
    with pytest.raises(InputError, match=re.escape(sentence)):
        trained(make(batch(SIZE)))
    trained(batch(SIZE))  # the refused batch did not become the first


@pytest.mark.parametrize("name", MODELS)
def test_dense_columns_without_a_dense_field_are_refused(name):
    model = MODELS[name].model(tables(), TASKS, **MODELS[name].model_args)
    with pytest.raises(InputError, match=re.escape("(of shape [6, 3]) must be [B, 0], as `dense_in_features` (=0)")):
        model(batch(SIZE).dense_features, batch(SIZE).sparse_features)


@pytest.mark.parametrize("sharding", ["auto", "row_wise", "column_wise", "data_parallel"])
def test_sharded_tables_refuse_the_same(sharding):
    config = TrainingConfig(table=TableConfig(sharding=sharding))
    with process_group(torch.device("cpu")):
        model, _ = distribute(train_model("shared_bottom"), config, torch.device("cpu"))
        for make, sentence in ALWAYS.values():
            with pytest.raises(InputError, match=re.escape(sentence)):
                model(make(batch(SIZE)))
        model(batch(SIZE))
        if sharding != "data_parallel":  # which leaves the collection as it was
            assert model(batch(0))[1][1].shape == (0, len(TASKS))  # a rank may run out of rows
        for make, sentence in LATER.values():
            with pytest.raises(InputError, match=re.escape(sentence)):
                model(make(batch(SIZE)))


def test_weighted_tables_need_weights():
    weighted = EmbeddingBagCollection(tables=tables().embedding_bag_configs(), is_weighted=True)
    features = FeatureArch(weighted)
    with pytest.raises(InputError, match=re.escape("(with no weights of ids) must be as the tables' `is_weighted`")):
        features(torch.empty(SIZE, 0), ids(KEYS))
    features(torch.empty(SIZE, 0), ids(KEYS, weights=torch.ones(SIZE * len(KEYS))))


def test_the_check_can_be_switched_off():
    features = FeatureArch(tables(), check_batches=False)
    assert features(torch.empty(SIZE, 3), ids(KEYS)).equal(features(torch.empty(SIZE, 0), ids(KEYS[::-1])))


def test_traced_and_quantised_features_become_torchscript():
    features, rows = feature_arch().eval(), batch(SIZE)
    expected = features(rows.dense_features, rows.sparse_features)
    traced = symbolic_trace(copy.deepcopy(features))
    quantised = symbolic_trace(
        quantize_inference_model(copy.deepcopy(features)), leaf_modules=["IntNBitTableBatchedEmbeddingBagsCodegen"]
    )
    for module in (traced, quantised):
        output = torch.jit.script(module)(rows.dense_features, rows.sparse_features)
        torch.testing.assert_close(output, expected, atol=0.05, rtol=0)
