"""BPCM: multi-task learning with features based on behavioural pattern conversation (Tang et al.).

Symbols: ``E`` fields' embeddings ``fields [B, F, D]``; ``q_t`` a feature tower's output ``queries[t]``;
``Z_t`` what a task predicts from and passes on, ``states[t]``; all ``[B, F, D]``. The paper has a chain; in a tree each
task converts what the task that it needs passes on.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    BehaviorPatternConversion,
    FeatureArch,
    FeatureTower,
    FieldProjection,
    TaskTowers,
    as_features,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class BPCMArch(nn.Module):
    """Feature towers, conversions from task to task, prediction towers: BPCM eq. (2)-(10).

    Args:
        num_fields: ``F``.
        embedding_dim: ``D``.
        tasks: ``T`` tasks; the conversions follow what each needs.
        others: see `BPCM`.

    Raises:
        InputError: see `BPCM`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> BPCMArch(6, 8, TaskChain(["click", "cart", "purchase"]))(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        tasks: TaskForest,
        *,
        num_heads: int = 1,
        tower_layer_sizes: Sequence[int] = (128, 64),
        aggregation_over: Literal["embedding", "fields"] = "embedding",
        aggregation_size: int | None = None,
        message_dropout: float = 0.1,
        layer_norm: bool = False,
        dropout: float = 0.0,
        attention: bool = True,
        aggregation: bool = True,
        gate: bool = True,
        conversion: bool = True,
    ) -> None:
        super().__init__()
        if conversion:
            tasks.require_edges("BPCM")
        self.shape = (num_fields, embedding_dim)
        self.edges = tasks.edges if conversion else ()
        self.feature_towers = nn.ModuleList(
            FeatureTower(
                num_fields, embedding_dim, num_heads, aggregation_over, aggregation_size, attention, aggregation, gate
            )
            for _ in tasks
        )
        self.conversions = nn.ModuleList(
            BehaviorPatternConversion(embedding_dim, num_heads, message_dropout, layer_norm) for _ in self.edges
        )
        self.towers = TaskTowers(len(tasks), num_fields * embedding_dim, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        fields = embeddings.reshape(-1, *self.shape)
        queries = [tower(fields) for tower in self.feature_towers]
        states = list(queries)
        for convert, (parent, task) in zip(self.conversions, self.edges, strict=True):
            states[task] = convert(queries[task], states[parent])  # BPCM eq. (7)
        return self.towers([state.flatten(1) for state in states])  # BPCM eq. (10)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class BPCM(MultiTaskModel):
    """`BPCMArch` on the features; train it with `torchrec_mtl.losses.CalibratedLoss`, BPCM eq. (13).

    Args:
        features: a `FeatureArch`, or the tables alone.
        tasks: ``T`` tasks, of which some need another.
        embedding_dim: ``D``; the widest table's by default. Fields of another dimension are projected to it.
        num_heads: heads of all attentions; must divide ``D``. The paper has one.
        tower_layer_sizes: hidden layers of eq. (10)'s MLP, which the paper does not give.
        aggregation_over: axis of eq. (4), ``"embedding"`` or ``"fields"``, see `FeatureAggregation`.
        aggregation_size: hidden width of eq. (4); that of its input by default.
        message_dropout: of ``msg``, eq. (8). The paper gives no probability.
        layer_norm: whether eq. (9)'s sum is normalised: the text names LayerNorm, the equation does not.
        dropout: probability of dropping a prediction tower's hidden unit in training.
        attention: False for the ablation "w/o Att", see `FeatureTower`.
        aggregation: False for the ablation "w/o Org", see `FeatureTower`.
        gate: False for the ablation "w/o Gate", see `FeatureTower`.
        conversion: False for the ablation "w/o BPC": ``Z_t = q_t``.

    Raises:
        InputError: if no task needs another (unless ``conversion`` is False), ``num_heads`` does not divide ``D``,
            both units of the feature towers are left out, or a size or probability is out of its range.
    """

    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        embedding_dim: int | None = None,
        num_heads: int = 1,
        tower_layer_sizes: Sequence[int] = (128, 64),
        aggregation_over: Literal["embedding", "fields"] = "embedding",
        aggregation_size: int | None = None,
        message_dropout: float = 0.1,
        layer_norm: bool = False,
        dropout: float = 0.0,
        attention: bool = True,
        aggregation: bool = True,
        gate: bool = True,
        conversion: bool = True,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.projection = FieldProjection(self.features.field_dims, embedding_dim or self.features.widest)
            self.over_arch = BPCMArch(
                len(self.features.field_dims),
                self.projection.embedding_dim,
                tasks,
                num_heads=num_heads,
                tower_layer_sizes=tower_layer_sizes,
                aggregation_over=aggregation_over,
                aggregation_size=aggregation_size,
                message_dropout=message_dropout,
                layer_norm=layer_norm,
                dropout=dropout,
                attention=attention,
                aggregation=aggregation,
                gate=gate,
                conversion=conversion,
            )
        initialize_linear_layers(self.projection, self.over_arch)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to ``E [B, F, D]``."""
        return self.projection(self.features(dense_features, sparse_features))
