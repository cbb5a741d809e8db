"""DBMTL: deep Bayesian multi-target learning (Wang et al., 2019, arXiv 1902.09154).

Symbols: ``u_t``, a task's own representation, is ``own``; ``s_t``, what a task predicts from and passes on, is
``states[t]``. The Bayesian network is the forest: an arrow leads from each task to the tasks that need it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    Gate,
    MixtureOfExperts,
    SoftmaxGate,
    TaskTowers,
    as_features,
    give_heads,
    hidden_layers,
    initialize_linear_layers,
)
from torchrec_mtl.modules.tracing import unbind
from torchrec_mtl.tasks import TaskForest


class DBMTLArch(nn.Module):
    """``P(y_1, ..., y_T | x) = prod_t P(y_t | y_{t'}, x)``, where task ``t`` needs task ``t'``, by hidden layers.

    The layers are those of Alibaba's TorchEasyRec: shared ones, ``h = f(x)``; those of each task, ``u_t = f_t(h)``; and
    the Bayesian ones, which parameterize the arrows, ``s_t = r_t([u_t; s_{t'}])``, and ``s_t = r_t(u_t)`` where a task
    needs none. The logit is linear in ``s_t``. The shared layers may end in the experts of MMoE, with a gate for each
    task: ``h_t = sum_i g^t(h)_i e_i(h)`` in place of ``h``.

    The paper selects the network among several. Here it is given, and has no arrow from tasks farther up: where the
    label of ``t'`` is 1, so are theirs, and where it is 0, so is that of ``t``. What passes along an arrow is a hidden
    state, so that predictions need no labels; the logits are marginal ones.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: the ``T`` tasks; each reads the state of the task it needs.
        other arguments: see `DBMTL`.

    Raises:
        InputError: see `DBMTL`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> DBMTLArch(6 * 8, TaskChain(["click", "cart", "purchase"]))(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        tasks: TaskForest,
        *,
        bottom_layer_sizes: Sequence[int] = (256, 128),
        num_experts: int = 0,
        expert_layer_sizes: Sequence[int] = (128,),
        tower_layer_sizes: Sequence[int] = (64,),
        relation_layer_sizes: Sequence[int] = (32,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        tasks.require_edges("DBMTL")
        check_at_least(0, num_experts=num_experts)
        check_sizes(bottom_layer_sizes=bottom_layer_sizes, tower_layer_sizes=tower_layer_sizes)
        check_sizes(1, expert_layer_sizes=expert_layer_sizes, relation_layer_sizes=relation_layer_sizes)
        self.parents = tasks.parents
        self.bottom = hidden_layers(in_features, bottom_layer_sizes)
        width = [in_features, *bottom_layer_sizes][-1]
        self.mixture: nn.Module | None = None
        if num_experts:
            self.mixture = MixtureOfExperts(width, num_experts, expert_layer_sizes, gate, num_gates=len(tasks))
            width = expert_layer_sizes[-1]
        self.representations = nn.ModuleList(hidden_layers(width, tower_layer_sizes, dropout) for _ in tasks)
        width, passed = [width, *tower_layer_sizes][-1], relation_layer_sizes[-1]
        self.relations = nn.ModuleList(
            hidden_layers(width + (0 if parent is None else passed), relation_layer_sizes, dropout)
            for parent in self.parents
        )
        self.towers = TaskTowers(len(tasks), passed, layer_sizes=())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        shared = self.bottom(embeddings.flatten(1))
        inputs = [shared] * len(self.parents)
        if self.mixture is not None:
            inputs = unbind(self.mixture(shared), len(self.parents))
        states: list[Tensor] = []
        for represent, relate, x, parent in zip(
            self.representations, self.relations, inputs, self.parents, strict=True
        ):
            own = represent(x)
            states.append(relate(own if parent is None else torch.cat([own, states[parent]], dim=1)))
        return self.towers(states)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class DBMTL(MultiTaskModel):
    """`DBMTLArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks, some of which need another.
        bottom_layer_sizes: layer widths of the shared layers; empty for none.
        num_experts: number of experts that follow the shared layers, with a gate for each task; 0 for none.
        expert_layer_sizes: layer widths of each expert; without experts they have no effect.
        tower_layer_sizes: widths of the layers of each task; empty for none.
        relation_layer_sizes: widths of the layers of each task on its representation and the state of the task it
            needs.
        dropout: probability of dropping a unit of a task's layers during training.
        gate: factory of the gates that weight the experts: `SoftmaxGate`, or a `DSelectK`.

    Raises:
        InputError: if there are several tasks and none needs another, an expert or the relations have no layer, a size
            is out of range, or ``dropout`` is not between 0 and 1. For errors of the gate, see `DSelectK`.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        bottom_layer_sizes: Sequence[int] = (256, 128),
        num_experts: int = 0,
        expert_layer_sizes: Sequence[int] = (128,),
        tower_layer_sizes: Sequence[int] = (64,),
        relation_layer_sizes: Sequence[int] = (32,),
        dropout: float = 0.0,
        gate: Gate = SoftmaxGate,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = DBMTLArch(
                self.features.out_features,
                tasks,
                bottom_layer_sizes=bottom_layer_sizes,
                num_experts=num_experts,
                expert_layer_sizes=expert_layer_sizes,
                tower_layer_sizes=tower_layer_sizes,
                relation_layer_sizes=relation_layer_sizes,
                dropout=dropout,
                gate=gate,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
