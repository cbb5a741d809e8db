"""Towers: an MLP that ends in one logit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import MLP

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules.funnel import MarginalFromConditional


def hidden_layers(in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """ReLU layers, and after each, where asked for, dropout.

    Args:
        in_features: width of the input.
        layer_sizes: the layers; none for the identity.
        dropout: probability of dropping a unit in training.

    Example::

        >>> hidden_layers(8, [6, 4], dropout=0.1)(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
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

    Example::

        >>> Tower(8, [4])(torch.randn(2, 8)).shape
        torch.Size([2, 1])
    """

    def __init__(self, in_features: int, layer_sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = hidden_layers(in_features, layer_sizes, dropout)
        self.output = nn.Linear([in_features, *layer_sizes][-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_features]`` to a logit, ``[B, 1]``."""
        return self.output(self.hidden(x))


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


@torch.no_grad()
def start_from_base_rates(model: nn.Module, base_rates: Tensor) -> None:
    """Sets the towers' last biases to the tasks' base rates, so that training need not first find how rare they are.

    Towers of conditional logits, those of a model with a `MarginalFromConditional`, are set to each task's share
    among the positives of the task before.

    Args:
        model: has one `Tower` a task, in task order, and no other.
        base_rates: ``[T]``, each task's share of positives among all rows.

    Raises:
        InputError: if the towers are not one a task, or a rate, or a conditional one where that is set, is not
            between 0 and 1.

    Example::

        >>> towers = TaskTowers(num_tasks=2, in_features=3, layer_sizes=[])
        >>> start_from_base_rates(towers, torch.tensor([0.5, 0.01]))
        >>> towers([torch.zeros(1, 3)] * 2).sigmoid()
        tensor([[0.5000, 0.0100]], grad_fn=<SigmoidBackward0>)
    """
    towers = [module for module in model.modules() if isinstance(module, Tower)]
    if len(towers) != len(base_rates):
        raise InputError(f"`base_rates` (={base_rates.tolist()}) must be one a tower, of which there are {len(towers)}")
    if not ((base_rates > 0) & (base_rates < 1)).all():
        raise InputError(f"`base_rates` (={base_rates.tolist()}) must be above 0 and below 1")
    if any(isinstance(module, MarginalFromConditional) for module in model.modules()):
        if not (base_rates.diff() < 0).all():
            raise InputError(f"`base_rates` (={base_rates.tolist()}) must fall from task to task for this model")
        base_rates = torch.cat([base_rates[:1], base_rates[1:] / base_rates[:-1]])
    for tower, rate in zip(towers, base_rates, strict=True):
        tower.output.bias.fill_(torch.logit(rate))
