"""PLE: task experts and shared experts, extracted layer by layer (Tang et al., RecSys 2020, section 4).

Symbols: ``g^{k,j}``, the state of task ``k`` after layer ``j``, and ``g^{s,j}``, the shared state, are in ``states``;
``w^{k,j}`` is a gate; ``t^k`` is a tower; there are ``N`` layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    ExtractionLayer,
    FeatureArch,
    Gate,
    SoftmaxGate,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class PLEArch(nn.Module):
    """Extraction layers, then towers: PLE eq. (5)-(6); with one layer it is CGC, eq. (1)-(4).

    Choices made here: the gates are linear without bias, as in eq. (2), and read the state of the previous layer, as in
    eq. (5) (some implementations give them the embeddings). A ReLU follows every layer of an expert, including the
    last. All extraction layers have the same number and sizes of experts.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: number of tasks, ``T``.
        num_layers, num_task_experts, num_shared_experts: see `PLE`.
        expert_layer_sizes, tower_layer_sizes, dropout, gate: see `PLE`.

    Raises:
        InputError: see `PLE`.

    Example::

        >>> PLEArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
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
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        states = [embeddings.flatten(1)] * (self.num_tasks + 1)
        for layer in self.layers:
            states = layer(states)
        return self.towers(states)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class PLE(MultiTaskModel):
    """`PLEArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        num_layers: number of extraction layers, ``N``; the last has no shared gate.
        num_task_experts: number of experts of each task in each extraction layer, ``m_k``; may be 0.
        num_shared_experts: number of shared experts in each extraction layer, ``m_s``.
        expert_layer_sizes: layer widths of each expert, the same in every extraction layer.
        tower_layer_sizes: hidden layer widths of each tower.
        dropout: probability of dropping a hidden unit of a tower during training.
        gate: factory of the gates that weight the experts: `SoftmaxGate`, or a `DSelectK`.

    Raises:
        InputError: if there is no extraction layer or no shared expert, an expert has no layer, a size is below 1, or
            ``dropout`` is not between 0 and 1. For errors of the gates, see `DSelectK`.
    """

    @checked
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
        give_heads(self.over_arch, tasks)
