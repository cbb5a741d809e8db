"""The layers of cross-stitch networks (Misra et al., CVPR 2016)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_choice
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

    Args:
        num_tasks: number of tasks, ``T``.
        in_features: width of each task's input.
        out_features: ``D``, width of each task's output.
        per: see `CrossStitchUnit`.

    Raises:
        InputError: if a number is below 1, or ``per`` is neither ``"channel"`` nor ``"layer"``.
    """

    @checked
    def __init__(
        self, num_tasks: int, in_features: int, out_features: int, per: Literal["channel", "layer"] = "channel"
    ) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks, in_features=in_features, out_features=out_features)
        self.networks = nn.ModuleList(MLP(in_features, [out_features]) for _ in range(num_tasks))
        self.unit = CrossStitchUnit(num_tasks, out_features, per)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``T`` tensors ``[B, in_features]`` to ``T`` tensors ``[B, D]``."""
        activations = [network(x) for network, x in zip(self.networks, inputs, strict=True)]
        return unbind(self.unit(torch.stack(activations, dim=1)), len(self.networks))
