"""TAFE's explicit task-specific adapter (TSA), section 3.2, and its ablation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrec_mtl import ops
from torchrec_mtl.modules.attention import check_heads


class TaskAdapterLayer(nn.Module):
    """One adapter layer for all tasks, TAFE eq. (21)-(22); no parameter is shared by two tasks.

    Args:
        num_tasks: ``T``.
        embedding_dim: ``D``.
        num_heads: ``m``; must divide ``D``.
        backend: of `torchrec_mtl.ops.indicator_attention`.
    """

    def __init__(self, num_tasks: int, embedding_dim: int, num_heads: int, backend: str = "auto") -> None:
        super().__init__()
        check_heads(embedding_dim, num_heads)
        self.num_heads, self.backend = num_heads, backend
        square = (num_tasks, embedding_dim, embedding_dim)
        self.indicators = nn.Parameter(torch.empty(num_tasks, embedding_dim))
        self.key_weight = nn.Parameter(torch.empty(square))
        self.value_weight = nn.Parameter(torch.empty(square))
        self.output_weight = nn.Parameter(torch.empty(square))
        self.norm_weight = nn.Parameter(torch.empty(num_tasks, embedding_dim))
        self.norm_bias = nn.Parameter(torch.empty(num_tasks, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the layers they stand for: `torch.nn.Linear` and `torch.nn.LayerNorm`; indicators as queries."""
        bound = self.key_weight.shape[-1] ** -0.5
        for weight in (self.key_weight, self.value_weight, self.output_weight):
            nn.init.uniform_(weight, -bound, bound)
        nn.init.xavier_uniform_(self.indicators)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)

    def forward(self, shared: Tensor, former: Tensor | None) -> Tensor:
        """``Y^l [B, K, D]`` and ``T^{l-1} [B, T, D]``, none in the first layer, to ``T^l [B, T, D]``."""
        weights = (self.key_weight, self.value_weight, self.output_weight)
        output = ops.indicator_attention(self.indicators, shared, *weights, self.num_heads, self.backend)
        if former is not None:
            output = output + former
        return F.layer_norm(output, output.shape[-1:]) * self.norm_weight + self.norm_bias


class TaskAdapter(nn.Module):
    """TSA, TAFE eq. (21)-(22): each task reads every layer's shared representation through its own indicator.

    Nothing of it flows back into the shared representations' forward.

    Args:
        num_tasks: ``T``.
        embedding_dim: ``D``.
        num_layers: ``L``, as many as the representation generator has.
        num_heads: ``m``; must divide ``D``.
        backend: of `torchrec_mtl.ops.indicator_attention`.

    Example::

        >>> adapter = TaskAdapter(num_tasks=3, embedding_dim=8, num_layers=2)
        >>> adapter([torch.randn(4, 5, 8), torch.randn(4, 5, 8)]).shape
        torch.Size([4, 3, 8])
    """

    def __init__(
        self, num_tasks: int, embedding_dim: int, num_layers: int, num_heads: int = 2, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TaskAdapterLayer(num_tasks, embedding_dim, num_heads, backend) for _ in range(num_layers)
        )

    def forward(self, representations: Sequence[Tensor]) -> Tensor:
        """``[Y^1, ..., Y^L]``, each ``[B, K, D]``, to ``T^L [B, T, D]``."""
        adapted: Tensor | None = None
        for layer, shared in zip(self.layers, representations, strict=True):
            adapted = layer(shared, adapted)
        assert adapted is not None  # there is at least one layer
        return adapted


class PooledRepresentation(nn.Module):
    """What stands for TSA in the ablation "TAFE w/o TSA": the mean of the last representation, for every task.

    Args:
        num_tasks: ``T``.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks

    def forward(self, representations: Sequence[Tensor]) -> Tensor:
        """``[Y^1, ..., Y^L]``, each ``[B, K, D]``, to ``[B, T, D]``."""
        return representations[-1].mean(1, keepdim=True).expand(-1, self.num_tasks, -1)
