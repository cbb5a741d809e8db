"""Tables that are unequal, shared by features and looked up twice; batches of bags; what training makes of them."""

import copy

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from torchrec_mtl.ops.embedding_bag import reference
from torchrec_mtl.training.sharded_tables import ShardedTables

NAMES = {  # of the operation, by the name in the settings
    "sgd": "sgd",
    "adagrad": "adagrad",
    "rowwise_adagrad": "rowwise_adagrad",
    "sparse_adam": "adam",
    "rowwise_adam": "rowwise_adam",
}
SIZE, RATE = 24, 0.05
KEYS = ["f3", "f1", "f0", "other", "f2"]  # not in the order of the tables
HIGH = {"f0": 11, "f1": 40, "f2": 40, "f3": 13, "other": 10**9}
FIELDS = [("f0", 0), ("f1", 1), ("f2", 1), ("f0", 2), ("f3", 3)]  # and their tables


def tables(mean: bool = False, **options) -> EmbeddingBagCollection:
    """Unequal in rows and columns; ``t1`` is of two features, ``f0`` is looked up in two tables."""
    pooling = PoolingType.MEAN if mean else PoolingType.SUM
    sizes = [("t0", 11, 8, ["f0"]), ("t1", 40, 16, ["f1", "f2"]), ("t2", 11, 4, ["f0"]), ("t3", 13, 12, ["f3"])]
    configs = [
        EmbeddingBagConfig(rows, dim, name, feature_names=features, pooling=pooling)
        for name, rows, dim, features in sizes
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device("meta"), **options)


class Net(nn.Module):
    """All features side by side, by name."""

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables, self.scale = collection, nn.Parameter(torch.ones(()))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        pooled = self.tables(features)
        names = [f"f0@t{table}" if key == "f0" else key for key, table in FIELDS]
        return torch.cat([pooled[name] for name in names], 1)


def bags(seed: int, rows: slice = slice(None), weighted: bool = False) -> KeyedJaggedTensor:
    """0 to 3 ids a feature, often the same."""
    generator = torch.Generator().manual_seed(seed)
    ids, lengths, weights = [], [], []
    for key in KEYS:
        of_key = torch.randint(0, 4, (SIZE,), generator=generator)
        values = torch.randint(0, min(HIGH[key], 15), (int(of_key.sum()),), generator=generator)
        parts = list(values.split(of_key.tolist()))[rows]
        ids += parts
        lengths.append(of_key[rows])
        weights += list(torch.rand(len(values), generator=generator).split(of_key.tolist()))[rows]
    values = torch.cat(weights) if weighted else None
    return KeyedJaggedTensor.from_lengths_sync(KEYS, torch.cat(ids), torch.cat(lengths), values)


def gradients(seed: int, width: int) -> Tensor:
    return torch.randn(SIZE, width, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, steps: range, rank: int = 0, world_size: int = 1, weighted: bool = False) -> None:
    for step in steps:
        own = slice(rank, None, world_size)
        pooled = model(bags(step, own, weighted))
        (pooled * gradients(step, pooled.shape[1])[own]).sum().mul(world_size).backward()


def expected(weights: list[Tensor], optimizer: str, steps: range, mean: bool, weighted: bool) -> list[Tensor]:
    """The tables after the steps, by the definition, in float64."""
    weights = [w.double() for w in weights]
    whole, of_row = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w[:, 0]) for w in weights]
    states = {"sgd": (), "adagrad": (whole,), "rowwise_adagrad": (of_row,)}
    states |= {"sparse_adam": (whole, copy.deepcopy(whole)), "rowwise_adam": (whole, of_row)}
    key_of_field, table_of_field = [KEYS.index(key) for key, _ in FIELDS], [table for _, table in FIELDS]
    for step in steps:
        features = bags(step, weighted=weighted)
        reference.update(
            weights,
            states[optimizer],
            table_of_field,
            key_of_field,
            [mean] * len(FIELDS),
            features.values(),
            features.offsets(),
            SIZE,
            gradients(step, sum(weights[table].shape[1] for table in table_of_field)).double(),
            NAMES[optimizer],
            learning_rate=RATE,
            step=step,
            weights=features.weights().double() if weighted else None,
        )
    return weights


def table_batched_modules(model: nn.Module) -> list[nn.Module]:
    """fbgemm's or ours, one for each group of tables."""
    collections = [m for m in model.modules() if isinstance(m, ShardedTables)]
    return [kernel.emb_module for each in collections for lookup in each._lookups for kernel in lookup._emb_modules]
