"""MRAN: multiple relational attention network (Zhao et al., KDD 2019).

Symbols: ``H``, the features after their interactions, is ``features``; ``O``, the tasks after their relations, is what
``relations`` returns; ``C_t``, the features of a task, are ``aligned``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    Attention,
    FeatureArch,
    FieldProjection,
    TaskFeatureAlignment,
    TaskRelations,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.modules.tracing import unbind
from torchrec_mtl.tasks import TaskForest


class MRANArch(nn.Module):
    """Attention between features, between tasks, and of tasks to features, then towers: the paper's section 3.

    In the order of its sections, with multi-head attention, which the paper takes of the four kinds that it gives::

        O = Norm(Y + Attention(Y, Y))      task-task transfer, section 3.2, `TaskRelations`
        H = Norm(X + Attention(X, X))      feature-feature interaction, section 3.3
        C_t = Norm(H + alpha_t * H)        task-feature dependence, section 3.4, `TaskFeatureAlignment`
        y_t = tower_t(C_t)                 prediction, section 3.5

    Written from published notes, not from the paper's text. Where this differs: in the paper, ``Y`` are the tasks'
    outputs on the training samples and ``X`` numeric features of these samples, a row for each task and feature and a
    column for each sample; the ``alpha`` that training finds is kept, as nothing is known of ``Y`` later. With ids in
    tables and batches of any size that cannot be. Here the rows of ``X [F, D]`` are the embeddings of a sample's
    fields, those of ``Y [T, D]`` are learnt, and ``alpha`` is of each sample. The norms are layer norms, as the paper's
    batch norms would make a row depend on others. The heads are side by side, without a last projection. The paper's
    penalties on weights and relations are the optimizer's weight decay.

    Args:
        num_fields: number of fields, ``F``.
        embedding_dim: embedding dimension, ``D``.
        num_tasks: number of tasks, ``T``.
        num_heads, tower_layer_sizes, dropout: see `MRAN`.

    Raises:
        InputError: see `MRAN`.

    Example::

        >>> MRANArch(num_fields=6, embedding_dim=8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_tasks: int,
        *,
        num_heads: int = 1,
        tower_layer_sizes: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, num_fields=num_fields, embedding_dim=embedding_dim, num_tasks=num_tasks)
        self.shape, self.num_tasks = (num_fields, embedding_dim), num_tasks
        self.relations = TaskRelations(num_tasks, embedding_dim, num_heads)
        self.interaction = Attention(embedding_dim, num_heads)
        self.norm = nn.LayerNorm(embedding_dim)
        self.alignment = TaskFeatureAlignment(num_fields, embedding_dim, num_heads)
        self.towers = TaskTowers(num_tasks, num_fields * embedding_dim, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        fields = embeddings.reshape(-1, *self.shape)
        features = self.norm(fields + self.interaction(fields, fields))
        aligned = self.alignment(self.relations(), features)
        return self.towers(unbind(aligned.flatten(2), self.num_tasks))

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class MRAN(MultiTaskModel):
    """`MRANArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        embedding_dim: embedding dimension, ``D``; the widest table's by default. Fields of any other dimension are
            projected to it.
        num_heads: number of heads in all three attentions; must divide ``D``.
        tower_layer_sizes: hidden layer widths of each tower; the paper has two layers and does not give their widths.
        dropout: probability of dropping a hidden unit of a tower during training.

    Raises:
        InputError: if ``num_heads`` does not divide ``D``, a layer width is below 1, or ``dropout`` is not between 0
            and 1.
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
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.projection = FieldProjection(self.features.field_dims, embedding_dim or self.features.widest)
            self.over_arch = MRANArch(
                len(self.features.field_dims),
                self.projection.embedding_dim,
                len(tasks),
                num_heads=num_heads,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.projection, self.over_arch)
        give_heads(self.over_arch, tasks)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to ``X [B, F, D]``."""
        return self.projection(self.features(dense_features, sparse_features))
