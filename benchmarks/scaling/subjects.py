"""What bare TorchRec and our loop train side by side: TorchRec's DLRM, or a model of this library's."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM, DLRMTrain, SparseArch

from torchrec_mtl import MultiTaskTrain, TaskChain, TaskForest
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.systems import SYSTEMS

CPU = torch.device("cpu")
NUM_BATCHES = 8


@dataclass(frozen=True)
class Subject:
    """A model with its loss and its batches, as a user of either would write them.

    Args:
        bare: for TorchRec.
        ours: the same for our loop; parameters have the same names.
        batches: for our loop.
        bare_batches: the same for TorchRec.
        tasks: the funnel.
    """

    bare: nn.Module
    ours: nn.Module
    batches: list[MultiTaskBatch]
    bare_batches: list[Batch]
    tasks: TaskForest


def make_batches(
    batch_size: int, num_rows: int, seed: int, num_fields: int, dense: int, tasks: int
) -> tuple[list[MultiTaskBatch], list[Batch]]:
    """Random ones, each feature's bag holds one id: for our loop, and for TorchRec."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"f{number}" for number in range(num_fields)]
    batches = []
    for _ in range(NUM_BATCHES):
        ids = torch.randint(num_rows, (num_fields * batch_size,), generator=generator)
        sparse = KeyedJaggedTensor.from_lengths_sync(names, ids, torch.ones(len(ids), dtype=torch.int32))
        numbers = torch.randn(batch_size, dense, generator=generator)
        labels = (torch.rand(batch_size, tasks, generator=generator) < 0.25).float().cumprod(1)
        batches.append(MultiTaskBatch(numbers, sparse, labels))
    # DLRM's labels are [B]
    return batches, [Batch(b.dense_features, b.sparse_features, b.labels.squeeze(1)) for b in batches]


def _tables(num_fields: int, embedding_dim: int, num_rows: int) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(
            name=f"t_f{field}", embedding_dim=embedding_dim, num_embeddings=num_rows, feature_names=[f"f{field}"]
        )
        for field in range(num_fields)
    ]
    return EmbeddingBagCollection(tables=tables, device=torch.device("meta"))


def dlrm(batch_size: int, num_rows: int, seed: int) -> Subject:
    """26 tables of 32, dense arch 512-256-32, over arch 512-512-1."""

    def model() -> DLRM:
        return DLRM(_tables(26, 32, num_rows), 13, [512, 256, 32], [512, 512, 1], dense_device=CPU)

    batches, bare_batches = make_batches(batch_size, num_rows, seed, num_fields=26, dense=13, tasks=1)
    tasks = TaskChain(["click"])
    ours = MultiTaskTrain(model(), CrossEntropyLoss(tasks))
    return Subject(DLRMTrain(model()), ours, batches, bare_batches, tasks)


class ByHand(nn.Module):
    """TorchRec's sparse arch, over arch and loss, put together as briefly as can be.

    Args:
        tables: the embedding bags.
        over_arch: ``[B, F, D]`` to logits ``[B, T]``.
        loss: ``loss(logits, labels, weights)``.
    """

    def __init__(self, tables: EmbeddingBagCollection, over_arch: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"features": SparseArch(tables), "over_arch": over_arch})
        self.loss = loss

    def forward(self, batch: Batch) -> Any:
        """Loss, then loss, logits and labels without gradient."""
        logits = self.model["over_arch"](self.model["features"](batch.sparse_features))
        loss = self.loss(logits, batch.labels, None)
        return loss, (loss.detach(), logits.detach(), batch.labels)


def library(system: str, batch_size: int, num_rows: int, seed: int) -> Subject:
    """A system of `SYSTEMS` as its paper has it, a funnel of three steps: 23 tables of 16."""
    record, tasks = SYSTEMS[system], TaskChain(["click", "cart", "purchase"])
    batches, bare_batches = make_batches(batch_size, num_rows, seed, num_fields=23, dense=0, tasks=len(tasks))
    model = record.model(FeatureArch(_tables(23, 16, num_rows), dense_device=CPU), tasks)
    bare = ByHand(_tables(23, 16, num_rows), copy.deepcopy(model.get_submodule("over_arch")), record.loss(tasks))
    return Subject(bare, MultiTaskTrain(model, record.loss(tasks)), batches, bare_batches, tasks)


SUBJECTS: dict[str, Callable[[int, int, int], Subject]] = {
    "dlrm": dlrm,
    "shared_bottom": partial(library, "shared_bottom"),
    "tafe": partial(library, "tafe"),
}
