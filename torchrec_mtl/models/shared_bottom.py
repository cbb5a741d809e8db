"""Shared-Bottom: one representation for all tasks, a tower for each (Caruana 1997; TAFE section 4.1.2)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchrec.modules.mlp import MLP

from torchrec_mtl.models.base import FlatModel
from torchrec_mtl.modules import TaskTowers


class SharedBottomArch(nn.Module):
    """A bottom MLP on all embeddings, then a tower a task.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        num_tasks: ``T``.
        bottom_layer_sizes: the bottom's layers, ReLU after each.
        tower_layer_sizes: hidden layers of each tower.
        dropout: probability of dropping a tower's hidden unit in training.

    Example::

        >>> import torch
        >>> SharedBottomArch(in_features=6 * 8, num_tasks=3)(torch.randn(2, 6, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        bottom_layer_sizes: Sequence[int] = (256, 128),
        tower_layer_sizes: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.bottom = MLP(in_features, list(bottom_layer_sizes))
        self.towers = TaskTowers(num_tasks, bottom_layer_sizes[-1], tower_layer_sizes, dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``[B, F, D]`` or ``[B, F * D]`` to logits ``[B, T]``."""
        return self.towers([self.bottom(embeddings.flatten(1))] * self.num_tasks)


class SharedBottom(FlatModel):
    """`SharedBottomArch` on the embeddings.

    The papers give the baselines' sizes only for Single-Task, 256-128-64; here the first two are the bottom and
    the last the towers.

    Args: those of `FlatModel`, then `SharedBottomArch`'s.
    """

    over_arch_class = SharedBottomArch
