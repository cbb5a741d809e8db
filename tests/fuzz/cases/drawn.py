"""What the cases draw: forests, batches, sizes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from torchrec_mtl import Task, TaskChain, TaskForest
from torchrec_mtl.data import MultiTaskBatch

NUM_EMBEDDINGS = (11, 7, 5)


def integer(rng: Generator, least: int, most: int) -> int:
    return int(rng.integers(least, most + 1))


def one_of(rng: Generator, *choices: Any) -> Any:
    return choices[integer(rng, 0, len(choices) - 1)]


def sizes(rng: Generator, least: int = 0, most: int = 3) -> list[int]:
    return [integer(rng, 1, 5) for _ in range(integer(rng, least, most))]


def floats(rng: Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape)).float()


def chain(rng: Generator, least: int = 2, most: int = 4) -> TaskForest:
    return TaskChain([f"step_{t}" for t in range(integer(rng, least, most))])


def forest(rng: Generator, most: int = 4) -> TaskForest:
    """Of 2 tasks or more, some of which need another."""
    parents = [None, 0, *(one_of(rng, None, *range(t)) for t in range(2, integer(rng, 2, most)))]
    return TaskForest(*(Task(f"t{t}", after=None if p is None else f"t{p}") for t, p in enumerate(parents)))


def labels(rng: Generator, num_rows: int, tasks: TaskForest) -> Tensor:
    """0 or 1 along the tasks, ``[B, T]``: a label only where that of the task before; sometimes all 0, or all 1."""
    happened = rng.random((num_rows, len(tasks))) < one_of(rng, 0.0, 0.5, 0.5, 0.5, 1.0)
    for child, parent in enumerate(tasks.parents):
        if parent is not None:
            happened[:, child] &= happened[:, parent]
    return torch.from_numpy(happened.astype(np.float32))


def weights(rng: Generator, *shape: int) -> Tensor:
    """Some of them 0."""
    return torch.from_numpy(rng.integers(0, 3, shape) * rng.random(shape)).float()


def sparse(rng: Generator, num_rows: int, keys: Sequence[str], weighted: bool = False) -> KeyedJaggedTensor:
    """Empty bags, single ids, long bags, an id twice in a bag."""
    longest = one_of(rng, 0, 1, 4, 40)
    lengths = rng.integers(0, longest + 1, (len(keys), num_rows))
    ids = [rng.integers(0, NUM_EMBEDDINGS[f], lengths[f].sum()) for f in range(len(keys))]
    values = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *ids]))
    of_ids = torch.from_numpy(rng.normal(size=len(values))).float() if weighted else None
    return KeyedJaggedTensor(list(keys), values, of_ids, lengths=torch.from_numpy(lengths.flatten()))


def batch(
    rng: Generator, tasks: TaskForest, num_fields: int = 3, num_dense: int = 2, weighted: bool = False
) -> MultiTaskBatch:
    """One row or several."""
    num_rows = one_of(rng, 1, 1, 2, 7)
    return MultiTaskBatch(
        dense_features=floats(rng, num_rows, num_dense),
        sparse_features=sparse(rng, num_rows, [f"f{i}" for i in range(num_fields)], weighted),
        labels=labels(rng, num_rows, tasks),
        weights=one_of(rng, None, weights(rng, num_rows, len(tasks))),
    )


def tables(dims: Sequence[int], weighted: bool = False, device: str | None = None) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=dim, num_embeddings=NUM_EMBEDDINGS[i], feature_names=[f"f{i}"])
        for i, dim in enumerate(dims)
    ]
    return EmbeddingBagCollection(
        tables=configs, is_weighted=weighted, device=None if device is None else torch.device(device)
    )


def assert_finite(x: Tensor, *shape: int) -> None:
    assert tuple(x.shape) == shape, f"{tuple(x.shape)} instead of {shape}"
    assert x.isfinite().all(), x
