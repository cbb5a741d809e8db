"""BPCM: multi-task learning with features based on behavioural pattern conversation (Tang et al.).

Symbols: ``E`` fields' embeddings ``fields [B, F, D]``; ``q_t`` a feature tower's output ``queries[t]``;
``Z_t`` what a task predicts from and passes on, ``states[t]``; all ``[B, F, D]``.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.modules import (
    BehaviorPatternConversion,
    DenseArch,
    FeatureTower,
    FieldProjection,
    SparseArch,
    TaskTowers,
)
from torchrec_mtl.tasks import TaskChain


class BPCMArch(nn.Module):
    """Feature towers, conversions from task to task, prediction towers: BPCM eq. (2)-(10).

    Args:
        num_fields: ``F``.
        embedding_dim: ``D``.
        num_tasks: ``T``.
        num_heads: heads of all attentions; must divide ``D``. The paper has one.
        tower_layer_sizes: hidden layers of eq. (10)'s MLP, which the paper does not give.
        aggregation_over: the axis of eq. (4), see `FeatureAggregation`.
        message_dropout, layer_norm: see `BehaviorPatternConversion`.
        dropout: probability of dropping a prediction tower's hidden unit in training.
        attention, aggregation, gate: False for the ablations "w/o Att", "w/o Org", "w/o Gate", see `FeatureTower`.
        conversion: False for the ablation "w/o BPC": ``Z_t = q_t``.

    Example::

        >>> BPCMArch(num_fields=6, embedding_dim=8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_tasks: int,
        num_heads: int = 1,
        tower_layer_sizes: Sequence[int] = (128, 64),
        aggregation_over: Literal["embedding", "fields"] = "embedding",
        message_dropout: float = 0.1,
        layer_norm: bool = False,
        dropout: float = 0.0,
        attention: bool = True,
        aggregation: bool = True,
        gate: bool = True,
        conversion: bool = True,
    ) -> None:
        super().__init__()
        self.shape = (num_fields, embedding_dim)
        self.feature_towers = nn.ModuleList(
            FeatureTower(num_fields, embedding_dim, num_heads, aggregation_over, attention, aggregation, gate)
            for _ in range(num_tasks)
        )
        self.conversions = nn.ModuleList(
            BehaviorPatternConversion(embedding_dim, num_heads, message_dropout, layer_norm)
            for _ in range(num_tasks - 1 if conversion else 0)
        )
        self.towers = TaskTowers(num_tasks, num_fields * embedding_dim, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        fields = embeddings.reshape(-1, *self.shape)
        queries = [tower(fields) for tower in self.feature_towers]
        states = queries
        if self.conversions:
            states = queries[:1]
            for convert, query in zip(self.conversions, queries[1:], strict=True):
                states.append(convert(query, states[-1]))
        return self.towers([state.flatten(1) for state in states])


class BPCM(nn.Module):
    """`BPCMArch` on the embeddings; train it with `torchrec_mtl.losses.CalibratedLoss`, BPCM eq. (13).

    Args:
        embedding_bag_collection: the tables.
        tasks: the funnel, ``T`` tasks.
        dense_in_features: number of dense features.
        dense_arch_layer_sizes: MLP of the dense features.
        embedding_dim: ``D``; the widest field's by default. Fields of another dimension are projected to it. The
            paper found 5 best on Ali-CCP.
        dense_device: device of everything but the tables.
        over_arch: further arguments are `BPCMArch`'s.

    Raises:
        InputError: if ``num_heads`` does not divide ``embedding_dim``.

    Example::

        >>> from torchrec import EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = BPCM(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
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
            self.over_arch = BPCMArch(len(field_dims), embedding_dim, len(tasks), **over_arch)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        embeddings = torch.cat([self.sparse_arch(sparse_features), self.dense_arch(dense_features)], dim=1)
        return self.over_arch(self.projection(embeddings))
