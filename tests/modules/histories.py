"""A small `FeatureArch` with a history, for tests; and batches for it."""

import torch
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from tests.support import NUM_DENSE, batch, tables
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.modules import FeatureArch, HistoryArch

NUM_ITEMS = 13
SMALL = {"din": {"max_length": 3}, "transformer": {"max_length": 3, "transformer_layers": 1, "num_heads": 2}}


def history_arch(device: str | None = None, **arguments: object) -> HistoryArch:
    """Of ``f3``, which attends ``seen``, and of ``liked``, which is averaged."""
    items = EmbeddingConfig(
        name="t_item", embedding_dim=4, num_embeddings=NUM_ITEMS, feature_names=["f3", "seen", "liked"]
    )
    collection = EmbeddingCollection(tables=[items], device=torch.device(device) if device else None)
    return HistoryArch(collection, {"seen": "f3"}, averaged=["liked"], **arguments)


def feature_arch(device: str | None = None, **arguments: object) -> FeatureArch:
    """With three tables more, and dense features."""
    return FeatureArch(
        tables((4, 4, 4), device),
        histories=history_arch(device, **arguments),
        dense_in_features=NUM_DENSE,
        dense_arch_layer_sizes=(6, 4),
    )


def history_batch(size: int, seed: int = 0) -> MultiTaskBatch:
    """`batch`, with 0 to 5 items that were seen and 0 to 5 that were liked."""
    rows, generator = batch(size, seed), torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (2 * size,), generator=generator)
    ids = torch.randint(0, NUM_ITEMS, (int(lengths.sum()),), generator=generator)
    others = rows.sparse_features
    sparse = KeyedJaggedTensor.from_lengths_sync(
        ["seen", "liked", *others.keys()],
        torch.cat([ids, others.values()]),
        torch.cat([lengths, others.lengths()]),
    )
    return MultiTaskBatch(rows.dense_features, sparse, rows.labels)
