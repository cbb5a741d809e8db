"""PLE: experts of each task and shared ones, extracted layer by layer (Tang et al., RecSys 2020, section 4).

Symbols: ``g^{k,j}`` task ``k``'s state after layer ``j``, ``g^{s,j}`` the shared one, all in ``states``; ``w^{k,j}``
a gate; ``t^k`` a tower; ``N`` layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.errors import check_at_least
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    ExtractionLayer,
    FeatureArch,
    Gate,
    SoftmaxGate,
    TaskTowers,
    as_features,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class PLEArch(nn.Module):
    """Extraction layers, then towers: PLE eq. (5)-(6); with one layer CGC, eq. (1)-(4).

    Choices: gates are linear without bias, as eq. (2) has them, and read the state of the layer before, as eq. (5)
    says (some programs give them the embeddings); experts have ReLU after every layer, the last one too; all layers
    have the same numbers and sizes of experts.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        num_layers, num_task_experts, num_shared_experts: see `PLE`.
        expert_layer_sizes, tower_layer_sizes, dropout, gate: see `PLE`.

    Raises:
        InputError: see `PLE`.

    Example::

        >>> PLEArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        num_layers: int = 2,
        num_task_experts: int = 2,
        num_shared_experts: int = 2,
        expert_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        check_at_least(1, num_layers=num_layers)
        self.num_tasks = num_tasks
        self.layers = nn.ModuleList(
            ExtractionLayer(
                num_tasks,
                expert_layer_sizes[-1] if layer else in_features,
                num_task_experts,
                num_shared_experts,
                expert_layer_sizes,
                gate,
                shared_gate=layer < num_layers - 1,
            )
            for layer in range(num_layers)
        )
        self.towers = TaskTowers(num_tasks, expert_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        states = [embeddings.flatten(1)] * (self.num_tasks + 1)
        for layer in self.layers:
            states = layer(states)
        return self.towers(states)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class PLE(MultiTaskModel):
    """`PLEArch` on the features.

    Args:
        features: a `FeatureArch`, or the tables alone.
        tasks: ``T`` tasks.
        num_layers: ``N``, extraction layers; the last has no shared gate.
        num_task_experts: ``m_k``, experts of each task in each layer; may be 0.
        num_shared_experts: ``m_s``, shared experts in each layer.
        expert_layer_sizes: an expert's layers, in each extraction layer.
        tower_layer_sizes: hidden layers of each tower.
        dropout: probability of dropping a tower's hidden unit in training.
        gate: makes what weighs the experts: `SoftmaxGate`, or a `DSelectK`.

    Raises:
        InputError: if there is no extraction layer, shared expert or layer of an expert, a size is below 1, or
            ``dropout`` is not from 0 to 1; for the gates, see `DSelectK`.
    """

    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        num_layers: int = 2,
        num_task_experts: int = 2,
        num_shared_experts: int = 2,
        expert_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = PLEArch(
                self.features.out_features,
                len(tasks),
                num_layers=num_layers,
                num_task_experts=num_task_experts,
                num_shared_experts=num_shared_experts,
                expert_layer_sizes=expert_layer_sizes,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                gate=gate,
            )
        initialize_linear_layers(self.over_arch)
