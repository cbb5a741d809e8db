"""BPCM: multi-task learning with features based on behavioural pattern conversation (Tang et al.).

Symbols: ``E``, the embeddings of the fields, is ``fields``; ``q_t``, the output of a feature tower, is ``queries[t]``;
``Z_t``, what a task predicts from and passes on, is ``states[t]``. All are ``[B, F, D]``. The paper has a chain of
tasks. In a tree, each task converts what it receives from the task it needs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    BehaviorPatternConversion,
    FeatureArch,
    FeatureTower,
    FieldProjection,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.modules.task_states import task_states
from torchrec_mtl.tasks import TaskForest


class BPCMArch(nn.Module):
    """Feature towers, conversions from task to task, and prediction towers: BPCM eq. (2)-(10).

    Args:
        num_fields: number of fields, ``F``.
        embedding_dim: embedding dimension, ``D``.
        tasks: the ``T`` tasks; each converts the state of the task it needs.
        other arguments: see `BPCM`.

    Raises:
        InputError: see `BPCM`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> BPCMArch(6, 8, TaskChain(["click", "cart", "purchase"]))(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
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
        attends_to: Literal["message", "both"] = "message",
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
            BehaviorPatternConversion(embedding_dim, num_heads, message_dropout, layer_norm, attends_to)
            for _ in self.edges
        )
        self.towers = TaskTowers(len(tasks), num_fields * embedding_dim, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        fields = embeddings.reshape(-1, *self.shape)
        states = task_states(fields, self.feature_towers, self.conversions, self.edges)
        return self.towers([state.flatten(1) for state in states])  # BPCM eq. (10)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class BPCM(MultiTaskModel):
    """`BPCMArch` on top of the features. Train it with `torchrec_mtl.losses.CalibratedLoss`, BPCM eq. (13).

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks, some of which need another.
        embedding_dim: embedding dimension, ``D``; the widest table's by default. Fields of any other dimension are
            projected to it.
        num_heads: number of heads in every attention; must divide ``D``. The paper has one.
        tower_layer_sizes: hidden layer widths of the prediction towers, eq. (10); the paper does not give them.
        aggregation_over: axis that eq. (4) acts on, ``"embedding"`` or ``"fields"``, see `FeatureAggregation`.
        aggregation_size: hidden width of the aggregation unit, eq. (4); the width of its input by default.
        message_dropout: dropout probability of the message between tasks, eq. (8); the paper does not give it.
        layer_norm: whether LayerNorm follows the sum in eq. (9); the paper's text mentions it, the equation does not.
        attends_to: what a conversion attends to, ``"message"`` or ``"both"``, see `BehaviorPatternConversion`.
        dropout: probability of dropping a hidden unit of a prediction tower during training.
        attention: False for the ablation "w/o Att": no self-attention unit, see `FeatureTower`.
        aggregation: False for the ablation "w/o Org": no aggregation unit, see `FeatureTower`.
        gate: False for the ablation "w/o Gate": the outputs of the two units are added, see `FeatureTower`.
        conversion: False for the ablation "w/o BPC": no information passes between tasks, ``Z_t = q_t``.

    Raises:
        InputError: if there are several tasks and none needs another (unless ``conversion`` is False), ``num_heads``
            does not divide ``D``, a feature tower has neither of its units, or a size or probability is out of range.
    """

    @checked
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
        attends_to: Literal["message", "both"] = "message",
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
                attends_to=attends_to,
                dropout=dropout,
                attention=attention,
                aggregation=aggregation,
                gate=gate,
                conversion=conversion,
            )
        initialize_linear_layers(self.projection, self.over_arch)
        give_heads(self.over_arch, tasks)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to ``E [B, F, D]``."""
        return self.projection(self.features(dense_features, sparse_features))
