"""Small tables, batches and models for tests."""

from collections.abc import Sequence

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from torchrec_mtl import MultiTaskTrain, Task, TaskChain, TaskForest
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import delayed_task, real_negative_task

TASKS = TaskChain(["click", "cart", "purchase"])
TREE = TaskForest(Task("click"), Task("like", after="click"), Task("buy", after="click"), Task("back", after="buy"))
NUM_EMBEDDINGS = (11, 7, 5, 13)
NUM_DENSE = 3

# Every model of the library, with its paper's loss; ablations are the same classes.
MODELS = {name: system for name, system in SYSTEMS.items() if system.ablation_of is None}


def offers(loss: str) -> str:
    """A model that offers what a loss of `LOSSES` reads."""
    return loss if loss in ("dcmt", "ddpo") else "escm2_dr"


def chain(num_tasks: int) -> TaskChain:
    return TaskChain([f"step_{t}" for t in range(num_tasks)])


def with_late_labels(tasks: TaskForest, late: int = -1) -> TaskForest:
    """The tasks, and those that `DelayedLoss` needs beside the one at position ``late``."""
    task = tasks.tasks[late]
    return TaskForest(
        *tasks.tasks, Task(delayed_task(task.name), after=task.after), Task(real_negative_task(task.name))
    )


def tasks_for(loss: str, tasks: TaskForest = TASKS) -> TaskForest:
    """The tasks, and what a loss of `LOSSES` needs beside them."""
    return with_late_labels(tasks) if loss == "delayed" else tasks


def three_tasks_for(loss: str) -> TaskForest:
    """Three tasks, some of which need another, that suit a loss of `LOSSES`."""
    late = TaskForest(Task("buy"), Task("buy_delayed", after="buy"), Task("buy_real_negative"))
    return late if loss == "delayed" else TASKS


def tables(
    embedding_dims: Sequence[int] = (4, 4, 4, 4), device: str | torch.device | None = None
) -> EmbeddingBagCollection:
    """One table for each field ``f0``, ``f1``, ..."""
    configs = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=dim, num_embeddings=NUM_EMBEDDINGS[i], feature_names=[f"f{i}"])
        for i, dim in enumerate(embedding_dims)
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device(device) if device else None)


def feature_arch(embedding_dims: Sequence[int] = (4, 4, 4, 4), device: str | None = None) -> FeatureArch:
    """`tables` and dense features."""
    return FeatureArch(
        tables(embedding_dims, device),
        dense_in_features=NUM_DENSE,
        dense_arch_layer_sizes=(6, 4),
        dense_device=torch.device(device) if device else None,
    )


def build(
    name: str,
    embedding_dims: Sequence[int] = (4, 4, 4, 4),
    device: str | None = None,
    tasks: TaskForest = TASKS,
    **arguments: object,
) -> nn.Module:
    """The model of a system, at the size for tests, on `feature_arch`."""
    system = SYSTEMS[name]
    return system.model(
        feature_arch(embedding_dims, device), tasks, **{**system.small, **system.model_args, **arguments}
    )


def train_model(name: str, tasks: TaskForest = TASKS, **arguments: object) -> nn.Module:
    """The model of `build` with the loss of the system."""
    system = SYSTEMS[name]
    return MultiTaskTrain(build(name, tasks=tasks, **arguments), system.loss(tasks, **system.loss_args))


def without_dropout(module: nn.Module) -> nn.Module:
    """The module, whose dropout drops nothing: an operation draws otherwise than the modules that it replaces."""
    for each in module.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    return module


def batch(size: int, seed: int = 0, weighted: bool = False) -> MultiTaskBatch:
    """Random rows: 0 to 3 ids in each field, dense features, and labels that fall along the funnel."""
    generator = torch.Generator().manual_seed(seed)
    num_fields = len(NUM_EMBEDDINGS)
    lengths = torch.randint(0, 4, (num_fields, size), generator=generator)
    ids = [
        torch.randint(0, n, (int(of_field.sum()),), generator=generator)
        for n, of_field in zip(NUM_EMBEDDINGS, lengths, strict=True)
    ]
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=[f"f{i}" for i in range(num_fields)], values=torch.cat(ids), lengths=lengths.flatten()
    )
    happened = torch.rand(size, len(TASKS), generator=generator) < 0.6
    return MultiTaskBatch(
        dense_features=torch.randn(size, NUM_DENSE, generator=generator),
        sparse_features=sparse,
        labels=happened.int().cumprod(1).float(),
        weights=torch.randint(0, 3, happened.shape, generator=generator).float() if weighted else None,
        groups=torch.randint(0, 3, (size,), generator=generator),
    )


def take(source: MultiTaskBatch, rows: Sequence[int]) -> MultiTaskBatch:
    """The given rows of a batch, in the given order."""
    parts = []
    for jagged in source.sparse_features.to_dict().values():
        offsets = jagged.offsets()
        parts.append([jagged.values()[offsets[row] : offsets[row + 1]] for row in rows])
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=source.sparse_features.keys(),
        values=torch.cat([ids for part in parts for ids in part]),
        lengths=torch.tensor([len(ids) for part in parts for ids in part]),
    )
    index = torch.tensor(list(rows))
    weights = None if source.weights is None else source.weights[index]
    groups = None if source.groups is None else source.groups[index]
    return MultiTaskBatch(source.dense_features[index], sparse, source.labels[index], weights, groups=groups)
