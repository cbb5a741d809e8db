"""Histories as fields of `FeatureArch`."""

import pytest
import torch
from torch import nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)

from tests.modules.histories import feature_arch, history_arch, history_batch
from tests.support import tables
from torchrec_mtl.data import UnknownIds, check_batch
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import FeatureArch, HistoryArch
from torchrec_mtl.modules.history_arch import HistoryFields


def item_table(name="t_item", features=("item", "seen"), dim=4):
    return EmbeddingConfig(name=name, embedding_dim=dim, num_embeddings=9, feature_names=list(features))


def test_fields_are_by_name_in_the_order_of_the_tables():
    features, rows = feature_arch(), history_batch(7)
    assert features.embedding_names == ["f0", "f1", "f2", "f3", "seen", "liked"]
    assert features.field_dims == [4, 4, 4, 4, 4, 4, 4]
    found = features(rows.dense_features, rows.sparse_features).split(features.field_dims, 1)
    weight = features.histories.embedding_collection.embeddings["t_item"].weight
    ids = rows.sparse_features.to_dict()
    parts = {key: ids[key].values().split(ids[key].lengths().tolist()) for key in ("f3", "seen", "liked")}
    expected = [weight[part].sum(0) for part in parts["f3"]]
    torch.testing.assert_close(found[3], torch.stack(expected))
    means = [weight[part].mean(0) if len(part) else torch.zeros(4) for part in parts["liked"]]
    torch.testing.assert_close(found[5], torch.stack(means))
    (attention,) = features.histories.fields.attentions
    history = torch.cat(parts["seen"])
    lengths = torch.tensor([len(part) for part in parts["seen"]])
    torch.testing.assert_close(found[4], attention(weight[history], lengths, found[3]))


def test_ids_of_histories_are_checked_as_others_are():
    features, rows = feature_arch(), history_batch(7)
    rows.sparse_features.values()[0] = 13
    with pytest.raises(InputError, match=r"'seen', row 0 .*: id \(=13\) must be .* below `num_embeddings` \(=13\)"):
        check_batch(rows, features)
    check_batch(rows, features, skip=["ids"])
    rows.sparse_features = UnknownIds(features, {"seen": 2})(rows.sparse_features)
    assert rows.sparse_features.values()[0] == 2
    check_batch(rows, features)


def test_half_precision():
    features, rows = feature_arch(transformer_layers=1).bfloat16(), history_batch(7)
    assert features(rows.dense_features, rows.sparse_features).dtype == torch.bfloat16


def test_whether_the_candidate_was_seen_is_learnt():
    """Which neither the candidate nor a sum of what was seen says to a linear model."""
    torch.manual_seed(0)
    histories = history_arch()
    nn.init.normal_(histories.embedding_collection.embeddings["t_item"].weight)
    model = nn.ModuleList([histories, nn.Linear(8, 1)])
    optimizer = torch.optim.Adam(model.parameters(), 0.02)

    def loss(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        items = torch.randint(0, 13, (5, 256), generator=generator)  # one offered, four seen
        ids = torch.cat([items[0], items[1:].T.flatten()])
        lengths = torch.tensor([1, 4, 0]).repeat_interleave(256)
        fields = histories(KeyedJaggedTensor.from_lengths_sync(["f3", "seen", "liked"], ids, lengths))
        seen = (items[1:] == items[0]).any(0).float()
        return nn.functional.binary_cross_entropy_with_logits(model[1](fields[:, :8])[:, 0], seen)

    for step in range(200):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    assert loss(999) < 0.35  # of 0.58, which the share alone has


@pytest.mark.parametrize(
    ("configs", "candidates", "message"),
    [
        ([item_table()], {"seen": "other"}, r"`candidates` \(='seen': 'other'\) must be of one table .*'item'"),
        ([item_table()], {"sen": "item"}, r"`candidates` \(='sen': 'item'\) must be of one table"),
        (
            [item_table(), item_table("t_ad", ["ad"])],
            {"seen": "ad"},
            r"`candidates` \(='seen': 'ad'\) must be of one table",
        ),
        ([item_table()], {"seen": "item", "item": "seen"}, "must not name a history as a candidate"),
        ([item_table(), item_table("t_ad")], {"seen": "item"}, "must have each key in one table"),
    ],
)
def test_what_a_history_cannot_be(configs, candidates, message):
    with pytest.raises(InputError, match=message):
        HistoryArch(EmbeddingCollection(tables=configs), candidates)


def test_what_features_with_histories_cannot_be():
    with pytest.raises(InputError, match=r"`embedding_collection` \(=EmbeddingBagCollection\) must be"):
        HistoryArch(tables(), {"seen": "f3"})
    with pytest.raises(InputError, match="feature 'f3' of `histories` must not be in another collection"):
        FeatureArch(tables(), histories=history_arch())
    table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=5, feature_names=["f0"])
    with pytest.raises(InputError, match="must not have weights of ids beside `histories`"):
        FeatureArch(EmbeddingBagCollection(tables=[table], is_weighted=True), histories=history_arch())
    with pytest.raises(InputError, match=r"`candidates` and `averaged` \(='lked'\) must be of the keys"):
        HistoryFields(["item", "seen"], 4, {"seen": "item"}, averaged=["lked"])
    rows = history_batch(3)
    features = feature_arch()
    sparse = rows.sparse_features.permute([1, 2, 3, 4, 5])
    with pytest.raises(InputError, match="must have the key 'seen' of a table"):
        features(rows.dense_features, sparse)
