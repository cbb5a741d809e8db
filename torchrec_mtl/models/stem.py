"""STEM: shared and task-specific embeddings (Su et al., AAAI 2024, arXiv 2308.13537).

Symbols: ``x_t``, the embeddings of task ``t``, and ``x_s``, the shared ones, are in ``inputs``; ``f_{t,i}`` is an
expert of task ``t``; ``g_t`` is a gate. ``stop(.)`` passes no gradient on.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    Experts,
    FeatureArch,
    Gate,
    SoftmaxGate,
    TaskTowers,
    as_features,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.modules.tracing import unbind
from torchrec_mtl.tasks import TaskForest


class STEMArch(nn.Module):
    """Experts on their own embeddings, and gates that pass all forward, but no gradient to another task: STEM-Net.

    Task ``t`` predicts from the mixture of all experts, those of task 1 to task ``T`` and then the shared ones::

        z_t = sum_i w_i f_{t,i}(x_t) + sum_{j != t, i} w_i stop(f_{j,i}(x_j)) + sum_i w_i f_{s,i}(x_s),
        w = g_t(x_t + x_s) = softmax(W_t (x_t + x_s))

    So the embeddings and experts of a task are trained by that task alone (the paper's "All Forward Task-specific
    Backward"), and the shared ones by all.

    Where the paper leaves a choice open, this follows the authors' published code: the gate of a task reads the sum
    ``x_t + x_s``, and a ReLU follows every layer of an expert. Gates are MLPs there; here, as in `PLEArch`, they are
    linear without bias. That code can also stack such layers as PLE does, which its settings never do: from the second
    on, the shared state would pass gradients from each task to all.

    Args:
        in_features: width of the flattened embeddings of one task, ``F * D``.
        num_tasks: number of tasks, ``T``.
        num_task_experts, num_shared_experts: see `STEM`.
        expert_layer_sizes, tower_layer_sizes, dropout, gate: see `STEM`.

    Raises:
        InputError: see `STEM`.

    Example::

        >>> STEMArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, (3 + 1) * 6 * 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        num_task_experts: int = 1,
        num_shared_experts: int = 8,
        expert_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        check_at_least(1, num_task_experts=num_task_experts, num_shared_experts=num_shared_experts)
        check_at_least(1, in_features=in_features, num_tasks=num_tasks)
        self.in_features, self.num_tasks = in_features, num_tasks
        numbers = [*[num_task_experts] * num_tasks, num_shared_experts]
        self.experts: Any = nn.ModuleList(Experts(number, in_features, expert_layer_sizes) for number in numbers)
        self.gates = nn.ModuleList(gate(in_features, sum(numbers)) for _ in range(num_tasks))
        self.towers = TaskTowers(num_tasks, expert_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, (T + 1) * in_features]``, of each task and then the shared ones, to logits ``[B, T]``."""
        inputs = unbind(embeddings.reshape(-1, self.num_tasks + 1, self.in_features), self.num_tasks + 1)
        outputs = [torch.stack(experts.each(x), dim=1) for experts, x in zip(self.experts, inputs, strict=True)]
        stopped = [of_task.detach() for of_task in outputs[:-1]]
        mixed = []
        for task, gate in enumerate(self.gates):
            seen = torch.cat([*stopped[:task], outputs[task], *stopped[task + 1 :], outputs[-1]], dim=1)
            mixed.append(torch.bmm(gate(inputs[task] + inputs[-1]), seen).squeeze(1))
        return self.towers(mixed)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class STEM(MultiTaskModel):
    """`STEMArch` on top of ``T + 1`` copies of the features: each task has tables for itself, and one set is shared.

    The copies, in the order of the tasks and then the shared one, are collections of their own, each sharded as the
    given one would be, with initial values of their own. Their tables have the same names, so what is set for a table
    holds in every copy; TorchRec's ``assign_weights_to_tbe``, which goes by names, is called for one copy at a time.
    One collection of tables ``T + 1`` times as wide, as in the authors' code, would save lookups, but its rows would
    share one state of a row-wise optimizer: the gradients of one task would shorten the steps of all.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks.
        num_task_experts: number of experts of each task.
        num_shared_experts: number of experts on the shared embeddings.
        expert_layer_sizes: layer widths of each expert; a ReLU follows every layer.
        tower_layer_sizes: hidden layer widths of each tower.
        dropout: probability of dropping a hidden unit of a tower during training.
        gate: factory of the gates that weight the experts: `SoftmaxGate`, or a `DSelectK`.

    Raises:
        InputError: if a number of experts is below 1, an expert has no layer, a layer width is below 1, or ``dropout``
            is not between 0 and 1. For errors of the gate, see `DSelectK`.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        num_task_experts: int = 1,
        num_shared_experts: int = 8,
        expert_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        shared = as_features(features)
        self.features = nn.ModuleList([*(_drawn_anew(shared) for _ in tasks), shared])
        with torch.device(shared.dense_device):
            self.over_arch = STEMArch(
                shared.out_features,
                len(tasks),
                num_task_experts=num_task_experts,
                num_shared_experts=num_shared_experts,
                expert_layer_sizes=expert_layer_sizes,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                gate=gate,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to the fields of every copy, ``[B, (T + 1) * sum(D_f)]``."""
        archs: Any = self.features
        return torch.cat([arch(dense_features, sparse_features) for arch in archs], dim=1)


def _drawn_anew(features: FeatureArch) -> FeatureArch:
    """A copy with other initial values; tables on ``meta`` get theirs when they get memory."""
    drawn = copy.deepcopy(features)
    for module in drawn.modules():
        if isinstance(module, EmbeddingBagCollection):
            module.reset_parameters()
    initialize_linear_layers(drawn)
    return drawn
