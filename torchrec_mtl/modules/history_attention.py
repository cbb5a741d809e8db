"""What reads a history: the attention of a candidate, and self-attention among its rows."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.modules import jagged
from torchrec_mtl.modules.attention import check_heads
from torchrec_mtl.modules.initialization import initialize_linear_layers


class TargetAttention(nn.Module):
    """The attention of a candidate to a history: DIN, Zhou et al., KDD 2018, eq. (3).

    ``sum_i a(h_i, e) h_i``, where ``a`` is 1 plus an MLP on ``[h_i, e, h_i - e, h_i * e]``, so that the field starts
    near the sum of the rows. Between the two layers the paper has PReLU or Dice: here it is PReLU. It argues against
    normalising the weights, since the length of a history counts; its authors' code applies a softmax to them.

    Args:
        embedding_dim: dimension ``D`` of the rows and of the candidate.
        layer_size: width of the hidden layer of ``a``.
        softmax: whether the weights of a history add up to 1.

    Raises:
        InputError: if a number is below 1.

    Example::

        >>> attention = TargetAttention(8)
        >>> history, lengths = torch.randn(3, 8), torch.tensor([2, 0, 1])  # of three samples
        >>> attention(history, lengths, torch.randn(3, 8)).shape
        torch.Size([3, 8])
    """

    @checked
    def __init__(self, embedding_dim: int, *, layer_size: int = 36, softmax: bool = False) -> None:
        super().__init__()
        self.softmax = softmax
        check_at_least(1, embedding_dim=embedding_dim, layer_size=layer_size)
        self.hidden, self.activation = nn.Linear(4 * embedding_dim, layer_size), nn.PReLU()
        self.output = nn.Linear(layer_size, 1, bias=not softmax)  # which cancels out
        initialize_linear_layers(self)

    def forward(self, history: Tensor, lengths: Tensor, candidates: Tensor) -> Tensor:
        """Maps histories ``[V, D]`` of ``lengths [B]`` and candidates ``[B, D]`` to ``[B, D]``."""
        # the product with [h, e, h - e, h * e], of which the part of e is computed once a sample
        of_h, of_e, of_difference, of_product = self.hidden.weight.chunk(4, dim=1)
        both = torch.cat([history, history * jagged.spread(candidates, history, lengths)], dim=1)
        of_candidates = F.linear(candidates, of_e - of_difference, self.hidden.bias)
        hidden = F.linear(both, torch.cat([of_h + of_difference, of_product], dim=1))
        hidden = hidden + jagged.spread(of_candidates, history, lengths)
        weights = 1 + self.output(self.activation(hidden))
        if self.softmax:
            weights = jagged.softmax(weights, lengths)
        return jagged.summed(history * weights, lengths)


class HistoryTransformer(nn.Module):
    """Self-attention among the rows of each history, with learnt positions: the transformer of BST.

    Chen et al., *Behavior Sequence Transformer*, DLP-KDD 2019, eq. (2)-(4), without dropout. Positions count from the
    newest row, so a history that is cut keeps them. BST appends the candidate to the sequence and reads all of a padded
    one; here `TargetAttention` reads it.

    Args:
        embedding_dim: dimension ``D`` of the rows.
        num_layers: number of layers.
        num_heads: number of heads; must divide ``D``.
        max_length: number of rows that a history has at most.

    Raises:
        InputError: if a number is below 1, or ``num_heads`` does not divide ``embedding_dim``.

    Example::

        >>> transformer = HistoryTransformer(8, num_heads=2)
        >>> transformer(torch.randn(3, 8), torch.tensor([2, 0, 1])).shape
        torch.Size([3, 8])
    """

    @checked
    def __init__(self, embedding_dim: int, *, num_layers: int = 1, num_heads: int = 1, max_length: int = 50) -> None:
        super().__init__()
        check_heads(embedding_dim, num_heads)
        check_at_least(1, num_layers=num_layers, max_length=max_length)
        self.positions = nn.Embedding(max_length, embedding_dim)
        _start_at_zero(self.positions)
        self.layers = nn.ModuleList(_Layer(embedding_dim, num_heads, max_length) for _ in range(num_layers))

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Maps histories ``[V, D]`` of ``lengths [B]`` to ``[V, D]``."""
        history = history + self.positions(jagged.ages(history, lengths))
        for layer in self.layers:
            history = layer(history, lengths)
        return history


@torch.no_grad()
def _start_at_zero(positions: nn.Embedding) -> None:
    """Now and whenever the parameters are reset; PyTorch's rows of variance 1 would drown those of the tables."""
    nn.init.zeros_(positions.weight)
    positions.reset_parameters = partial(_start_at_zero, positions)  # type: ignore[method-assign]


class _Layer(nn.Module):
    def __init__(self, embedding_dim: int, num_heads: int, max_length: int) -> None:
        super().__init__()
        self.num_heads, self.max_length = num_heads, max_length
        self.projection = nn.Linear(embedding_dim, 3 * embedding_dim, bias=False)
        self.output = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.inner, self.outer = (
            nn.Linear(embedding_dim, 4 * embedding_dim),
            nn.Linear(4 * embedding_dim, embedding_dim),
        )
        self.after_attention, self.after_mlp = nn.LayerNorm(embedding_dim), nn.LayerNorm(embedding_dim)
        initialize_linear_layers(self)

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        queries, keys, values = self.projection(history).chunk(3, dim=1)
        attended = jagged.attend(queries, keys, values, lengths, self.num_heads, self.max_length)
        history = self.after_attention(history + self.output(attended))
        transformed: Tensor = self.after_mlp(history + self.outer(F.leaky_relu(self.inner(history))))
        return transformed
