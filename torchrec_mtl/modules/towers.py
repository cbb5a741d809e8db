"""Towers: an MLP that ends in one logit, or in what `torchrec_mtl.modules.give_heads` puts in its place."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least, check_choice, check_share, check_sizes
from torchrec_mtl.modules.batch_norm import BatchNorm
from torchrec_mtl.modules.mlp import MLP


@checked
def hidden_layers(
    in_features: int,
    layer_sizes: Sequence[int],
    dropout: float = 0.0,
    normalization: Literal["none", "batch"] = "none",
) -> nn.Sequential:
    """Returns ReLU layers, each followed by dropout if its probability is above 0.

    Args:
        in_features: width of the input.
        layer_sizes: layer widths; empty for the identity.
        dropout: probability of dropping a unit during training.
        normalization: ``"batch"`` for a `BatchNorm` before each ReLU, which then has the bias; or ``"none"``.

    Raises:
        InputError: if a width is below 1, ``dropout`` is not between 0 and 1, or ``normalization`` is neither.

    Example::

        >>> hidden_layers(8, [6, 4], dropout=0.1)(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
    check_at_least(1, in_features=in_features)
    check_sizes(layer_sizes=layer_sizes)
    check_share(dropout=dropout)
    check_choice("normalization", normalization, ("none", "batch"))
    layers: list[nn.Module] = []
    for width, size in zip([in_features, *layer_sizes], layer_sizes, strict=False):
        if normalization == "batch":
            layers += [nn.Linear(width, size, bias=False), BatchNorm(size), nn.ReLU()]
        else:
            layers.append(MLP(width, [size]))
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


class Tower(nn.Module):
    """ReLU layers, then a linear layer to a single logit.

    Args:
        in_features: width of the input.
        layer_sizes: hidden layer widths; empty for a linear tower.
        dropout: probability of dropping a hidden unit during training.

    Raises:
        InputError: if a width is below 1, or ``dropout`` is not between 0 and 1.

    Example::

        >>> Tower(8, [4])(torch.randn(2, 8)).shape
        torch.Size([2, 1])
    """

    @checked
    def __init__(self, in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features)
        check_sizes(tower_layer_sizes=layer_sizes)
        self.hidden = hidden_layers(in_features, layer_sizes, dropout)
        self.output: nn.Module = nn.Linear([in_features, *layer_sizes][-1], 1)

    @property
    def is_binary(self) -> bool:
        """Whether the tower ends in a logit, not in a value."""
        return isinstance(self.output, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to one logit, ``[B, 1]``, or to the outputs of a value."""
        return self.output(self.hidden(x))

    @torch.no_grad()
    @checked
    def start_from_base_rate(self, base_rate: float) -> None:
        """Sets the last bias to the logit of the task's share of positives, so that training need not learn it first.

        Raises:
            InputError: if the share is not between 0 and 1, the tower ends in a value, or it is on the meta device,
                where nothing is kept.

        Example::

            >>> tower = Tower(3, [])
            >>> tower.start_from_base_rate(0.01)
            >>> tower(torch.zeros(1, 3)).sigmoid()
            tensor([[0.0100]], grad_fn=<SigmoidBackward0>)
        """
        if not 0 < base_rate < 1:
            raise InputError(f"`base_rates` (={base_rate:g} for a task) must be above 0 and below 1")
        if not isinstance(self.output, nn.Linear):
            raise InputError("`base_rates` must be given to towers that end in a logit")
        if self.output.bias.is_meta:
            raise InputError("`base_rates` must be given to a model that is no longer on the meta device")
        self.output.bias.fill_(math.log(base_rate) - math.log1p(-base_rate))


def check_base_rates(base_rates: Tensor, num_towers: int) -> None:
    """Raises `InputError` unless there is one rate for each tower, ``[T]``; `Tower` checks their values."""
    if base_rates.shape != (num_towers,):
        raise InputError(f"`base_rates` (={base_rates.tolist()}) must be one per tower ({num_towers})")


def start_towers(towers: Iterable[nn.Module], base_rates: Tensor) -> None:
    """Calls `Tower.start_from_base_rate` for each tower that ends in a logit, given their rates in order.

    Raises:
        InputError: if there is not one rate for each of them, or a rate is not between 0 and 1.
    """
    binary = [tower for tower in towers if isinstance(tower, Tower) and tower.is_binary]
    check_base_rates(base_rates, len(binary))
    for tower, rate in zip(binary, base_rates.tolist(), strict=True):
        tower.start_from_base_rate(rate)


class TaskTowers(nn.Module):
    """One `Tower` per task, each on a separate input.

    Args:
        num_tasks: number of tasks, ``T``.
        in_features: width of each task's input.
        layer_sizes: hidden layer widths of each tower.
        dropout: probability of dropping a hidden unit during training.

    Raises:
        InputError: if ``num_tasks`` is below 1; see also `Tower`.
    """

    @checked
    def __init__(self, num_tasks: int, in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks)
        self.towers = nn.ModuleList(Tower(in_features, layer_sizes, dropout) for _ in range(num_tasks))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps ``T`` tensors ``[B, in_features]`` to logits ``[B, T]``, or ``[B, L]`` where some end in values."""
        return torch.cat([tower(x) for tower, x in zip(self.towers, inputs, strict=True)], dim=1)

    @checked
    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """Calls `start_towers`.

        Args:
            base_rates: share of positives of the task of each tower that ends in a logit, ``[T]``.

        Raises:
            InputError: if there is not one rate per tower, or a rate is not between 0 and 1.
        """
        start_towers(self.towers, base_rates)
