"""TAFE's explicit task-specific adapter (TSA), section 3.2, and its ablation."""

import torch
from torch import Tensor, nn

from torchrec_mtl import ops
from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.modules.attention import check_heads
from torchrec_mtl.modules.initialization import reset_attention
from torchrec_mtl.ops.inducing_attention import reference


@torch.fx.wrap  # a traced tensor of weights cannot be split into its layers
def _adapt(representations: list[Tensor], weights: ops.AdapterWeights, num_heads: int) -> Tensor:
    return reference.adapt(representations, weights, num_heads)


class TaskAdapter(nn.Module):
    """TSA, TAFE eq. (21)-(22): each task reads the shared representation of every layer through its own indicator.

    Tasks share no parameter, and in the forward pass nothing flows back into the shared representations.

    Args:
        num_tasks: number of tasks, ``T``.
        embedding_dim: embedding dimension, ``D``.
        num_layers: number of layers, ``L``, the same as in the representation generator.
        num_heads: number of heads, ``m``; must divide ``D``.
        num_indicators: number of indicators of each task, ``I``, which share the other weights of their task and layer;
            1 in the paper.
        output_projection: whether a matrix ``W^O`` mixes the heads. Eq. (21) names the attention of eq. (18), whose
            heads eq. (19) mixes: the default takes both. False takes eq. (18) alone, as if ``W^O`` were the identity.

    Raises:
        InputError: if a number is below 1, or ``num_heads`` does not divide ``embedding_dim``.

    Example::

        >>> adapter = TaskAdapter(num_tasks=3, embedding_dim=8, num_layers=2)
        >>> adapter([torch.randn(4, 5, 8), torch.randn(4, 5, 8)]).shape
        torch.Size([4, 3, 8])
    """

    @checked
    def __init__(
        self,
        num_tasks: int,
        embedding_dim: int,
        num_layers: int,
        num_heads: int = 2,
        num_indicators: int = 1,
        output_projection: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks, embedding_dim=embedding_dim, num_layers=num_layers)
        check_at_least(1, num_indicators=num_indicators)
        check_heads(embedding_dim, num_heads)
        self.num_heads, self.num_indicators, self.output_projection = num_heads, num_indicators, output_projection
        row = (num_layers, num_tasks, embedding_dim)
        self.indicators = nn.Parameter(torch.empty(num_layers, num_tasks * num_indicators, embedding_dim))
        self.key_weight = nn.Parameter(torch.empty(*row, embedding_dim))
        self.value_weight = nn.Parameter(torch.empty(*row, embedding_dim))
        self.output_weight: Tensor
        if output_projection:
            self.output_weight = nn.Parameter(torch.empty(*row, embedding_dim))
        else:
            self.register_buffer("output_weight", torch.empty(*row, embedding_dim), persistent=False)
        self.norm_weight = nn.Parameter(torch.empty(row))
        self.norm_bias = nn.Parameter(torch.empty(row))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the initial values as in `reset_attention`, with the indicators as queries."""
        reset_attention(self.indicators, *self._of_tasks())
        if not self.output_projection:
            self.output_weight.copy_(torch.eye(self.output_weight.shape[-1]))

    def _of_tasks(self) -> tuple[Tensor, ...]:
        """What the indicators of a task share, ``[L, T, ...]``."""
        squares = (self.key_weight, self.value_weight, self.output_weight)
        return (*squares, self.norm_weight, self.norm_bias)

    def weights(self) -> ops.AdapterWeights:
        """Returns the weights of all layers, with those of a task once for each of its indicators."""
        shared = self._of_tasks()
        if self.num_indicators > 1:
            shared = tuple(x.repeat_interleave(self.num_indicators, dim=1) for x in shared)
        return ops.AdapterWeights(self.indicators, *shared)

    def forward(self, representations: list[Tensor]) -> Tensor:
        """Maps what a `RepresentationGenerator` gives to ``T^L [B, T * I, D]``: the equations as printed."""
        return _adapt(representations, self.weights(), self.num_heads)


class PooledRepresentation(nn.Module):
    """Replaces TSA in the ablation "TAFE w/o TSA": the mean of the last representation, for every task.

    Args:
        num_tasks: number of tasks, ``T``.
        masked: whether z of each layer comes after the representations, see `RepresentationGenerator`. Then it is the
            mean weighted by the last z, as attention by scores ``log z`` gives; 0 where it is 0 for every point.

    Raises:
        InputError: if ``num_tasks`` is below 1.
    """

    @checked
    def __init__(self, num_tasks: int, masked: bool = False) -> None:
        super().__init__()
        check_at_least(1, num_tasks=num_tasks)
        self.num_tasks, self.masked = num_tasks, masked

    def forward(self, representations: list[Tensor]) -> Tensor:
        """Maps ``[Y^1, ..., Y^L]``, each ``[B, K, D]``, to ``[B, T, D]``."""
        if self.masked:
            rows = representations[len(representations) // 2 - 1]
            z = representations[-1].unsqueeze(1).to(rows.dtype)
            mean = z @ rows / z.sum(2, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        else:
            mean = representations[-1].mean(1, keepdim=True)
        return mean.expand(-1, self.num_tasks, -1)
