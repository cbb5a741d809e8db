"""Random batches of a funnel for the examples: ids, numbers and nested labels, without any files."""

from collections.abc import Iterator

import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from torchrec_mtl import TaskChain
from torchrec_mtl.data import MultiTaskBatch

TASKS = TaskChain(["click", "cart", "purchase"])
FEATURES = {"user": 1000, "item": 500, "category": 20, "hour": 24}
NUM_DENSE = 4


def tables(embedding_dim: int) -> list[EmbeddingBagConfig]:
    """Returns one TorchRec table per feature."""
    return [
        EmbeddingBagConfig(
            name=f"t_{feature}", embedding_dim=embedding_dim, num_embeddings=size, feature_names=[feature]
        )
        for feature, size in FEATURES.items()
    ]


def batches(num_batches: int, batch_size: int, seed: int = 0) -> Iterator[MultiTaskBatch]:
    """Yields batches in which even items are clicked, put in the cart and purchased more often than odd ones."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_batches):
        ids = torch.stack([torch.randint(n, (batch_size,), generator=generator) for n in FEATURES.values()])
        sparse = KeyedJaggedTensor.from_lengths_sync(
            keys=list(FEATURES), values=ids.flatten(), lengths=torch.ones(ids.numel(), dtype=torch.int32)
        )
        rate = torch.where(ids[1] % 2 == 0, 0.6, 0.3)[:, None]
        happened = torch.rand(batch_size, len(TASKS), generator=generator) < rate
        yield MultiTaskBatch(
            dense_features=torch.randn(batch_size, NUM_DENSE, generator=generator),
            sparse_features=sparse,
            labels=happened.int().cumprod(dim=1).float(),  # a step needs the previous one
        )
