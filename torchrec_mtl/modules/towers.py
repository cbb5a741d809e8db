"""Towers: an MLP that ends in one logit."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import MLP

from torchrec_mtl.errors import InputError, check_share, check_sizes


def hidden_layers(in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """ReLU layers, and after each, where asked for, dropout.

    Args:
        in_features: width of the input.
        layer_sizes: the layers; none for the identity.
        dropout: probability of dropping a unit in training.

    Raises:
        InputError: if ``dropout`` is not from 0 to 1.

    Example::

        >>> hidden_layers(8, [6, 4], dropout=0.1)(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
    check_share(dropout=dropout)
    layers: list[nn.Module] = []
    for width, size in zip([in_features, *layer_sizes], layer_sizes, strict=False):
        layers += [MLP(width, [size]), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers)


class Tower(nn.Module):
    """ReLU layers, then a linear one to a single logit.

    Args:
        in_features: width of the input.
        layer_sizes: the hidden layers; none for a linear tower.
        dropout: probability of dropping a hidden unit in training.

    Raises:
        InputError: if a layer's size is below 1, or ``dropout`` is not from 0 to 1.

    Example::

        >>> Tower(8, [4])(torch.randn(2, 8)).shape
        torch.Size([2, 1])
    """

    def __init__(self, in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        check_sizes(tower_layer_sizes=layer_sizes)
        self.hidden = hidden_layers(in_features, layer_sizes, dropout)
        self.output = nn.Linear([in_features, *layer_sizes][-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_features]`` to a logit, ``[B, 1]``."""
        return self.output(self.hidden(x))

    @torch.no_grad()
    def start_from_base_rate(self, base_rate: float) -> None:
        """Sets the last bias to the task's share of positives, so that training need not first find how rare it is.

        Raises:
            InputError: if it is not between 0 and 1.

        Example::

            >>> tower = Tower(3, [])
            >>> tower.start_from_base_rate(0.01)
            >>> tower(torch.zeros(1, 3)).sigmoid()
            tensor([[0.0100]], grad_fn=<SigmoidBackward0>)
        """
        if not 0 < base_rate < 1:
            raise InputError(f"`base_rates` (={base_rate:g} for a task) must be above 0 and below 1")
        self.output.bias.fill_(math.log(base_rate) - math.log1p(-base_rate))


class TaskTowers(nn.Module):
    """One `Tower` a task, each on an input of its own.

    Args:
        num_tasks: ``T``.
        in_features: width of each task's input.
        layer_sizes: each tower's hidden layers.
        dropout: see `Tower`.

    Raises:
        InputError: see `Tower`.
    """

    def __init__(self, num_tasks: int, in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Tower(in_features, layer_sizes, dropout) for _ in range(num_tasks))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """``T`` tensors ``[B, in_features]`` to logits ``[B, T]``."""
        return torch.cat([tower(x) for tower, x in zip(self.towers, inputs, strict=True)], dim=1)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """`Tower.start_from_base_rate` for each.

        Args:
            base_rates: ``[T]``, each tower's share of positives.

        Raises:
            InputError: if they are not one a tower, or one is not between 0 and 1.
        """
        if len(self.towers) != len(base_rates):
            told = f"`base_rates` (={base_rates.tolist()}) must be one a tower, of which there are {len(self.towers)}"
            raise InputError(told)
        for tower, rate in zip(self.towers, base_rates.tolist(), strict=True):
            assert isinstance(tower, Tower)
            tower.start_from_base_rate(rate)
