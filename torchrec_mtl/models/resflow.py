"""ResFlow: residual multi-task learner (Fu et al., KDD 2024, arXiv 2411.09705).

Symbols: ``h_t^l``, what task ``t`` has after layer ``l``, is in ``states``. The paper has a chain of tasks. In a tree,
a task receives from the task it needs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    TaskTowers,
    as_features,
    give_heads,
    hidden_layers,
    initialize_linear_layers,
)
from torchrec_mtl.modules.tracing import unbind
from torchrec_mtl.tasks import TaskForest


class ResFlowArch(nn.Module):
    """One network per task, with residual links from each layer to the same layer of the next task.

    For task ``t``, which needs task ``s``, on the embeddings ``h_t^0 = x``::

        h_t^l = relu(W_t^l h_t^{l-1} + b_t^l) + h_s^l          every hidden layer
        logit_t = w_t h_t^L + b_t + logit_s                    and the logit

    So a task learns what is to be added to what the task before knows. All logits are of marginal probabilities, and
    every task is trained over the entire space, as in the authors' code. A task may become likelier than the one it
    needs: the logit that is added may be positive.

    Choices made here: what a task passes on includes what it received, where the authors' code, on two tasks, leaves
    this open for layers and does so for logits. That code has PReLU and batch normalisation. Here, as in the other
    models, there is ReLU and no normalisation.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: the ``T`` tasks; each receives from the task it needs.
        tower_layer_sizes, dropout, layer_links, logit_links: see `ResFlow`.

    Raises:
        InputError: see `ResFlow`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> ResFlowArch(6 * 8, TaskChain(["click", "cart", "purchase"]))(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
        layer_links: bool = True,
        logit_links: bool = True,
    ) -> None:
        super().__init__()
        tasks.require_edges("ResFlow")
        check_at_least(1, in_features=in_features)
        check_sizes(tower_layer_sizes=tower_layer_sizes)
        self.num_tasks, self.num_events = len(tasks), len(tasks.funnel)
        self.layer_edges = tasks.edges if layer_links else ()
        self.logit_edges = tasks.funnel.edges if logit_links else ()
        widths = [in_features, *tower_layer_sizes]
        self.layers: Any = nn.ModuleList(
            nn.ModuleList(hidden_layers(width, [size], dropout) for _ in tasks)
            for width, size in zip(widths, tower_layer_sizes, strict=False)
        )
        self.towers = TaskTowers(len(tasks), widths[-1], layer_sizes=())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to marginal logits ``[B, T]``."""
        states = [embeddings.flatten(1)] * self.num_tasks
        for of_tasks in self.layers:
            states = [layer(state) for layer, state in zip(of_tasks, states, strict=True)]
            for parent, task in self.layer_edges:
                states[task] = states[task] + states[parent]
        outputs = self.towers(states)
        logits = unbind(outputs[:, : self.num_events], self.num_events)
        for parent, task in self.logit_edges:
            logits[task] = logits[task] + logits[parent]
        of_events = torch.stack(logits, dim=1)
        if self.num_events == self.num_tasks:
            return of_events
        return torch.cat([of_events, outputs[:, self.num_events :]], dim=1)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`; a linked tower starts from the difference to the logit of the task it needs."""
        self.towers.start_from_base_rates(base_rates)  # which checks the rates
        logits = base_rates.double().logit()
        added = logits.clone()
        for parent, task in self.logit_edges:
            added[task] -= logits[parent]
        self.towers.start_from_base_rates(added.sigmoid())


class ResFlow(MultiTaskModel):
    """`ResFlowArch` on top of the features.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks, some of which need another.
        tower_layer_sizes: hidden layer widths of each task's network.
        dropout: probability of dropping a hidden unit during training, before it is added to others.
        layer_links: whether the hidden layers are linked.
        logit_links: whether the logits are linked; in the authors' code for ratings, these links are the only ones.

    Raises:
        InputError: if there are several tasks and none needs another, a layer width is below 1, or ``dropout`` is not
            between 0 and 1.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
        layer_links: bool = True,
        logit_links: bool = True,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = ResFlowArch(
                self.features.out_features,
                tasks,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                layer_links=layer_links,
                logit_links=logit_links,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
