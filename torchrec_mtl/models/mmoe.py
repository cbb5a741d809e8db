"""MMoE: experts shared by all tasks, with one gate per task (Ma et al., KDD 2018, section 4.2).

Symbols: ``f_i``, an expert, is in ``experts``; ``g^k``, a task's gate, is in ``gate``; ``h^k`` is a task's tower.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    Gate,
    MixtureOfExperts,
    SoftmaxGate,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.modules.tracing import unbind
from torchrec_mtl.tasks import TaskForest


class MMoEArch(nn.Module):
    """``y_k = h^k(f^k(x))``, ``f^k(x) = sum_i g^k(x)_i f_i(x)``, ``g^k(x) = softmax(W_gk x)``.

    Choices made here: the experts are MLPs with ReLU, as in the paper, and the ReLU also follows the last layer, which
    could be linear. The gates are linear without bias, as in the equation, and read the embeddings ``x``, as the
    experts do.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: number of tasks, ``T``.
        num_experts, expert_layer_sizes, tower_layer_sizes, dropout, gate: see `MMoE`.

    Raises:
        InputError: see `MMoE`.

    Example::

        >>> MMoEArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        num_experts: int = 8,
        expert_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        self.mixture = MixtureOfExperts(in_features, num_experts, expert_layer_sizes, gate, num_gates=num_tasks)
        self.num_tasks = num_tasks
        self.towers = TaskTowers(num_tasks, expert_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        return self.towers(unbind(self.mixture(embeddings.flatten(1)), self.num_tasks))

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class MMoE(MultiTaskModel):
    """`MMoEArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        num_experts: number of experts, ``n``; all tasks share them. The paper has 8.
        expert_layer_sizes: layer widths of each expert; a ReLU follows every layer.
        tower_layer_sizes: hidden layer widths of each tower.
        dropout: probability of dropping a hidden unit of a tower during training.
        gate: factory of the gates that weight the experts: `SoftmaxGate`, or a `DSelectK`.

    Raises:
        InputError: if there is no expert, an expert has no layer, a layer width is below 1, or ``dropout`` is not
            between 0 and 1. For errors of the gate, see `DSelectK`.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        num_experts: int = 8,
        expert_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = MMoEArch(
                self.features.out_features,
                len(tasks),
                num_experts=num_experts,
                expert_layer_sizes=expert_layer_sizes,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                gate=gate,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
