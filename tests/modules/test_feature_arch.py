"""Features: any of TorchRec's collections of pooled embeddings, and dense features."""

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import LFU_EvictionPolicy, ManagedCollisionCollection, MCHManagedCollisionModule

from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.models import SharedBottom, SingleTask
from torchrec_mtl.modules import FeatureArch

TASKS = TaskChain(["click", "purchase"])
CONFIGS = [
    EmbeddingBagConfig(name="t_user", embedding_dim=8, num_embeddings=16, feature_names=["user"]),
    EmbeddingBagConfig(name="t_item", embedding_dim=4, num_embeddings=16, feature_names=["item"]),
]


def batch(size=6):
    ids = torch.arange(2 * size) % 16
    sparse = KeyedJaggedTensor(["user", "item"], ids, lengths=torch.ones(2 * size, dtype=torch.int64))
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).repeat(size // 3, 1)
    return MultiTaskBatch(torch.randn(size, 3), sparse, labels)


def plain():
    return EmbeddingBagCollection(tables=CONFIGS)


def managed_collision():
    modules = {
        config.name: MCHManagedCollisionModule(
            zch_size=16, device=torch.device("cpu"), eviction_interval=1000, eviction_policy=LFU_EvictionPolicy()
        )
        for config in CONFIGS
    }
    return ManagedCollisionEmbeddingBagCollection(plain(), ManagedCollisionCollection(modules, CONFIGS))


def feature_processed():
    weighted = EmbeddingBagCollection(tables=CONFIGS, is_weighted=True)
    return FeatureProcessedEmbeddingBagCollection(weighted, PositionWeightedModuleCollection({"user": 4, "item": 4}))


@pytest.mark.parametrize("make", [plain, managed_collision, feature_processed])
@pytest.mark.parametrize("model_class", [SharedBottom, SingleTask])
def test_any_collection_of_pooled_embeddings_feeds_a_model(make, model_class):
    torch.manual_seed(0)
    features = FeatureArch(make(), dense_in_features=3, dense_arch_layer_sizes=(6, 5))
    assert features.embedding_names == ["user", "item"]
    assert (features.field_dims, features.out_features, features.widest) == ([8, 4, 5], 17, 8)
    trained = MultiTaskTrain(model_class(features, TASKS), CrossEntropyLoss(TASKS))
    optimizer, losses = torch.optim.Adam(trained.parameters(), 0.05), []
    for _ in range(12):
        loss, _ = trained(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in trained.parameters())


def test_a_model_does_not_change_the_features_it_is_given():
    features = FeatureArch(plain(), dense_in_features=3, dense_arch_layer_sizes=(4,))
    before = [p.detach().clone() for p in features.parameters()]
    SharedBottom(features, TASKS)
    assert all(torch.equal(was, now) for was, now in zip(before, features.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FeatureArch(nn.Linear(2, 2)), r"`embedding_bag_collection` \(=Linear\) must have TorchRec's"),
        (lambda: FeatureArch(EmbeddingBagCollection(tables=[])), "must have at least one table"),
        (lambda: FeatureArch(plain(), dense_in_features=-1), r"`dense_in_features` \(=-1\) must be at least 0"),
        (
            lambda: FeatureArch(plain(), dense_in_features=3, dense_arch_layer_sizes=()),
            r"`dense_arch_layer_sizes` \(=\[\]\) must have at least one layer",
        ),
        (
            lambda: FeatureArch(plain(), dense_in_features=2, dense_arch_layer_sizes=(4, 0)),
            r"`dense_arch_layer_sizes` \(=\[4, 0\]\) must be widths of 1 to",
        ),
    ],
)
def test_wrong_arguments_raise(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
