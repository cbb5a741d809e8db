"""ESMM: entire space multi-task model (Ma et al., SIGIR 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    MarginalFromConditional,
    TaskTowers,
    as_features,
    conditional_rates,
    give_heads,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class ESMMArch(nn.Module):
    """One tower per task for its probability given the previous task, multiplied along the funnel: ESMM eq. (1).

    The paper's pCTR and pCVR are the outputs of the towers, and pCTCVR is the second logit. In a longer funnel or a
    tree, the marginal probability of a task is its tower's output times the marginal probability of the task it needs.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: the ``T`` tasks; the products follow their dependencies.
        tower_layer_sizes, dropout: see `ESMM`.

    Raises:
        InputError: see `ESMM`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> ESMMArch(6 * 8, TaskChain(["click", "cart", "purchase"]))(torch.randn(2, 6, 8)).shape
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
    ) -> None:
        super().__init__()
        tasks.require_edges("ESMM")
        self.tasks = tasks
        self.towers = TaskTowers(len(tasks), in_features, tower_layer_sizes, dropout)
        self.marginal = MarginalFromConditional(tasks)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to marginal logits ``[B, T]``."""
        return self.marginal(self.towers([embeddings.flatten(1)] * len(self.tasks)))

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`; the towers predict conditional probabilities."""
        self.towers.start_from_base_rates(conditional_rates(base_rates, self.tasks.funnel.parents))


class ESMM(MultiTaskModel):
    """`ESMMArch` on top of the features, which the towers share.

    Train it with `torchrec_mtl.losses.CrossEntropyLoss`, ESMM eq. (3): every task over the entire space.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks, some of which need another.
        tower_layer_sizes: hidden layer widths of each tower; 360-200-80 in the paper, here the sizes of Single-Task in
            later papers.
        dropout: probability of dropping a hidden unit of a tower during training.

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
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = ESMMArch(
                self.features.out_features,
                tasks,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)
