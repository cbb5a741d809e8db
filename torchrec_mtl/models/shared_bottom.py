"""Shared-Bottom: one representation for all tasks, a tower for each (Caruana 1997; TAFE section 4.1.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.modules import DenseArch, SparseArch, TaskTowers
from torchrec_mtl.tasks import TaskChain


class SharedBottomArch(nn.Module):
    """A bottom MLP on all embeddings, then a tower a task.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        bottom_layer_sizes: the bottom's layers, ReLU after each.
        tower_layer_sizes: hidden layers of each tower.
        dropout: probability of dropping a tower's hidden unit in training.

    Example::

        >>> SharedBottomArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        bottom_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.bottom = MLP(in_features, list(bottom_layer_sizes))
        self.towers = TaskTowers(num_tasks, bottom_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        return self.towers([self.bottom(embeddings.flatten(1))] * self.num_tasks)


class SharedBottom(nn.Module):
    """`SharedBottomArch` on the embeddings.

    The papers give the baselines' sizes only for Single-Task, 256-128-64; here the first two are the bottom and
    the last the towers.

    Args:
        embedding_bag_collection: the tables.
        tasks: the funnel, ``T`` tasks.
        dense_in_features: number of dense features.
        dense_arch_layer_sizes: MLP of the dense features.
        dense_device: device of everything but the tables.
        over_arch: further arguments are `SharedBottomArch`'s.

    Example::

        >>> from torchrec import EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = SharedBottom(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> model(torch.empty(2, 0), ids).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: TaskChain,
        dense_in_features: int = 0,
        dense_arch_layer_sizes: Sequence[int] = (64,),
        dense_device: torch.device | None = None,
        **over_arch: Any,
    ) -> None:
        super().__init__()
        self.sparse_arch = SparseArch(embedding_bag_collection)
        with torch.device(dense_device or torch.get_default_device()):
            self.dense_arch = DenseArch(dense_in_features, dense_arch_layer_sizes)
            in_features = sum(self.sparse_arch.field_dims + self.dense_arch.field_dims)
            self.over_arch = SharedBottomArch(in_features, len(tasks), **over_arch)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        embeddings = torch.cat([self.sparse_arch(sparse_features), self.dense_arch(dense_features)], dim=1)
        return self.over_arch(embeddings)
