"""Towers: an MLP that ends in one logit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import MLP


class Tower(nn.Module):
    """ReLU layers, then a linear one to a single logit.

    Args:
        in_features: width of the input.
        layer_sizes: the hidden layers; none for a linear tower.
        dropout: probability of dropping a hidden unit in training.

    Example::

        >>> Tower(8, [4])(torch.randn(2, 8)).shape
        torch.Size([2, 1])
    """

    def __init__(self, in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        widths = [in_features, *layer_sizes]
        hidden = [
            layer
            for width, size in zip(widths, layer_sizes, strict=False)
            for layer in (MLP(width, [size]), *([nn.Dropout(dropout)] if dropout else []))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_features]`` to a logit, ``[B, 1]``."""
        return self.layers(x)


class TaskTowers(nn.Module):
    """One `Tower` a task, each on an input of its own.

    Args:
        num_tasks: ``T``.
        in_features: width of each task's input.
        layer_sizes: each tower's hidden layers.
        dropout: see `Tower`.
    """

    def __init__(self, num_tasks: int, in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Tower(in_features, layer_sizes, dropout) for _ in range(num_tasks))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """``T`` tensors ``[B, in_features]`` to logits ``[B, T]``."""
        return torch.cat([tower(x) for tower, x in zip(self.towers, inputs, strict=True)], dim=1)
