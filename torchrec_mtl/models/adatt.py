"""AdaTT: adaptive task-to-task fusion network (Li et al., KDD 2023, arXiv 2304.04959).

Symbols: ``f_t^l``, the state of task ``t`` after fusion level ``l``, is in ``states``, with the shared state last;
``h_t`` is a tower; there are ``L`` levels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    FusionLayer,
    Gate,
    SoftmaxGate,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class AdaTTArch(nn.Module):
    """Fusion levels, then towers: AdaTT eq. (1)-(11); without shared experts it is AdaTT-sp.

    Unlike in PLE, a task's gate reads the experts of every task, and the task's native experts are weighed once more,
    apart from the gate and whatever the input, so that the gate learns what is to be added to them.

    Choices made here: experts are one ReLU layer, as in the paper's experiments, where the paper allows any network.
    The gates are linear without bias, as in eq. (10); the authors' code gives them a bias. All tasks have the same
    number of experts. With one expert a task and another number of shared experts, ``v`` is learnt for every unit, as
    in the authors' code.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: number of tasks, ``T``.
        layer_sizes, num_task_experts, num_shared_experts: see `AdaTT`.
        tower_layer_sizes, dropout, gate, native_experts: see `AdaTT`.

    Raises:
        InputError: see `AdaTT`.

    Example::

        >>> AdaTTArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        layer_sizes: Sequence[int] = (256, 128),
        num_task_experts: int = 2,
        num_shared_experts: int = 0,
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
        native_experts: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, num_tasks=num_tasks)
        check_sizes(1, layer_sizes=layer_sizes)
        self.num_units = num_tasks + (num_shared_experts > 0)
        widths = [in_features, *layer_sizes]
        self.layers = nn.ModuleList(
            FusionLayer(
                num_tasks,
                width,
                num_task_experts,
                num_shared_experts,
                [size],
                gate,
                native_experts=native_experts,
                shared_fusion=layer < len(layer_sizes) - 1,
            )
            for layer, (width, size) in enumerate(zip(widths, layer_sizes, strict=False))
        )
        self.towers = TaskTowers(num_tasks, widths[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        states = [embeddings.flatten(1)] * self.num_units  # AdaTT eq. (2)
        for layer in self.layers:
            states = layer(states)
        return self.towers(states)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class AdaTT(MultiTaskModel):
    """`AdaTTArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        layer_sizes: width of the experts of each fusion level, one level a width; a ReLU follows every expert.
        num_task_experts: number of experts of each task in each level, ``m_t``.
        num_shared_experts: number of shared experts in each level; 0 for AdaTT-sp, more for the general AdaTT.
        tower_layer_sizes: hidden layer widths of each tower.
        dropout: probability of dropping a hidden unit of a tower during training.
        gate: factory of the gates that weight the experts: `SoftmaxGate`, or a `DSelectK`.
        native_experts: False for the paper's ablation without the residual linear combination of a task's native
            experts.

    Raises:
        InputError: if there is no fusion level or a task has no expert, a size is below 1, or ``dropout`` is not
            between 0 and 1. For errors of the gates, see `DSelectK`.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        layer_sizes: Sequence[int] = (256, 128),
        num_task_experts: int = 2,
        num_shared_experts: int = 0,
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
        native_experts: bool = True,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = AdaTTArch(
                self.features.out_features,
                len(tasks),
                layer_sizes=layer_sizes,
                num_task_experts=num_task_experts,
                num_shared_experts=num_shared_experts,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                gate=gate,
                native_experts=native_experts,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
