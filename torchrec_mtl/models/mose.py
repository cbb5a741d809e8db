"""MoSE: a mixture of sequential experts (Qin et al., KDD 2020), with the fields as the sequence.

Symbols: ``x_(t)``, step ``t`` of the sequence, is the embedding of field ``t``; ``f_LSTM`` is ``bottom``,
``f_LSTM_i``, an expert, is in ``experts``, and ``g^k``, a task's gate, in ``gate``; a task's LSTM tower is in
``task_lstms``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    FieldProjection,
    Gate,
    LSTMs,
    SoftmaxGate,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.modules.tracing import unbind
from torchrec_mtl.tasks import TaskForest


class MoSEArch(nn.Module):
    """A shared LSTM, LSTM experts with one gate per task, and one LSTM per task: the paper's section 4.

    Its equations, for each step ``t``::

        f^k(x_(t)) = sum_i g^k(x)_i f_LSTM_i(f_LSTM(x_(t))),    g^k(x) = softmax(W_gk x)

    An LSTM of task ``k`` reads ``f^k``, and what it has after the last step gives the logit.

    What the sequence is: in the paper, the last days of a user's activity, with a vector of counts for each. A model
    here gets one pooled embedding per field, and the papers that cite MoSE use it beside models on fields. So the ``F``
    fields are the steps, in the order of the tables, with the dense field last. With a field for each of the last days,
    in their order, this is the paper's model. With any other fields, it is MMoE whose parts read the fields one after
    another, and their order matters: what is read last is best remembered.

    Written from published analyses, not from the paper's text. Choices made here: every LSTM has one layer, and all
    have one width. The gates read the whole sequence once, as in the equation, and are linear without bias. The paper
    predicts the value of each next step; labels here are of the sample, so only the last step counts. The sizes are
    small by default, as every LSTM takes a product for each field, one after another.

    Args:
        num_fields: number of fields, ``F``, the steps of the sequence.
        embedding_dim: embedding dimension, ``D``.
        num_tasks: number of tasks, ``T``.
        num_experts, hidden_size, tower_layer_sizes, dropout, gate: see `MoSE`.

    Raises:
        InputError: see `MoSE`.

    Example::

        >>> MoSEArch(num_fields=6, embedding_dim=8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        num_tasks: int,
        *,
        num_experts: int = 4,
        hidden_size: int = 32,
        tower_layer_sizes: Sequence[int] = (),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        check_at_least(1, num_fields=num_fields, embedding_dim=embedding_dim, num_tasks=num_tasks)
        check_at_least(1, num_experts=num_experts)
        self.shape, self.num_tasks = (num_fields, embedding_dim), num_tasks
        self.bottom = LSTMs(1, embedding_dim, hidden_size, num_fields)
        self.experts = LSTMs(num_experts, hidden_size, hidden_size, num_fields)
        self.gate = gate(num_fields * embedding_dim, num_experts, num_tasks)
        self.task_lstms = LSTMs(num_tasks, hidden_size, hidden_size, num_fields)
        self.towers = TaskTowers(num_tasks, hidden_size, tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        x = embeddings.reshape(-1, 1, *self.shape)
        experts = self.experts(self.bottom(x))  # [B, E, F, H]
        mixtures = torch.einsum("bke,befh->bkfh", self.gate(embeddings.flatten(1)), experts)
        return self.towers(unbind(self.task_lstms(mixtures)[:, :, -1], self.num_tasks))

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class MoSE(MultiTaskModel):
    """`MoSEArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        embedding_dim: embedding dimension, ``D``; the widest table's by default. Fields of any other dimension are
            projected to it.
        num_experts: number of experts, ``n``; all tasks share them.
        hidden_size: width of the state of every LSTM; the paper tries 16 to 256.
        tower_layer_sizes: hidden layer widths between a task's last state and its logit; the paper has none.
        dropout: probability of dropping a hidden unit of a tower during training.
        gate: factory of the gates that weight the experts: `SoftmaxGate`, or a `DSelectK`.

    Raises:
        InputError: if a number or layer width is below 1, or ``dropout`` is not between 0 and 1. For errors of the
            gate, see `DSelectK`.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        embedding_dim: int | None = None,
        num_experts: int = 4,
        hidden_size: int = 32,
        tower_layer_sizes: Sequence[int] = (),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.projection = FieldProjection(self.features.field_dims, embedding_dim or self.features.widest)
            self.over_arch = MoSEArch(
                len(self.features.field_dims),
                self.projection.embedding_dim,
                len(tasks),
                num_experts=num_experts,
                hidden_size=hidden_size,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                gate=gate,
            )
        initialize_linear_layers(self.projection, self.over_arch)
        give_heads(self.over_arch, tasks)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to the sequence ``[B, F, D]``."""
        return self.projection(self.features(dense_features, sparse_features))
