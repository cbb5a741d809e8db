"""AITM: adaptive information transfer multi-task framework (Xi et al., KDD 2021, arXiv 2105.08489).

Symbols: ``q_t = f_t(x)`` a task's own representation, ``own[t]``; ``p_{t-1} = g_{t-1}(z_{t-1})`` what the task before
passes on; ``z_t = AIT(p_{t-1}, q_t)`` what a task predicts from, ``states[t]``, with ``z_1 = q_1``; all ``[B, D]``.
"The task before" is the one that a task needs: the paper has a chain, in a tree a task passes on to each one after it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.errors import check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    InformationTransfer,
    TaskTowers,
    as_features,
    hidden_layers,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class AITMArch(nn.Module):
    """A representation a task, transfers from task to task, ``y_t = sigmoid(MLP(z_t))``.

    Where the paper leaves a choice the authors' published code is followed: ``f_t`` ends in a ReLU; ``g_t`` is one
    ReLU layer, with dropout as in ``f_t``; the last MLP is one linear layer; all steps share one `InformationTransfer`.
    That code also normalises every layer by its batch, which is left out here as in the other models.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: ``T`` tasks; the transfers follow what each needs.
        tower_layer_sizes, dropout: see `AITM`.

    Raises:
        InputError: see `AITM`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> AITMArch(6 * 8, TaskChain(["click", "cart", "purchase"]))(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        tasks.require_edges("AITM")
        check_sizes(1, tower_layer_sizes=tower_layer_sizes)
        width = tower_layer_sizes[-1]
        self.edges = tasks.edges
        self.representations = nn.ModuleList(hidden_layers(in_features, tower_layer_sizes, dropout) for _ in tasks)
        self.information = nn.ModuleList(hidden_layers(width, [width], dropout) for _ in self.edges)
        self.transfer = InformationTransfer(width) if self.edges else nn.Identity()
        self.towers = TaskTowers(len(tasks), width, layer_sizes=())

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        own = [representation(embeddings.flatten(1)) for representation in self.representations]
        states = list(own)
        for inform, (parent, task) in zip(self.information, self.edges, strict=True):
            states[task] = self.transfer(inform(states[parent]), own[task])
        return self.towers(states)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`."""
        self.towers.start_from_base_rates(base_rates)


class AITM(MultiTaskModel):
    """`AITMArch` on the features; train it with `torchrec_mtl.losses.CalibratedLoss`.

    Args:
        features: a `FeatureArch`, or the tables alone.
        tasks: ``T`` tasks, of which some need another.
        tower_layer_sizes: the layers of ``f_t``; the last is ``D``.
        dropout: probability of dropping a unit of ``f_t`` and ``g_t`` in training.

    Raises:
        InputError: if no task needs another, there is no layer, a layer's size is below 1, or ``dropout`` is not
            from 0 to 1.
    """

    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = AITMArch(
                self.features.out_features,
                tasks,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
