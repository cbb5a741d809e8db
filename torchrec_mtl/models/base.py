"""The frame that models share: tables and dense arch below, an over arch on top, logits out."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.modules import DenseArch, FieldProjection, SparseArch, initialize_linear_layers
from torchrec_mtl.tasks import TaskChain


class FlatModel(nn.Module):
    """An over arch on the embeddings side by side, ``[B, sum(D_f)]``.

    A model is a subclass that names its over arch, which is made as ``Arch(in_features, num_tasks, **over_arch)``.
    Its linear layers start as `initialize_linear_layers` has it.

    Args:
        embedding_bag_collection: the tables.
        tasks: the funnel, ``T`` tasks.
        dense_in_features: number of dense features.
        dense_arch_layer_sizes: MLP of the dense features.
        dense_device: device of everything but the tables.
        over_arch: further arguments are the over arch's.

    Example::

        >>> from torchrec import EmbeddingBagConfig
        >>> from torchrec_mtl.models import SharedBottom
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = SharedBottom(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> model(torch.empty(2, 0), ids).shape
        torch.Size([2, 2])
    """

    over_arch_class: ClassVar[Callable[..., nn.Module]]

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
            self.over_arch = type(self).over_arch_class(in_features, len(tasks), **over_arch)
        initialize_linear_layers(self)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        return self.over_arch(self.embed(dense_features, sparse_features))

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to what the over arch takes, ``[B, sum(D_f)]``."""
        return torch.cat([self.sparse_arch(sparse_features), self.dense_arch(dense_features)], dim=1)


class FieldModel(nn.Module):
    """An over arch on one embedding a field, ``[B, F, D]``.

    A model is a subclass that names its over arch, which is made as
    ``Arch(num_fields, embedding_dim, num_tasks, **over_arch)``. Its linear layers start as
    `initialize_linear_layers` has it.

    Args:
        embedding_bag_collection: the tables.
        tasks: the funnel, ``T`` tasks.
        dense_in_features: number of dense features.
        dense_arch_layer_sizes: MLP of the dense features, which are one more field.
        embedding_dim: ``D``; the widest field's by default. Fields of another dimension are projected to it.
        dense_device: device of everything but the tables.
        over_arch: further arguments are the over arch's.

    Example::

        >>> from torchrec import EmbeddingBagConfig
        >>> from torchrec_mtl.models import TAFE
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = TAFE(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> model(torch.empty(2, 0), ids).shape
        torch.Size([2, 2])
    """

    over_arch_class: ClassVar[Callable[..., nn.Module]]

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: TaskChain,
        dense_in_features: int = 0,
        dense_arch_layer_sizes: Sequence[int] = (64,),
        embedding_dim: int | None = None,
        dense_device: torch.device | None = None,
        **over_arch: Any,
    ) -> None:
        super().__init__()
        self.sparse_arch = SparseArch(embedding_bag_collection)
        embedding_dim = embedding_dim or max(self.sparse_arch.field_dims)
        with torch.device(dense_device or torch.get_default_device()):
            self.dense_arch = DenseArch(dense_in_features, dense_arch_layer_sizes)
            field_dims = self.sparse_arch.field_dims + self.dense_arch.field_dims
            self.projection = FieldProjection(field_dims, embedding_dim)
            self.over_arch = type(self).over_arch_class(len(field_dims), embedding_dim, len(tasks), **over_arch)
        initialize_linear_layers(self)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        return self.over_arch(self.embed(dense_features, sparse_features))

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to what the over arch takes, ``[B, F, D]``."""
        return self.projection(torch.cat([self.sparse_arch(sparse_features), self.dense_arch(dense_features)], dim=1))
