"""ESMM: entire space multi-task model (Ma et al., SIGIR 2018)."""

from collections.abc import Sequence

from torch import Tensor, nn

from torchrec_mtl.models.base import FlatModel
from torchrec_mtl.modules import MarginalFromConditional, TaskTowers


class ESMMArch(nn.Module):
    """A tower a step for its conditional probability; their products are the tasks' marginal ones, ESMM eq. (1).

    The paper's pCTR and pCVR are the towers' outputs, pCTCVR the second logit; a longer funnel goes on likewise.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        tower_layer_sizes: hidden layers of each tower; 360-200-80 in the paper, here Single-Task's of the later papers.
        dropout: probability of dropping a tower's hidden unit in training.

    Example::

        >>> import torch
        >>> ESMMArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.towers = TaskTowers(num_tasks, in_features, tower_layer_sizes, dropout)
        self.marginal = MarginalFromConditional()

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to marginal logits ``[B, T]``."""
        return self.marginal(self.towers([embeddings.flatten(1)] * self.num_tasks))


class ESMM(FlatModel):
    """`ESMMArch` on the embeddings, which the towers share.

    Train it with `torchrec_mtl.losses.CrossEntropyLoss`: ESMM eq. (3), every task over the entire space.

    Args: those of `FlatModel`, then `ESMMArch`'s.
    """

    over_arch_class = ESMMArch
