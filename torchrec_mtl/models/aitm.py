"""AITM: adaptive information transfer multi-task framework (Xi et al., KDD 2021, arXiv 2105.08489).

Symbols: ``q_t = f_t(x)`` is a task's own representation, ``own[t]``; ``p_{t-1} = g_{t-1}(z_{t-1})`` is what the
previous task passes on; ``z_t = AIT(p_{t-1}, q_t)``, with ``z_1 = q_1``, is what a task predicts from, ``states[t]``.
All are ``[B, D]``. The paper has a chain of tasks. In a tree, the previous task is the one that a task needs, and a
task passes information on to every task that needs it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    InformationTransfer,
    TaskTowers,
    as_features,
    give_heads,
    hidden_layers,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class AITMArch(nn.Module):
    """One representation per task, transfers from task to task, and ``y_t = sigmoid(MLP(z_t))``.

    Where the paper leaves a choice open, this follows the authors' published code: ``f_t`` ends in a ReLU; ``g_t`` is
    one ReLU layer, with the same dropout as ``f_t``; the last MLP is one linear layer; all steps share one
    `InformationTransfer`.

    The authors' first program, of the paper's time, has no normalisation; their later one, for any number of tasks, has
    batch normalisation before each ReLU of ``f_t`` and ``g_t``, with the momentum and epsilon of `BatchNorm`. Both add
    an L2 term to the loss, 1e-6 times half the sum of squares of all tables and of the transfer's matrices, of no MLP.
    Adam takes its gradient with the loss's, and so moves little by it but rows that no recent batch has: these it draws
    to 0, by up to the learning rate a step. There is no such term here, for it needs a gradient of every row of every
    table in every step. ``training.optimizer.weight_decay`` is another: AdamW's, of the dense parameters only.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: the ``T`` tasks; each receives a transfer from the task it needs.
        tower_layer_sizes, dropout, normalization: see `AITM`.

    Raises:
        InputError: see `AITM`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> AITMArch(6 * 8, TaskChain(["click", "cart", "purchase"]))(torch.randn(2, 6, 8)).shape
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
        normalization: Literal["none", "batch"] = "none",
    ) -> None:
        super().__init__()
        tasks.require_edges("AITM")
        check_sizes(1, tower_layer_sizes=tower_layer_sizes)
        width = tower_layer_sizes[-1]
        self.edges = tasks.edges
        options = (dropout, normalization)
        self.representations = nn.ModuleList(hidden_layers(in_features, tower_layer_sizes, *options) for _ in tasks)
        self.information = nn.ModuleList(hidden_layers(width, [width], *options) for _ in self.edges)
        self.transfer = InformationTransfer(width) if self.edges else nn.Identity()
        self.towers = TaskTowers(len(tasks), width, layer_sizes=())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        own = [representation(embeddings.flatten(1)) for representation in self.representations]
        states = list(own)
        for inform, (parent, task) in zip(self.information, self.edges, strict=True):
            states[task] = self.transfer(inform(states[parent]), own[task])
        return self.towers(states)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class AITM(MultiTaskModel):
    """`AITMArch` on top of the features. Train it with `torchrec_mtl.losses.CalibratedLoss`.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks, some of which need another.
        tower_layer_sizes: layer widths of each task's own MLP, ``f_t``; the last, ``D``, is the width of the
            representations.
        dropout: probability of dropping a unit of each task's own MLP, ``f_t``, and of the transfer MLP, ``g_t``,
            during training.
        normalization: ``"none"``, as in the authors' first program; or ``"batch"``, as in their later one, for a
            `torchrec_mtl.modules.BatchNorm` before each ReLU of ``f_t`` and ``g_t``.

    Raises:
        InputError: if there are several tasks and none needs another, there is no layer, a layer width is below 1,
            ``dropout`` is not between 0 and 1, or ``normalization`` is neither.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
        normalization: Literal["none", "batch"] = "none",
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = AITMArch(
                self.features.out_features,
                tasks,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
                normalization=normalization,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
