"""The layers of cross-stitch networks (Misra et al., CVPR 2016) and of sluice networks (Ruder et al., AAAI 2019)."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least, check_choice
from torchrec_mtl.modules.mlp import MLP
from torchrec_mtl.modules.tracing import unbind


class CrossStitchUnit(nn.Module):
    """Mixes the tasks' activations: ``x~_s = sum_t alpha_st x_t``, eq. (1).

    It starts as a convex combination: 0.9 of a task's own activation, the best value in the paper's table 1, and equal
    shares of the other tasks' activations. The paper has one other task. Training need not keep it convex.

    Args:
        num_tasks: number of tasks, ``T``.
        features: ``D``, width of each task's activation.
        per: ``"channel"`` for one ``alpha [T, T]`` per channel, as in the paper's experiments, or ``"layer"`` for one
            that all ``D`` channels share.

    Raises:
        InputError: if a number is below 1, or ``per`` is neither.

    Example::

        >>> unit = CrossStitchUnit(num_tasks=2, features=1)
        >>> unit(torch.tensor([[[1.0], [0.0]]])).flatten()
        tensor([0.9000, 0.1000], grad_fn=<ViewBackward0>)
    """

    @checked
    def __init__(self, num_tasks: int, features: int, per: Literal["channel", "layer"] = "channel") -> None:
        super().__init__()
        check_choice("stitch", per, ("channel", "layer"))
        check_at_least(1, num_tasks=num_tasks, features=features)
        channels = () if per == "layer" else (features,)
        self.alpha = nn.Parameter(torch.empty(*channels, num_tasks, num_tasks))
        self.equation = "st,btd->bsd" if per == "layer" else "dst,btd->bsd"
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the initial convex combination."""
        num_tasks = self.alpha.shape[-1]
        own = 0.9 if num_tasks > 1 else 1.0
        self.alpha.fill_((1 - own) / max(num_tasks - 1, 1)).diagonal(dim1=-2, dim2=-1).fill_(own)

    def forward(self, activations: Tensor) -> Tensor:
        """Maps ``[B, T, D]`` to ``[B, T, D]``."""
        return torch.einsum(self.equation, self.alpha, activations)


class CrossStitchLayer(nn.Module):
    """One linear layer with ReLU per task, then a `CrossStitchUnit` across the tasks.

    In a sluice network each output is ``S`` subspaces of adjacent channels, and the unit mixes the subspaces of all
    tasks: it then has ``T * S`` activations of width ``D / S``, those of task 1 first.

    Args:
        num_tasks: number of tasks, ``T``.
        in_features: width of each task's input.
        out_features: ``D``, width of each task's output.
        per: see `CrossStitchUnit`.
        num_subspaces: number of subspaces, ``S``; 1 in cross-stitch networks.

    Raises:
        InputError: if a number is below 1, ``per`` is neither ``"channel"`` nor ``"layer"``, or ``num_subspaces`` does
            not divide ``out_features``.
    """

    @checked
    def __init__(
        self,
        num_tasks: int,
        in_features: int,
        out_features: int,
        per: Literal["channel", "layer"] = "channel",
        num_subspaces: int = 1,
    ) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks, in_features=in_features, out_features=out_features)
        check_at_least(1, num_subspaces=num_subspaces)
        if out_features % num_subspaces:
            raise InputError(f"`num_subspaces` (={num_subspaces}) must divide the width of a layer (={out_features})")
        self.num_subspaces = num_subspaces
        self.networks: Any = nn.ModuleList(MLP(in_features, [out_features]) for _ in range(num_tasks))
        self.unit = CrossStitchUnit(num_tasks * num_subspaces, out_features // num_subspaces, per)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``T`` tensors ``[B, in_features]`` to ``T`` tensors ``[B, D]``."""
        activations = torch.stack([network(x) for network, x in zip(self.networks, inputs, strict=True)], dim=1)
        if self.num_subspaces == 1:
            return unbind(self.unit(activations), len(self.networks))
        subspaces = activations.unflatten(2, (self.num_subspaces, -1)).flatten(1, 2)
        return unbind(self.unit(subspaces).unflatten(1, (-1, self.num_subspaces)).flatten(2), len(self.networks))

    def subspace_penalty(self) -> Tensor:
        """How far the subspaces are from orthogonal: the sum of ``|G_i^T G_j|_F^2`` over pairs of them, a scalar.

        ``G_i [D / S, in]`` is the part of a task's weight that makes subspace ``i``.
        """
        weights = torch.stack([network._mlp[0]._linear.weight for network in self.networks])
        parts = unbind(weights.unflatten(1, (self.num_subspaces, -1)), self.num_subspaces)
        products = [part @ part.mT for part in parts]  # |G_i^T G_j|_F^2 = <G_i G_i^T, G_j G_j^T>
        pairs = [(first * second).sum() for first, second in combinations(products, 2)]
        return torch.stack(pairs).sum() if pairs else weights.new_zeros(())


class LayerStitchUnit(nn.Module):
    """Mixes the outputs of each task's layers: ``sum_l beta_tl h_tl``, of sluice networks.

    It starts as the mean of the layers, as in the authors' code by default.

    Args:
        num_tasks: number of tasks, ``T``.
        num_layers: number of layers, ``L``.

    Raises:
        InputError: if a number is below 1.

    Example::

        >>> unit = LayerStitchUnit(num_tasks=1, num_layers=2)
        >>> unit([[torch.tensor([[2.0, 0.0]])], [torch.tensor([[4.0, 4.0]])]])[0].tolist()
        [[3.0, 2.0]]
    """

    @checked
    def __init__(self, num_tasks: int, num_layers: int) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks, num_layers=num_layers)
        self.beta = nn.Parameter(torch.empty(num_tasks, num_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the initial mean."""
        nn.init.constant_(self.beta, 1 / self.beta.shape[1])

    def forward(self, layers: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Maps ``L`` layers of ``T`` tensors ``[B, D]`` to ``T`` tensors ``[B, D]``."""
        stacked = torch.stack([torch.stack([*states], dim=1) for states in layers], dim=1)
        return unbind(torch.einsum("tl,bltd->btd", self.beta, stacked), len(layers[0]))
